#![allow(clippy::unwrap_used)]

use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::config::{CommandLineOnly, Object};
use crate::spec::Spec;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    args: RunArgs,
}

fn request(words: &str) -> Result<RestoreRequest, RestoreChangesError> {
    let words = ["tessera", "--restore", "/snap"].into_iter().chain(words.split_whitespace());
    let args = Program::try_parse_from(words).unwrap().args;
    args.restore_request().map(Option::unwrap)
}

fn config(value: &Value) -> Config {
    let Object(config) = serde_json::from_value(value.clone()).unwrap();
    config
}

/// A VM that has something of each kind, as its snapshot has it.
fn saved() -> Config {
    let given = config(&json!({
        "boot-source": { "kernel_image_path": "/boot/Image", "boot_args": "quiet" },
        "machine-config": { "vcpu_count": 4, "mem_size_mib": 256 },
        "serial": { "target": "socket:/run/old/serial" },
        "mte": { "mode": "require" },
        "tag-storage": { "mode": "demand", "broker": "/run/broker", "on_exhausted": "pause" },
        "drives": [
            { "drive_id": "root", "path_on_host": "/images/a", "is_root_device": true },
            { "drive_id": "disk1", "path_on_host": "/images/b", "is_read_only": true },
        ],
        "network-interfaces": [
            { "iface_id": "eth0", "host_dev_name": "tap0", "mtu": 1400, "guest_mac": "02:00:00:00:00:0a" },
            { "iface_id": "lan", "backend": "user", "forward": ["2222:22"], "guest_mac": "02:00:00:00:00:0c" },
        ],
        "vsock": { "guest_cid": 7, "uds_path": "/run/old/vsock" },
        "logger": { "log_path": "/run/old/log" },
        "metrics": { "metrics_path": "/run/old/metrics" },
    }));
    Spec::new(given, CommandLineOnly::default()).unwrap().to_config()
}

/// What a VM is that is restored with these flags, after all checks.
fn restored(words: &str) -> Config {
    let config = Config::restored(saved(), request(words).unwrap().changes).unwrap();
    Spec::new(config, CommandLineOnly::default()).unwrap().to_config()
}

fn refused(words: &str) -> RestoreChangesError {
    Config::restored(saved(), request(words).unwrap().changes).unwrap_err()
}

#[test]
fn without_changes_all_is_as_saved_but_what_the_process_reads_and_writes() {
    let mut expected = saved();
    expected.serial = Some(SerialSection::from_flag("stdio"));
    (expected.logger, expected.metrics) = (None, None);

    assert_eq!(restored(""), expected);
}

#[test]
fn a_folder_has_the_files_and_the_guest_runs_at_once_unless_it_is_to_be_paused() {
    let plain = request("").unwrap();
    let other = request("--lazy --paused").unwrap();

    assert_eq!(plain.files.state, Path::new("/snap/state"));
    assert_eq!(plain.files.memory, Path::new("/snap/memory"));
    assert_eq!((plain.memory, plain.resume), (RestoreMemory::Eager, true));
    assert_eq!((other.memory, other.resume), (RestoreMemory::Lazy { record: false }, false));
    let recorded = request("--lazy --record-working-set").unwrap();
    assert_eq!(recorded.memory, RestoreMemory::Lazy { record: true });
    assert_eq!(request("--shared").unwrap().memory, RestoreMemory::Shared);
    assert_eq!(request("--shared --lazy"), Err(RestoreChangesError::LazyShared));
    for words in ["--record-working-set", "--shared --record-working-set"] {
        assert_eq!(request(words), Err(RestoreChangesError::RecordEager));
    }
    assert_eq!(RunArgs::default().restore_request(), Ok(None));
}

#[test]
fn what_is_the_hosts_can_differ() {
    let config = restored(
        "--serial file:/o --log /l --metrics /m --vsock /v --clock advance --id b --api-sock /api",
    );

    assert_eq!(config.serial.unwrap().target.as_deref(), Some("file:/o"));
    assert_eq!(config.logger.unwrap().log_path.as_deref(), Some(Path::new("/l")));
    assert_eq!(config.metrics.unwrap().metrics_path, Path::new("/m"));
    let vsock = config.vsock.unwrap();
    assert_eq!((vsock.uds_path.as_path(), vsock.guest_cid), (Path::new("/v"), 7));
    assert_eq!(config.machine_config.unwrap().clock, Some(ClockMode::Advance));
}

#[test]
fn a_disk_and_an_interface_keep_what_the_guest_knows_of_them() {
    let before = saved();

    let config = restored(
        "--disk /new,id=root,direct --disk /other --net tap=tap9,id=lan --net user,id=eth0,mtu=1400,mac=02:00:00:00:00:0A",
    );

    let [root, second] = &config.drives[..] else { panic!("{:?}", config.drives) };
    assert_eq!(root.path_on_host.as_deref(), Some(Path::new("/new")));
    assert_eq!((root.is_root_device, root.direct), (true, Some(true)));
    // The second of the flags is called disk1, as at a start.
    assert_eq!(second.path_on_host.as_deref(), Some(Path::new("/other")));
    assert!(second.is_read_only);
    for (interface, before) in config.network_interfaces.iter().zip(&before.network_interfaces) {
        assert_eq!(interface.guest_mac, before.guest_mac);
        assert_eq!(interface.mtu, before.mtu);
    }
    assert_eq!(config.network_interfaces[1].host_dev_name.as_deref(), Some("tap9"));
    assert!(config.network_interfaces[1].forward.is_empty());
    assert_eq!(config.network_interfaces[0].host_dev_name, None);
}

#[test]
fn every_flag_for_the_machine_is_refused_by_its_name() {
    for words in [
        "--kernel Image",
        "--initrd initrd",
        "--cmdline quiet",
        "--bare-cmdline",
        "--boot-image",
        "--memory 256M",
        "--memory-backing memfd",
        "--lock-memory",
        "--cpus 4",
        "--pmu",
        "--mte",
        "--balloon target=4M",
        "--no-balloon",
        "--rng",
        "--config vm.json",
    ] {
        let flag = words.split(' ').next().unwrap();
        let error = request(words).unwrap_err();
        assert!(error.to_string().starts_with(flag), "{words}: {error}");
    }
}

#[test]
fn what_the_snapshot_does_not_have_and_what_its_guest_knows_cannot_change() {
    for (words, said) in [
        ("--disk /x,id=data", "no disk 'data'; it has root, disk1"),
        ("--disk /x,id=root,ro", "root to write to"),
        ("--net user", "as 1400"),
        ("--net user,id=wan", "no network interface 'wan'; it has eth0, lan"),
        ("--net user,id=lan,mtu=9000", "as none: leave out 9000"),
        ("--net user,id=eth0,mac=02:00:00:00:00:0b", "02:00:00:00:00:0a"),
        ("--vsock /v,cid=8", "as 7: leave out 8"),
    ] {
        // Without an mtu it is the name that counts.
        let words = if words == "--net user" { "--net user,mtu=1500" } else { words };
        let error = refused(words).to_string();
        assert!(error.contains(said), "{words}: {error}");
    }
    let mut without = saved();
    (without.vsock, without.drives) = (None, Vec::new());
    let with = |words: &str| Config::restored(without.clone(), request(words).unwrap().changes);
    assert_eq!(with("--vsock /v").unwrap_err(), RestoreChangesError::NoVsock);
    assert!(with("--disk /x").unwrap_err().to_string().contains("it has none"));
}

#[test]
fn a_tap_that_was_passed_is_named_anew() {
    let mut passed = saved();
    let interface = &mut passed.network_interfaces[0];
    (interface.host_dev_name, interface.fd) = (None, Some(5));

    let kept = Config::restored(passed.clone(), RestoreChanges::default());
    let changes = request("--net fd=9,id=eth0").unwrap().changes;
    let changed = Config::restored(passed, changes).unwrap();

    assert_eq!(kept.unwrap_err(), RestoreChangesError::Descriptor("eth0".into()));
    assert_eq!(changed.network_interfaces[0].fd, Some(9));
}

#[test]
fn tag_storage_is_reserved_as_saved_or_as_the_flags_say() {
    use crate::config::OnExhausted;

    let tags = |words| restored(words).tag_storage.unwrap();
    let (demand, strict) = (Some(TagStorageMode::Demand), Some(TagStorageMode::Strict));
    let broker = |path| Some(PathBuf::from(path));

    let same = tags("--tag-max 1M");
    assert_eq!((same.mode, same.on_exhausted), (demand, Some(OnExhausted::Pause)));
    assert_eq!((same.broker, same.max_kib), (broker("/run/broker"), Some(1024)));
    let other = tags("--broker /b --tag-min 64K");
    assert_eq!((other.mode, other.broker, other.min_kib), (demand, broker("/b"), Some(64)));
    let other = tags("--tag-storage strict");
    assert_eq!(
        (other.mode, other.broker, other.on_exhausted),
        (strict, broker("/run/broker"), None)
    );
    let off = tags("--tag-storage off");
    assert_eq!((off.mode, off.broker), (Some(TagStorageMode::Off), None));

    let mut none = saved();
    none.tag_storage = config(&json!({ "tag-storage": { "mode": "off" } })).tag_storage;
    let changes = request("--broker /b").unwrap().changes;
    let spec = Spec::new(Config::restored(none, changes).unwrap(), CommandLineOnly::default());
    assert!(spec.unwrap().tag_storage.is_some());
}

#[test]
fn a_client_may_have_configured_what_is_the_hosts_and_nothing_else() {
    let host = json!({
        "serial": { "target": "none" }, "logger": { "log_path": "/l" }, "metrics": { "metrics_path": "/m" },
        "tag-storage": { "mode": "strict" }, "machine-config": { "clock": "advance" },
    });
    let changes = config(&host).restore_changes().unwrap();
    assert_eq!(changes.serial, Some(SerialSection::from_flag("none")));
    assert_eq!(changes.clock, Some(ClockMode::Advance));
    assert_eq!(changes.tag_storage.mode, Some(TagStorageMode::Strict));

    for machine in [
        json!({ "machine-config": { "vcpu_count": 1 } }),
        json!({ "boot-source": { "kernel_image_path": "Image" } }),
        json!({ "balloon": null }),
        json!({ "drives": [{ "drive_id": "a", "path_on_host": "/a" }] }),
        json!({ "vsock": { "uds_path": "/v" } }),
        json!({ "mte": { "mode": "auto" } }),
        json!({ "entropy": {} }),
    ] {
        let refused = config(&machine).restore_changes();
        assert_eq!(refused.unwrap_err(), RestoreChangesError::Configured, "{machine}");
    }
}

#[test]
fn changes_of_memory_are_tracked_where_that_is_asked_for_again() {
    let mut tracked = saved();
    tracked.machine_config.get_or_insert_default().track_dirty_pages = Some(true);
    for (words, tracks) in [("--lazy", false), ("--track-dirty-pages", true)] {
        let changes = request(words).unwrap().changes;
        let restored = Config::restored(tracked.clone(), changes).unwrap();
        assert_eq!(restored.machine_config.unwrap().track_dirty_pages, Some(tracks), "{words}");
    }
}
