#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use arch::units::Bytes;
use clap::Parser;
use proptest::option;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    args: RunArgs,
}

fn flags(words: &[&str]) -> RunArgs {
    Program::try_parse_from([&["tessera"], words].concat()).unwrap().args
}

fn parse(text: &str) -> Result<Config, serde_json::Error> {
    serde_json::from_str(text)
}

/// The parser's complaint about a text that is no configuration.
fn complaint(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn file(text: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

/// A value for every field that a file and a flag share, or none.
#[derive(Clone, Debug)]
struct Fields {
    kernel: Option<String>,
    initrd: Option<String>,
    cmdline: Option<String>,
    memory_mib: Option<u64>,
    cpus: Option<u32>,
    mte: Option<MteMode>,
    serial: Option<String>,
}

prop_compose! {
    fn fields(of: &'static str)(
        kernel in option::of(Just(format!("{of}-kernel"))),
        initrd in option::of(Just(format!("{of}-initrd"))),
        cmdline in option::of(Just(format!("{of}=1"))),
        memory_mib in option::of(1u64..100_000),
        cpus in option::of(0u32..600),
        mte in option::of(prop_oneof![
            Just(MteMode::Require), Just(MteMode::Auto), Just(MteMode::Off)
        ]),
        serial in option::of(Just(format!("file:{of}"))),
    ) -> Fields {
        Fields { kernel, initrd, cmdline, memory_mib, cpus, mte, serial }
    }
}

impl Fields {
    /// As a configuration file, whose absent fields are absent or null.
    fn to_json(&self, nulls: bool) -> String {
        let text = serde_json::json!({
            "boot-source": {
                "kernel_image_path": self.kernel,
                "initrd_path": self.initrd,
                "boot_args": self.cmdline,
            },
            "machine-config": { "vcpu_count": self.cpus, "mem_size_mib": self.memory_mib },
            "mte": self.mte.map(|mode| serde_json::json!({ "mode": mode })),
            "serial": { "target": self.serial },
        });
        if nulls { text.to_string() } else { without_nulls(text).to_string() }
    }

    fn to_flags(&self) -> RunArgs {
        RunArgs {
            kernel: self.kernel.clone().map(Into::into),
            initrd: self.initrd.clone().map(Into::into),
            cmdline: self.cmdline.clone(),
            memory: self.memory_mib.map(Bytes::mib),
            cpus: self.cpus,
            mte: self.mte,
            serial: self.serial.clone(),
            ..RunArgs::default()
        }
    }
}

fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        other => other,
    }
}

proptest! {
    #[test]
    fn a_flag_replaces_the_files_value_and_nothing_else(
        in_file in fields("file"), in_flags in fields("flag"), nulls: bool,
    ) {
        let written = file(in_file.to_json(nulls));
        let args = RunArgs { config: Some(written.path().into()), ..in_flags.to_flags() };

        let merged = args.merge().unwrap();

        let boot = merged.boot_source.unwrap_or_default();
        let machine = merged.machine_config.unwrap_or_default();
        let serial = merged.serial.unwrap_or_default();
        let memory = machine.mem_size.or(machine.mem_size_mib.map(Bytes::mib));
        prop_assert_eq!(boot.kernel_image_path, in_flags.kernel.or(in_file.kernel).map(Into::into));
        prop_assert_eq!(boot.initrd_path, in_flags.initrd.or(in_file.initrd).map(Into::into));
        prop_assert_eq!(boot.boot_args, in_flags.cmdline.or(in_file.cmdline));
        prop_assert_eq!(machine.vcpu_count, in_flags.cpus.or(in_file.cpus));
        prop_assert_eq!(memory, in_flags.memory_mib.or(in_file.memory_mib).map(Bytes::mib));
        prop_assert_eq!(merged.mte.map(|section| section.mode), in_flags.mte.or(in_file.mte));
        prop_assert_eq!(serial.target, in_flags.serial.or(in_file.serial));
    }

    #[test]
    fn no_text_panics_the_parser(text in ".{0,200}") {
        let _ = parse(&text);
    }
}

#[test]
fn a_serial_flag_replaces_either_form_of_the_files_section() {
    let written = file(r#"{"serial": {"serial_out_path": "/a"}}"#);
    let args = RunArgs { config: Some(written.path().into()), ..flags(&["--serial", "none"]) };
    let serial = args.merge().unwrap().serial.unwrap();
    assert_eq!(serial, SerialSection::from_flag("none"));
}

#[test]
fn without_file_and_flags_nothing_is_set() {
    assert_eq!(RunArgs::default().merge().unwrap(), Config::default());
}

#[test]
fn firecrackers_example_is_understood() {
    // resources/ of Firecracker's tests, with the devices that this VMM lacks left empty.
    let text = r#"{
        "boot-source": {
            "kernel_image_path": "vmlinux.bin",
            "boot_args": "console=ttyS0 reboot=k panic=1",
            "initrd_path": null
        },
        "drives": [],
        "machine-config": {
            "vcpu_count": 2,
            "mem_size_mib": 1024,
            "smt": false,
            "track_dirty_pages": false,
            "huge_pages": "Transparent"
        },
        "cpu-config": null,
        "balloon": null,
        "network-interfaces": [],
        "vsock": null,
        "logger": null,
        "metrics": null,
        "mmds-config": null,
        "entropy": null,
        "pmem": [],
        "memory-hotplug": null
    }"#;
    let config = parse(text).unwrap();
    let (boot, machine) = (config.boot_source.unwrap(), config.machine_config.unwrap());
    assert_eq!(boot.kernel_image_path.as_deref(), Some(Path::new("vmlinux.bin")));
    assert_eq!(boot.boot_args.as_deref(), Some("console=ttyS0 reboot=k panic=1"));
    assert_eq!(boot.initrd_path, None);
    assert_eq!((machine.vcpu_count, machine.mem_size_mib), (Some(2), Some(1024)));
}

#[test]
fn empty_and_null_sections_are_as_good_as_none() {
    for text in
        ["{}", r#"{"boot-source": null, "machine-config": null, "serial": null, "mte": null}"#]
    {
        assert_eq!(parse(text).unwrap(), Config::default(), "{text}");
    }
}

#[test]
fn a_device_that_this_vmm_lacks_is_refused_and_not_ignored() {
    for text in [
        r#"{"drives": [{"drive_id": "rootfs", "socket": "/vhost-user.sock"}]}"#,
        r#"{"memory-hotplug": {}}"#,
    ] {
        assert!(complaint(text).contains("no such device or service"), "{text}");
    }
}

#[test]
fn a_cpu_template_is_refused_by_name() {
    let machine = |template| format!(r#"{{"machine-config": {{"cpu_template": {template}}}}}"#);
    assert!(complaint(&machine(r#""T2""#)).contains("no CPU templates"));
    for none in ["null", r#""None""#] {
        assert!(parse(&machine(none)).is_ok());
    }
}

#[test]
fn unknown_fields_are_refused_by_name() {
    for (text, name) in [
        (r#"{"boot_source": {}}"#, "boot_source"),
        (r#"{"boot-source": {"kernel": "a"}}"#, "kernel"),
        (r#"{"machine-config": {"mem_size": 64}}"#, "mem_size"),
        (r#"{"serial": {"path": "a"}}"#, "path"),
        (r#"{"mte": {"mode": "off", "tags": 1}}"#, "tags"),
        (r#"{"balloon": {"reporting": true}}"#, "reporting"),
        (r#"{"balloon": {"amount": 1}}"#, "amount"),
        (r#"{"entropy": {"path": "/dev/random"}}"#, "path"),
        (r#"{"vsock": {"uds_path": "v", "cid": 3}}"#, "cid"),
    ] {
        assert!(complaint(text).contains(&format!("unknown field `{name}`")), "{text}");
    }
}

#[test]
fn a_field_given_twice_is_refused() {
    let text = r#"{"machine-config": {"vcpu_count": 1, "vcpu_count": 2}}"#;
    assert!(complaint(text).contains("duplicate field"));
}

#[test]
fn wrong_types_and_values_out_of_range_are_refused() {
    for text in [
        r#"{"boot-source": []}"#,
        r#"{"boot-source": ["Image", null, "quiet"]}"#,
        r#"{"machine-config": [2, 1024]}"#,
        r#"{"mte": ["off"]}"#,
        r#"{"boot-source": "vmlinux"}"#,
        r#"{"boot-source": {"kernel_image_path": 1}}"#,
        r#"{"boot-source": {"boot_args": ["quiet"]}}"#,
        r#"{"machine-config": {"vcpu_count": "2"}}"#,
        r#"{"machine-config": {"vcpu_count": -1}}"#,
        r#"{"machine-config": {"vcpu_count": 1.5}}"#,
        r#"{"machine-config": {"vcpu_count": 4294967296}}"#,
        r#"{"machine-config": {"mem_size_mib": "512M"}}"#,
        r#"{"machine-config": {"mem_size_mib": 18446744073709551616}}"#,
        r#"{"machine-config": {"smt": null}}"#,
        r#"{"mte": {}}"#,
        r#"{"mte": {"mode": "on"}}"#,
        r#"{"mte": "require"}"#,
        r#"{"balloon": []}"#,
        r#"{"balloon": false}"#,
        r#"{"balloon": {"amount_mib": -1}}"#,
        r#"{"balloon": {"deflate_on_oom": "on"}}"#,
        r#"{"balloon": {"stats_polling_interval_s": 65536}}"#,
        r#"{"entropy": true}"#,
        r#"{"machine-config": {"memory_backing": "file"}}"#,
        r#"{"machine-config": {"lock_memory": "yes"}}"#,
        r#"{"machine-config": {"clock": "pause"}}"#,
        r#"{"serial": "stdio"}"#,
        r#"{"serial": {"target": 1}}"#,
        r#"{} {}"#,
        r#"{"boot-source": {"#,
        "",
    ] {
        complaint(text);
    }
}

#[test]
fn features_that_are_not_there_cannot_be_turned_on() {
    let smt = |value| format!(r#"{{"machine-config": {{"smt": {value}}}}}"#);
    assert!(complaint(&smt(true)).contains("only false is supported"));
    assert!(parse(&smt(false)).is_ok());
    let hinting = |value| format!(r#"{{"balloon": {{"free_page_hinting": {value}}}}}"#);
    assert!(complaint(&hinting(true)).contains("only false is supported"));
    assert!(parse(&hinting(false)).is_ok());
}

#[test]
fn another_kind_of_huge_pages_is_refused_and_the_right_ones_named() {
    let text = |kind| format!(r#"{{"machine-config": {{"huge_pages": "{kind}"}}}}"#);
    assert!(complaint(&text("1G")).contains("`Transparent`"));
    for (name, kind) in [
        ("None", HugePages::None),
        ("Transparent", HugePages::Transparent),
        ("2M", HugePages::TwoMib),
    ] {
        let machine = parse(&text(name)).unwrap().machine_config.unwrap();
        assert_eq!(machine.huge_pages, Some(kind));
        assert_eq!(kind.to_string(), name);
    }
}

#[test]
fn a_balloon_that_is_null_is_not_one_that_is_not_mentioned() {
    let balloon = |text| parse(text).unwrap().balloon;
    assert_eq!(balloon("{}"), BalloonSetting::Default);
    assert_eq!(balloon(r#"{"balloon": null}"#), BalloonSetting::None);
    assert_eq!(balloon(r#"{"balloon": {}}"#), BalloonSetting::Section(BalloonSection::default()));
    for text in ["{}", r#"{"balloon":null}"#] {
        assert_eq!(serde_json::to_string(&parse(text).unwrap()).unwrap(), text);
    }
}

#[test]
fn firecrackers_balloon_and_entropy_are_understood() {
    let text = r#"{
        "balloon": {
            "amount_mib": 64,
            "deflate_on_oom": true,
            "stats_polling_interval_s": 1,
            "free_page_hinting": false,
            "free_page_reporting": false
        },
        "entropy": { "rate_limiter": null }
    }"#;
    let config = parse(text).unwrap();
    let expected = BalloonSection {
        amount_mib: Some(64),
        deflate_on_oom: Some(true),
        stats_polling_interval_s: Some(1),
        free_page_reporting: Some(false),
        ..BalloonSection::default()
    };
    assert_eq!(config.balloon, BalloonSetting::Section(expected));
    assert_eq!(config.entropy, Some(EntropySection::default()));
}

#[test]
fn a_balloon_flag_replaces_the_fields_it_names() {
    let text =
        r#"{"balloon": {"amount_mib": 64, "deflate_on_oom": false, "free_page_reporting": false}}"#;
    let written = file(text);
    let merged = |words: &[&str]| {
        let args = RunArgs { config: Some(written.path().into()), ..flags(words) };
        args.merge().unwrap().balloon
    };
    let section = |words: &[&str]| match merged(words) {
        BalloonSetting::Section(section) => section,
        other => panic!("{words:?} give {other:?}"),
    };

    let untouched = section(&[]);
    let changed = section(&["--balloon", "target=4M,reporting=on"]);
    let none = merged(&["--no-balloon"]);

    assert_eq!(section(&["--balloon"]), untouched);
    assert_eq!(changed.amount_mib, Some(4));
    assert_eq!(changed.free_page_reporting, Some(true));
    assert_eq!(changed.deflate_on_oom, untouched.deflate_on_oom);
    assert_eq!(none, BalloonSetting::None);
}

#[test]
fn a_balloon_flag_brings_back_what_the_file_left_out() {
    let written = file(r#"{"balloon": null}"#);
    let args = RunArgs { config: Some(written.path().into()), ..flags(&["--balloon"]) };

    let balloon = args.merge().unwrap().balloon;

    assert_eq!(balloon, BalloonSetting::Section(BalloonSection::default()));
}

#[test]
fn balloon_and_no_balloon_exclude_each_other() {
    let words = ["tessera", "--balloon", "stats=1", "--no-balloon"];
    let error = Program::try_parse_from(words).unwrap_err().to_string();
    assert!(error.contains("--balloon") && error.contains("--no-balloon"), "{error}");
}

#[test]
fn memory_flags_replace_the_files_values_and_leave_the_others() {
    let written = file(
        r#"{"machine-config": {"memory_backing": "anonymous", "lock_memory": false, "vcpu_count": 3}}"#,
    );
    let words = "--memory-backing memfd --lock-memory --track-dirty-pages --clock advance --rng";
    let words: Vec<_> = words.split(' ').collect();
    let args = RunArgs { config: Some(written.path().into()), ..flags(&words) };

    let merged = args.merge().unwrap();

    let machine = merged.machine_config.unwrap();
    assert_eq!(machine.memory_backing, Some(MemoryBacking::Memfd));
    assert_eq!((machine.lock_memory, machine.vcpu_count), (Some(true), Some(3)));
    assert_eq!(machine.track_dirty_pages, Some(true));
    assert_eq!(machine.clock, Some(ClockMode::Advance));
    assert!(merged.entropy.is_some());
}

fn status_of(path: &Path) -> ExitStatus {
    Config::read(path).expect_err("it is no configuration").status()
}

#[test]
fn a_whole_file_is_one_object() {
    for text in ["[]", "[{}]", "\"Image\"", "null", "1", r#"[{"vcpu_count": 1}]"#] {
        assert!(matches!(Config::read(file(text).path()), Err(Error::Parse { .. })), "{text}");
    }
}

#[test]
fn files_that_cannot_be_read_are_told_from_files_that_make_no_sense() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(status_of(&directory.path().join("missing")), ExitStatus::NoInput);
    assert_eq!(status_of(directory.path()), ExitStatus::NoInput);
    assert_eq!(status_of(file("").path()), ExitStatus::Config);
    assert_eq!(status_of(file("{").path()), ExitStatus::Config);
    let source = std::io::Error::from(ErrorKind::PermissionDenied);
    let forbidden = Error::Read { path: "a".into(), source };
    assert_eq!(forbidden.status(), ExitStatus::NoPermission);
}

#[test]
fn a_file_that_is_not_text_makes_no_sense() {
    let binary = file([0xff, 0xfe, 0x00, 0x41]);
    assert!(matches!(Config::read(binary.path()), Err(Error::Parse { .. })));
}

#[test]
fn a_file_without_end_is_too_large() {
    let endless = Config::read(Path::new("/dev/zero"));
    assert!(matches!(endless, Err(Error::TooLarge { limit: 1_048_576, .. })), "{endless:?}");
}

#[test]
fn the_largest_file_is_read_and_one_byte_more_is_too_large() {
    let of_length = |length: usize| file(format!("{{}}{}", " ".repeat(length - 2)));
    assert_eq!(Config::read(of_length(1 << 20).path()).unwrap(), Config::default());
    let over = Config::read(of_length((1 << 20) + 1).path());
    assert!(matches!(over, Err(Error::TooLarge { .. })), "{over:?}");
}

#[test]
fn a_character_that_straddles_the_limit_does_not_hide_that_the_file_is_too_large() {
    let text = format!("{}{}", " ".repeat((1 << 20) - 1), "\u{20ac}");
    let over = Config::read(file(text).path());
    assert!(matches!(over, Err(Error::TooLarge { .. })), "{over:?}");
}

#[test]
fn a_complaint_names_the_file_and_its_source_the_place() {
    let written = file("{\n  \"boot-source\": 1\n}");
    let error = Config::read(written.path()).unwrap_err();
    assert!(error.to_string().contains(written.path().to_str().unwrap()), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("line 2"), "{source}");
}

#[test]
fn flags_are_read_in_the_units_that_they_are_documented_in() {
    let args = flags(&["--memory", "2G", "--cpus", "4", "--mte", "off", "--cmdline", "-x quiet"]);
    assert_eq!(args.memory, Some(Bytes::gib(2)));
    assert_eq!((args.cpus, args.mte), (Some(4), Some(MteMode::Off)));
    assert_eq!(args.cmdline.as_deref(), Some("-x quiet"));
}

#[test]
fn mte_alone_means_require() {
    assert_eq!(flags(&["--mte"]).mte, Some(MteMode::Require));
    assert_eq!(flags(&["--mte", "--cpus", "1"]).mte, Some(MteMode::Require));
}

#[test]
fn flags_that_make_no_sense_are_usage_errors() {
    for words in [
        ["--memory", "much"],
        ["--memory", "1.5G"],
        ["--cpus", "-1"],
        ["--cpus", "4294967296"],
        ["--mte", "on"],
        ["--no-such", "flag"],
        ["--memory-backing", "file"],
        ["--balloon", "reporting=maybe"],
        ["--balloon", "stats=65536"],
    ] {
        let parsed = Program::try_parse_from([&["tessera"], &words[..]].concat());
        assert!(parsed.is_err(), "{words:?}");
    }
}

#[test]
fn a_bare_command_line_is_a_flag_or_a_field() {
    let flags = RunArgs { bare_cmdline: true, ..RunArgs::default() };
    let boot = flags.merge().unwrap().boot_source.unwrap();
    assert_eq!(boot.bare_boot_args, Some(true));

    let Object(config): Object<Config> =
        serde_json::from_str(r#"{"boot-source": {"bare_boot_args": true}}"#).unwrap();
    assert_eq!(config.boot_source.unwrap().bare_boot_args, Some(true));
}
