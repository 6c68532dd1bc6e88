//! Snapshots that are damaged, lie, or do not fit the host, and saves for which there is no room: each ends with its
//! reason and its exit code, nothing is left of it, and a VM that runs continues.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use arch::layout::RAM_BASE;
use arch::regs::RegId;
use flate2::Crc;
use serde_json::{Value, json};
use tesseractl::client::Error;
use testing::broker::Broker;
use testing::guest::{Finished, Plan};
use testing::lab::{Lab, program};
use testing::scratch::Scratch;
use testing::small_file_system::SmallFileSystem;
use testing::snapshot::{Flips, beat, flipped, power_off, restore, save, small, text, verified};
use testing::wait::until;
use vmm::hypervisor::state::{GicRegister, SavedRegisters};
use vmm::snapshot::{DeviceState, Kind, State, StateFile};

/// The header of a memory file.
const HEADER: usize = 128;

/// A snapshot of which something is to be another.
struct Forged {
    state: State,
    memory: Vec<u8>,
}

impl Forged {
    fn of(folder: &Path) -> Self {
        let state = StateFile::read(&folder.join("state")).unwrap();
        Self { state, memory: fs::read(folder.join("memory")).unwrap() }
    }

    /// Changes a field of the header of the memory file, whose checksum is right.
    fn header(&mut self, at: usize, field: &[u8]) {
        self.memory[at..at + field.len()].copy_from_slice(field);
        let mut crc = Crc::new();
        crc.update(&self.memory[..HEADER - 4]);
        self.memory[HEADER - 4..HEADER].copy_from_slice(&crc.sum().to_le_bytes());
    }

    /// A memory file of nothing but holes.
    fn without_contents(&mut self) {
        self.memory.truncate(HEADER);
        self.header(64, &(HEADER as u64).to_le_bytes());
        self.header(72, &[0; 8]);
    }

    fn write(&self, folder: &Path) {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("state"), StateFile::encode(&self.state).unwrap()).unwrap();
        fs::write(folder.join("memory"), &self.memory).unwrap();
    }

    /// Changes the source of random numbers, which a driver has in use.
    fn device(&mut self, change: impl FnOnce(&mut Transport)) {
        let state = self.state.devices.get_mut("entropy").unwrap();
        let mut transport: Transport = state.decode().unwrap();
        // ACKNOWLEDGE, DRIVER, DRIVER_OK and FEATURES_OK, and VIRTIO_F_VERSION_1.
        (transport.0, transport.2, transport.3.2) = (15, true, 1 << 32);
        let ram = RAM_BASE.0;
        let (descriptors, available, used) = (ram + 0x10000, ram + 0x20000, ram + 0x30000);
        transport.5 = vec![(transport.5[0].0, 16, descriptors, available, used, Some((0, 0)))];
        change(&mut transport);
        *state = DeviceState::encode(&transport).unwrap();
    }
}

/// The largest size of a queue, its size, its addresses, and how far it has come.
type Queue = (u16, u32, u64, u64, u64, Option<(u16, u16)>);
/// The state of a device without one of its own: device status, broken, activated, features, the queue that is selected,
/// queues, interrupt status, generation of the configuration.
type Transport = (u32, bool, bool, (u32, u32, u64, bool), u32, Vec<Queue>, u32, u32, ());

/// What is another, the exit code of a restore, and words of its reason.
type Lie = (&'static str, fn(&mut Forged), i32, &'static str);

const LIES: &[Lie] = &[
    (
        "a register that there is not",
        |it| {
            it.state.vcpus[1].registers.push(RegId::new(0x6030_0000_0013_ffff));
        },
        69,
        "KVM does not take the registers",
    ),
    (
        "a register of the counter",
        |it| {
            it.state.vcpus[1].registers.push(RegId::TIMER_CNT);
        },
        69,
        "KVM does not take the registers",
    ),
    (
        "a processor of another kind",
        |it| {
            // MIDR_EL1.
            let mut registers = SavedRegisters::default();
            for (id, value) in it.state.vcpus[0].registers.iter() {
                let to = registers.push(id);
                to.copy_from_slice(if id.get() == 0x6030_0000_0013_c000 {
                    &[0x5a; 8]
                } else {
                    value
                });
            }
            it.state.vcpus[0].registers = registers;
        },
        69,
        "KVM does not take the registers",
    ),
    ("a vCPU less", |it| drop(it.state.vcpus.pop()), 65, "vCPU"),
    ("a vCPU more", |it| it.state.vcpus.push(it.state.vcpus[0].clone()), 65, "vCPU"),
    (
        "no vector length",
        |it| it.state.vcpus.iter_mut().for_each(|vcpu| vcpu.sve_lengths = Some([0; 8])),
        69,
        "SVE with its vector lengths",
    ),
    (
        "vector lengths of another host",
        |it| it.state.vcpus.iter_mut().for_each(|vcpu| vcpu.sve_lengths = Some([u64::MAX; 8])),
        69,
        "SVE with its vector lengths",
    ),
    (
        "a host without SVE",
        |it| {
            it.state.manifest.cpu_features.sve = false;
            it.state.vcpus.iter_mut().for_each(|vcpu| vcpu.sve_lengths = None);
        },
        69,
        "KVM does not take the registers",
    ),
    (
        "a register of the interrupt controller less",
        |it| {
            it.state.gic.registers.pop();
        },
        69,
        "interrupt controller",
    ),
    (
        "another register of the interrupt controller",
        |it| it.state.gic.registers[0].attribute += 4,
        69,
        "interrupt controller",
    ),
    (
        "another interrupt controller",
        |it| {
            it.state.manifest.gic_version = 2;
            it.state.gic.version = 2;
            it.state.gic.registers = vec![GicRegister { group: 1, attribute: 0, value: 0 }];
        },
        69,
        "GICv2",
    ),
    (
        "another frequency of the counter",
        |it| {
            it.state.manifest.counter_frequency += 1;
            it.state.clock.frequency += 1;
        },
        69,
        "Hz",
    ),
    (
        "another page size",
        |it| {
            it.without_contents();
            it.header(56, &(64u32 << 10).to_le_bytes());
            it.state.manifest.page_size = 64 << 10;
        },
        69,
        "64 KiB",
    ),
    ("a page size of one file", |it| it.state.manifest.page_size = 64 << 10, 65, "memory"),
    (
        "more memory than the configuration has",
        |it| {
            it.without_contents();
            it.header(48, &(256u64 << 20).to_le_bytes());
            it.state.manifest.memory_size = 256 << 20;
        },
        65,
        "256 MiB",
    ),
    ("more memory in one file", |it| it.state.manifest.memory_size *= 2, 65, "memory"),
    ("no tags in one file", |it| it.state.manifest.mte = false, 65, "memory"),
    (
        "a diff",
        |it| {
            let own = it.memory[16..32].to_vec();
            it.header(12, &3u32.to_le_bytes());
            it.header(32, &own);
            it.state.manifest.kind = Kind::Diff { base: it.state.id };
        },
        65,
        "merge",
    ),
    (
        "the memory of another snapshot",
        |it| it.header(16, &[9; 16]),
        65,
        "name the two files of one snapshot",
    ),
    (
        "a configuration of a later version",
        |it| it.state.manifest.config["later"] = json!({}),
        65,
        "the version of tessera that saved it",
    ),
    ("a configuration of nothing", |it| it.state.manifest.config = json!({}), 78, "kernel"),
    ("a queue beyond memory", |it| it.device(|device| device.5[0].4 = 1 << 60), 65, "queue"),
    ("a queue below memory", |it| it.device(|device| device.5[0].2 = 16), 65, "queue"),
    ("a queue at no alignment", |it| it.device(|device| device.5[0].2 += 1), 65, "queue"),
    ("a queue of no size", |it| it.device(|device| device.5[0].1 = 3), 65, "queue"),
    ("a larger queue", |it| it.device(|device| device.5[0].0 *= 2), 65, "queue"),
    (
        "a queue too many",
        |it| it.device(|device| device.5.push(device.5[0])),
        65,
        "number of queues",
    ),
    (
        "features that were not offered",
        |it| it.device(|device| device.3.2 = u64::MAX),
        65,
        "features",
    ),
    ("a status that no driver leads to", |it| it.device(|device| device.0 = 4), 65, "status"),
    (
        "a state of another form",
        |it| {
            let other = DeviceState::encode(&(1u8, 2u8)).unwrap();
            it.state.devices.insert("entropy".to_owned(), other);
        },
        65,
        "entropy",
    ),
    ("a device less", |it| drop(it.state.devices.remove("balloon")), 65, "balloon"),
];

/// A guest that is saved; its snapshot.
fn saved(scratch: &Scratch, plan: Plan) -> PathBuf {
    let folder = scratch.join("one");
    let mut guest = plan.start();
    guest.report("ready");
    until("the balloon's driver", || {
        let balloon: Value = guest.client().get("/balloon").unwrap();
        (balloon["driver"] == "active").then_some(())
    });
    save(&guest, &folder, &["--keep-paused"]);
    guest.stop();
    folder
}

fn is_refused(ended: &Finished, name: &str, code: i32, says: &str) {
    assert_eq!(ended.code, Some(code), "{name}: {ended:?}");
    assert!(ended.messages.contains(says), "{name}: {ended:?}");
    assert!(!ended.messages.contains("panicked"), "{name}: {ended:?}");
    assert_eq!(ended.console, Vec::<String>::new(), "{name}");
}

#[test]
#[ignore = "long"]
fn a_state_that_lies_is_refused_with_its_reason_and_exit_code() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = saved(&scratch, small().with("--cpus", "2").flag("--rng"));
        for (number, (name, change, code, says)) in LIES.iter().enumerate() {
            let other = scratch.join("other");
            let mut forged = Forged::of(&folder);
            change(&mut forged);
            forged.write(&other);
            is_refused(&restore(&other, number % 2 == 1).run(), name, *code, says);
            fs::remove_dir_all(other).unwrap();
        }
        for (file, at) in [("state", 8), ("state", 10), ("memory", 8), ("memory", 10)] {
            let path = folder.join(file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] += 1;
            fs::write(&path, &bytes).unwrap();
            is_refused(&restore(&folder, false).run(), file, 65, "version");
            bytes[at] -= 1;
            fs::write(&path, &bytes).unwrap();
        }
        // What was changed is all that was wrong.
        let other = scratch.join("other");
        let mut forged = Forged::of(&folder);
        forged.device(|_| ());
        forged.write(&other);
        let mut guest = restore(&other, false).start();
        verified(&mut guest);
        power_off(guest);
    });
}

#[test]
fn a_bit_that_is_another_is_found() {
    Lab::new().run(|| flipped(Flips { one_of: 41, others: 12, seed: 7 }));
}

#[test]
#[ignore = "long"]
fn a_host_without_mte_refuses_a_guest_that_has_it() {
    Lab::new().append("arm64.nomte").run(|| {
        let scratch = Scratch::new();
        let plan = Plan::workload("snapshot,4")
            .with("--memory", "128M")
            .with("--mte", "off")
            .with("--balloon", "reporting=off");
        let folder = saved(&scratch, plan);
        let mut forged = Forged::of(&folder);
        forged.header(12, &1u32.to_le_bytes());
        forged.state.manifest.mte = true;
        forged.state.manifest.config["mte"] = json!({ "mode": "require" });
        let other = scratch.join("other");
        forged.write(&other);

        for lazy in [false, true] {
            is_refused(&restore(&other, lazy).run(), "MTE", 69, "MTE");
            // Without tags it is at home here.
            let mut guest = restore(&folder, lazy).start();
            verified(&mut guest);
            power_off(guest);
        }
    });
}

#[test]
fn a_host_with_too_little_memory_or_tag_storage_refuses() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = saved(&scratch, small());
        let broker = Broker::start(&["--supply", "ledger", "--capacity", "2M"]);
        for lazy in [false, true] {
            let plan = restore(&folder, lazy).with("--broker", broker.socket());
            let plan = plan.with("--tag-storage", "strict");
            is_refused(&plan.run(), "tag storage", 69, "tag storage");
            broker.wait("no lease", |report| report.pool.leases.is_empty());
        }
        let script = format!(
            "ulimit -v 120000; exec {} run --restore {} --serial none",
            program("tessera").display(),
            text(&folder)
        );
        let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        assert!(said.contains("memory") && !said.contains("panicked"), "{said}");
        let (status, messages) = broker.end();
        assert_eq!((status, messages.as_str()), (Some(143), ""));
    });
}

#[test]
#[ignore = "long"]
fn a_disk_that_is_full_at_any_tenth_of_a_save_leaves_nothing_and_the_vm_continues() {
    Lab::new().emulated().run(|| {
        let scratch = Scratch::new();
        let mut guest = small().start();
        guest.report("ready");
        let whole = save(&guest, &scratch.join("whole"), &[])["bytes"].as_u64().unwrap();
        let small = SmallFileSystem::mount(scratch.join("small"), 64 << 10);
        let names = || fs::read_dir(small.path()).unwrap().count();
        for tenth in 0..10 {
            small.resize((whole * tenth / 10).max(16 << 10));
            let mut client = guest.client();
            if tenth % 2 == 0 {
                client.pause().unwrap();
                let files = json!({
                    "snapshot_path": small.path().join("state"), "mem_file_path": small.path().join("memory"),
                });
                match client.send("PUT", "/snapshot/create", &files) {
                    Err(Error::Refused { status: 500, message }) => {
                        assert!(message.contains("no room"), "{message}");
                    }
                    other => panic!("{tenth}: {other:?}"),
                }
                client.resume().unwrap();
            } else {
                let folder = small.path().join("one");
                let output = guest.tesseractl(&["snapshot", text(&folder)]).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success() && said.contains("no room"), "{output:?}");
            }
            assert_eq!(names(), 0, "{tenth}");
            beat(&mut guest);
        }
        verified(&mut guest);
        small.resize(whole * 2);
        save(&guest, &small.path().join("one"), &["--keep-paused"]);
        assert_eq!(names(), 1);
        guest.stop();
        let mut guest = restore(&small.path().join("one"), false).start();
        verified(&mut guest);
        power_off(guest);
    });
}
