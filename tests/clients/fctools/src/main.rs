//! The crate fctools, unchanged, against the program under the names `firecracker` and `jailer`: creates, configures,
//! starts, pauses, resumes, changes the balloon and the disk, stops; as it is, and in a jail.
//! `fctools-client FIRECRACKER JAILER KERNEL INITRD DISK FOLDER`, by root.
//!
//! A line for each call; the first one that fails ends it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::Vm;
use fctools::vm::api::{VmApi, VmApiError};
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, Drive, DriveCacheType, DriveIoEngine, EntropyDevice, HugePages,
    LoggerSystem, MachineConfiguration, MetricsSystem, RateLimiter, TokenBucket,
    UpdateBalloonDevice, UpdateBalloonStatistics, UpdateDrive, VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vmm::arguments::jailer::{JailerArguments, JailerCgroupVersion};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments, VmmLogLevel};
use fctools::vmm::executor::VmmExecutor;
use fctools::vmm::executor::jailed::{FlatVirtualPathResolver, JailedVmmExecutor};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, ResourceType};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Resources = ResourceSystem<DirectProcessSpawner, TokioRuntime>;
type Machine<E> = Vm<E, DirectProcessSpawner, TokioRuntime>;

/// How long a guest may take to start or to power off under emulation.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who the VM is, and the user that it is in a jail.
const ID: &str = "fctools-vm";
const USER: u32 = 2001;

struct Files {
    firecracker: PathBuf,
    jailer: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    disk: PathBuf,
    folder: PathBuf,
}

fn given(resources: &mut Resources, file: &Path) -> Outcome<fctools::vmm::resource::Resource> {
    let kind = ResourceType::Moved(MovedResourceType::Copied);
    Ok(resources.create_resource(file, kind)?)
}

/// What is made is in this folder, as the VM sees it.
fn configuration(
    files: &Files,
    folder: &Path,
    resources: &mut Resources,
) -> Outcome<VmConfigurationData> {
    let bucket = || TokenBucket { size: 1 << 20, one_time_burst: Some(1 << 20), refill_time: 100 };
    let limiter = || RateLimiter { bandwidth: bucket(), ops: bucket() };
    let created = ResourceType::Created(CreatedResourceType::File);
    Ok(VmConfigurationData {
        boot_source: BootSource {
            kernel_image: given(resources, &files.kernel)?,
            boot_args: Some("quiet cryptomgr.notests workload=agent".to_owned()),
            initrd: Some(given(resources, &files.initrd)?),
        },
        drives: vec![Drive {
            drive_id: "data".to_owned(),
            is_root_device: false,
            cache_type: Some(DriveCacheType::Writeback),
            partuuid: None,
            is_read_only: Some(false),
            block: Some(given(resources, &files.disk)?),
            rate_limiter: Some(limiter()),
            io_engine: Some(DriveIoEngine::Sync),
            socket: None,
        }],
        machine_configuration: MachineConfiguration {
            vcpu_count: 2,
            mem_size_mib: 256,
            smt: Some(false),
            track_dirty_pages: Some(false),
            huge_pages: Some(HugePages::None),
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: Some(BalloonDevice {
            amount_mib: 0,
            deflate_on_oom: false,
            stats_polling_interval_s: Some(1),
        }),
        vsock_device: Some(VsockDevice {
            guest_cid: 3,
            uds: resources.create_resource(folder.join("vsock"), ResourceType::Produced)?,
        }),
        logger_system: Some(LoggerSystem {
            logs: Some(resources.create_resource(folder.join("log"), created)?),
            level: Some(VmmLogLevel::Info),
            show_level: Some(true),
            show_log_origin: Some(true),
            module: None,
        }),
        metrics_system: Some(MetricsSystem {
            metrics: resources.create_resource(folder.join("metrics"), created)?,
        }),
        mmds_configuration: None,
        entropy_device: Some(EntropyDevice { rate_limiter: Some(limiter()) }),
    })
}

fn resources(owner: VmmOwnershipModel) -> Resources {
    Resources::new(DirectProcessSpawner, TokioRuntime, owner)
}

fn arguments(folder: &Path) -> VmmArguments {
    VmmArguments::new(VmmApiSocket::Enabled(folder.join("api")))
        .log_level(VmmLogLevel::Info)
        .show_log_level()
        .show_log_origin()
        .enable_boot_timer()
        .disable_seccomp()
}

async fn machine<E: VmmExecutor>(
    files: &Files,
    folder: &Path,
    owner: VmmOwnershipModel,
    executor: E,
) -> Outcome<Machine<E>> {
    let mut resources = resources(owner);
    let data = configuration(files, folder, &mut resources)?;
    let installation = VmmInstallation::new(&files.firecracker, &files.jailer, &files.firecracker);
    Ok(Vm::prepare(
        executor,
        resources,
        installation,
        VmConfiguration::New { init_method: InitMethod::ViaApiCalls, data },
    )
    .await?)
}

async fn direct(files: &Files) -> Outcome<()> {
    let executor = UnrestrictedVmmExecutor::new(arguments(&files.folder)).disable_pipes();
    let executor = executor.id(VmmId::new(ID)?);
    let owner = VmmOwnershipModel::Shared;
    let mut vm = machine(files, &files.folder, owner, executor).await?;
    done("start", vm.start(PATIENCE).await)?;
    use_it(&mut vm).await?;
    change_disk(&mut vm, &files.disk).await?;
    end(vm).await
}

async fn jailed(files: &Files) -> Outcome<()> {
    let jails = files.folder.join("jails");
    std::fs::create_dir(&jails)?;
    let jailer = JailerArguments::new(VmmId::new(ID)?)
        .chroot_base_dir(&jails)
        .cgroup_version(JailerCgroupVersion::V2)
        .cgroup("memory.max", "1G")
        .max_fd_limit(1024);
    let root = Path::new("/");
    let executor = JailedVmmExecutor::new(arguments(root), jailer, FlatVirtualPathResolver);
    let owner = VmmOwnershipModel::Downgraded { uid: USER, gid: USER };
    let mut vm = machine(files, root, owner, executor).await?;
    done("jailed: start", vm.start(PATIENCE).await)?;
    use_it(&mut vm).await?;
    end(vm).await?;
    let left: Vec<_> = std::fs::read_dir(jails.join("firecracker"))?.collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Reports a call.
fn done<T: std::fmt::Debug, E: Error + 'static>(call: &str, result: Result<T, E>) -> Outcome<T> {
    match &result {
        Ok(answer) => println!("fctools: {call}: {answer:?}"),
        Err(error) => println!("fctools: {call}: FAILED: {error}"),
    }
    Ok(result?)
}

/// Reports a call that is to be refused.
fn refused<T>(call: &str, result: Result<T, VmApiError>) -> Outcome<()> {
    match result {
        Err(VmApiError::ReceivedErrorResponse { status_code, fault_message }) => {
            println!("fctools: {call}: refused with {status_code}: {fault_message}");
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err(format!("{call} is not refused").into()),
    }
}

async fn use_it<E: VmmExecutor>(vm: &mut Machine<E>) -> Outcome<()> {
    let info = done("get_info", vm.get_info().await)?;
    assert_eq!((&*info.id, info.is_paused), (ID, false));
    done("get_firecracker_version", vm.get_firecracker_version().await)?;
    let machine = done("get_machine_configuration", vm.get_machine_configuration().await)?;
    assert_eq!((machine.vcpu_count, machine.mem_size_mib), (2, 256));
    done("flush_metrics", vm.flush_metrics().await)?;
    done("pause", vm.pause().await)?;
    assert!(done("get_info", vm.get_info().await)?.is_paused);
    done("resume", vm.resume().await)?;
    done(
        "update_balloon_device",
        vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 64 }).await,
    )?;
    assert_eq!(done("get_balloon_device", vm.get_balloon_device().await)?.amount_mib, 64);
    let statistics = UpdateBalloonStatistics { stats_polling_interval_s: 1 };
    done("update_balloon_statistics", vm.update_balloon_statistics(statistics).await)?;
    loop {
        let statistics = vm.get_balloon_statistics().await;
        if statistics.as_ref().is_ok_and(|statistics| statistics.actual_mib < 64) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        done("get_balloon_statistics", statistics)?;
        break;
    }
    refused("create_mmds", vm.create_mmds(1).await)?;
    refused("get_mmds", vm.get_mmds::<i32>().await)
}

async fn change_disk<E: VmmExecutor>(vm: &mut Machine<E>, disk: &Path) -> Outcome<()> {
    let mut resources = resources(VmmOwnershipModel::Shared);
    let block = given(&mut resources, disk)?;
    block.start_initialization_with_same_path()?;
    resources.synchronize().await?;
    let update =
        UpdateDrive { drive_id: "data".to_owned(), block: Some(block), rate_limiter: None };
    done("update_drive", vm.update_drive(update).await)
}

async fn end<E: VmmExecutor>(mut vm: Machine<E>) -> Outcome<()> {
    // The guest listens to the power key when its init has come so far.
    let ask = || VmShutdownAction {
        method: VmShutdownMethod::CtrlAltDel,
        timeout: Some(PATIENCE),
        graceful: true,
    };
    let outcome = loop {
        match vm.shutdown([ask()]).await {
            Err(error) if error.to_string().contains("does not listen") => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            outcome => break done("shutdown", outcome)?,
        }
    };
    assert!(outcome.is_fully_graceful(), "{outcome:?}");
    done("cleanup", vm.cleanup().await)?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [firecracker, jailer, kernel, initrd, disk, folder] = <[PathBuf; 6]>::try_from(words)
        .map_err(|_| "give FIRECRACKER JAILER KERNEL INITRD DISK FOLDER")?;
    let files = Files { firecracker, jailer, kernel, initrd, disk, folder };
    direct(&files).await?;
    jailed(&files).await?;
    println!("fctools: done");
    Ok(())
}
