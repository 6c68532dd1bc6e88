//! Configurations: a JSON file, and the options of the command line.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use clap::{CommandFactory, FromArgMatches};
use vmm::cli::{Arguments, Command};
use vmm::config::{CommandLineOnly, Config};
use vmm::spec::Spec;

use crate::scratch::with_file;

/// A configuration file: what is valid describes itself, and that again.
pub(super) fn file(data: &[u8]) {
    let Ok(config) = with_file(data, Config::read) else { return };
    check(config);
}

fn check(config: Config) {
    let Ok(spec) = Spec::new(config, CommandLineOnly::default()) else { return };
    let shown = serde_json::to_value(spec.to_config()).unwrap();
    let again: Config = serde_json::from_value(shown.clone()).unwrap();
    let again = Spec::new(again, CommandLineOnly::default()).unwrap();
    assert_eq!(serde_json::to_value(again.to_config()).unwrap(), shown);
}

/// Options, one a line.
pub(super) fn arguments(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words = ["tessera"].into_iter().chain(text.lines());
    let Some(arguments) = parse(words) else { return };
    match arguments.command {
        Command::Run(args) => {
            let args = args.0;
            // Another target reads files.
            if args.config.is_none()
                && let Ok(config) = args.merge()
            {
                let _ = args.restore_request();
                let _ = Spec::new(config, args.command_line_only());
            }
        }
        Command::Firecracker(args) => {
            let _ = (args.0.to_run_args(51_200), args.0.without_effect());
        }
        _ => {}
    }
}

/// What these words are to the program. Its options are described once: that takes longer than to read them.
fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Arguments> {
    thread_local! {
        static COMMAND: RefCell<clap::Command> = RefCell::new(Arguments::command());
    }
    let matches = COMMAND.with_borrow_mut(|command| command.try_get_matches_from_mut(words));
    Arguments::from_arg_matches(&matches.ok()?).ok()
}

pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"boot-source": {"kernel_image_path": "/boot/Image", "boot_args": "quiet"}}"#,
        r#"{"boot-source": {"kernel_image_path": "k", "initrd_path": "i", "bare_boot_args": true},
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 512, "huge_pages": "2M", "memory_backing": "shared",
                "lock_memory": false, "track_dirty_pages": true, "pmu": true, "clock": "utc"}}"#,
        r#"{"boot-source": {"kernel_image_path": "k"}, "serial": {"target": "file:/tmp/console"},
            "mte": {"mode": "require"}, "tag-storage": {"mode": "demand", "on_exhausted": "pause"}}"#,
        r#"{"boot-source": {"kernel_image_path": "k"}, "balloon": {"amount_mib": 10, "deflate_on_oom": true,
            "stats_polling_interval_s": 1, "free_page_reporting": true}}"#,
        r#"{"boot-source": {"kernel_image_path": "k"}, "drives": [{"drive_id": "root",
            "path_on_host": "/images/root.ext4", "is_root_device": true, "is_read_only": false,
            "rate_limiter": {"ops": {"size": 1000, "refill_time": 100}}}]}"#,
        r#"{"boot-source": {"kernel_image_path": "k"}, "network-interfaces": [{"iface_id": "eth0",
            "backend": "user", "forward": ["2222:22"], "guest_mac": "02:00:00:00:00:01", "mtu": 1400}],
            "vsock": {"guest_cid": 3, "uds_path": "/tmp/v"}, "entropy": {}}"#,
        r#"{"boot-source": {"kernel_image_path": "k"}, "logger": {"log_path": "/tmp/log", "level": "Info"},
            "metrics": {"metrics_path": "/tmp/m", "emit_id": true}, "balloon": null}"#,
        "[]",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

pub(super) fn argument_seeds() -> Vec<Vec<u8>> {
    [
        "run\n--kernel\nImage\n--memory\n1G\n--cpus\n2\n--mte\nrequire",
        "run\n--kernel=Image\n--initrd=i\n--cmdline=quiet\n--disk\nroot.img,ro,direct,id=root\n--rng\n--pmu",
        "run\n--kernel=I\n--net\nuser,id=eth0,forward=2222:22,mac=02:00:00:00:00:01,mtu=1400\n--net\ntap=tap0\n--net\nfd=7",
        "run\n--kernel=I\n--net\nstream=/tmp/s\n--vsock\n/tmp/v,cid=3\n--serial\nsocket:/tmp/c",
        "run\n--kernel=I\n--balloon\ntarget=64M,reporting=off\n--tag-storage\ndemand\n--tag-max\n64M\n--on-exhausted\npause",
        "run\n--restore\nfolder\n--lazy\n--api-sock\n/tmp/a\n--id\nvm",
        "firecracker\n--api-sock\n/tmp/a\n--id\nx\n--no-seccomp\n--level\nInfo",
        "broker\n--socket\n/tmp/b\n--capacity\n64M",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}
