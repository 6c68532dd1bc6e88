#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::config::RunArgs;

/// The smallest configuration there is.
fn minimal() -> RunArgs {
    RunArgs { kernel: Some("Image".into()), ..RunArgs::default() }
}

fn check(args: &RunArgs) -> Result<Spec, Error> {
    Spec::new(args.merge().unwrap(), args.command_line_only())
}

fn with_memory(memory: Bytes) -> Result<Spec, Error> {
    check(&RunArgs { memory: Some(memory), ..minimal() })
}

fn with_mib(mib: u64) -> Result<Spec, Error> {
    let mut config = minimal().merge().unwrap();
    config.machine_config =
        Some(MachineConfig { mem_size_mib: Some(mib), ..MachineConfig::default() });
    Spec::new(config, CommandLineOnly::default())
}

fn with_command_line(text: &str) -> Result<String, Error> {
    check(&RunArgs { cmdline: Some(text.to_owned()), ..minimal() }).map(|spec| spec.command_line)
}

fn with_serial(target: &str) -> Result<SerialTarget, Error> {
    check(&RunArgs { serial: Some(target.to_owned()), ..minimal() }).map(|spec| spec.serial)
}

#[test]
fn what_is_not_asked_for_has_the_documented_default() {
    let spec = check(&minimal()).unwrap();
    assert_eq!(spec.memory, Bytes::mib(512));
    assert_eq!((spec.cpus, spec.mte), (1, MteMode::Auto));
    assert_eq!(spec.serial, SerialTarget::Stdio);
    assert_eq!(spec.initrd, None);
    assert_eq!(spec.command_line, "panic=-1 reboot=panic_warm");
    assert_eq!(spec.id, "tessera");
    assert_eq!(spec.balloon, Some(BalloonSpec::default()));
    assert_eq!(spec.huge_pages, HugePages::Transparent);
    assert_eq!(spec.backing, MemoryBacking::Anonymous);
    assert!(!spec.lock_memory && spec.rng.is_none());
}

fn with_pages(
    huge_pages: Option<HugePages>,
    memory_backing: Option<MemoryBacking>,
) -> Result<(HugePages, MemoryBacking), Error> {
    let mut config = minimal().merge().unwrap();
    config.machine_config =
        Some(MachineConfig { huge_pages, memory_backing, ..MachineConfig::default() });
    Spec::new(config, CommandLineOnly::default()).map(|spec| (spec.huge_pages, spec.backing))
}

#[test]
fn huge_pages_and_backing_say_the_same_of_hugetlbfs() {
    let hugetlbfs = (HugePages::TwoMib, MemoryBacking::Hugetlbfs);
    assert_eq!(with_pages(Some(hugetlbfs.0), None), Ok(hugetlbfs));
    assert_eq!(with_pages(None, Some(hugetlbfs.1)), Ok(hugetlbfs));
    assert_eq!(with_pages(Some(hugetlbfs.0), Some(hugetlbfs.1)), Ok(hugetlbfs));
    for huge_pages in [HugePages::None, HugePages::Transparent] {
        for backing in [MemoryBacking::Anonymous, MemoryBacking::Memfd] {
            assert_eq!(with_pages(Some(huge_pages), Some(backing)), Ok((huge_pages, backing)));
        }
    }
}

#[test]
fn huge_pages_and_a_backing_that_exclude_each_other_are_named() {
    for (huge_pages, backing) in [
        (HugePages::TwoMib, MemoryBacking::Anonymous),
        (HugePages::TwoMib, MemoryBacking::Memfd),
        (HugePages::None, MemoryBacking::Hugetlbfs),
        (HugePages::Transparent, MemoryBacking::Hugetlbfs),
    ] {
        let error = with_pages(Some(huge_pages), Some(backing)).unwrap_err();
        assert_eq!(error, Error::BackingConflict { huge_pages, backing });
        let text = error.to_string();
        assert!(text.contains(&huge_pages.to_string()) && text.contains(&backing.to_string()));
    }
}

#[test]
fn locked_memory_does_not_keep_a_balloon_from_being_asked_for() {
    let balloon = Some("reporting=on".parse().unwrap());
    let spec = check(&RunArgs { balloon, lock_memory: true, ..minimal() }).unwrap();

    assert!(spec.lock_memory);
    assert!(spec.balloon.unwrap().reporting, "what is offered is decided later, and logged");
}

#[test]
fn a_balloon_flag_is_held_to_the_guests_memory() {
    let with = |text: &str| {
        let balloon = Some(text.parse().unwrap());
        check(&RunArgs { balloon, memory: Some(Bytes::mib(64)), ..minimal() })
    };
    assert_eq!(with("target=64M").unwrap().balloon.unwrap().target, Bytes::mib(64));
    let error = with("target=65M").unwrap_err();
    assert!(error.to_string().contains("65 MiB is more than the guest's 64 MiB"), "{error}");
}

#[test]
fn a_vm_without_kernel_is_refused() {
    assert_eq!(check(&RunArgs::default()).unwrap_err(), Error::NoKernel);
}

#[test]
fn memory_is_whole_chunks_between_the_least_and_the_most() {
    let most = layout::max_memory(52);
    for memory in [Bytes::mib(64), Bytes::mib(66), Bytes::mib(3584), most] {
        assert_eq!(with_memory(memory).unwrap().memory, memory);
    }
    let refused = |memory| match with_memory(memory).unwrap_err() {
        Error::Memory(error) => error,
        other => panic!("{other:?}"),
    };
    for small in [Bytes::ZERO, Bytes::new(1), Bytes::mib(62)] {
        assert!(matches!(refused(small), layout::Error::MemoryTooSmall { .. }), "{small}");
    }
    for odd in [Bytes::mib(65), Bytes::new(Bytes::mib(512).get() + 1)] {
        assert!(matches!(refused(odd), layout::Error::MemoryNotWholeChunks { .. }), "{odd}");
    }
    for large in [Bytes::new(most.get() + layout::CHUNK.get()), Bytes::MAX] {
        assert!(matches!(refused(large), layout::Error::MemoryTooLarge { .. }), "{large}");
    }
}

#[test]
fn memory_in_mib_obeys_the_same_rules() {
    assert_eq!(with_mib(64).unwrap().memory, Bytes::mib(64));
    assert!(matches!(with_mib(0), Err(Error::Memory(_))));
    assert!(matches!(with_mib(65), Err(Error::Memory(_))));
    assert!(matches!(with_mib((1 << 44) - 2), Err(Error::Memory(_))));
    for beyond in [1 << 44, u64::MAX] {
        assert_eq!(with_mib(beyond).unwrap_err(), Error::MemoryOverflow(beyond));
    }
}

#[test]
fn there_is_at_least_one_vcpu() {
    let with_cpus = |cpus| check(&RunArgs { cpus: Some(cpus), ..minimal() });
    assert_eq!(with_cpus(0).unwrap_err(), Error::NoCpus);
    assert_eq!(with_cpus(1).unwrap().cpus, 1);
    assert_eq!(with_cpus(u32::MAX).unwrap().cpus, u32::MAX, "the host's maximum comes later");
}

#[test]
fn a_users_panic_and_reboot_parameters_stand() {
    for (user, all) in [
        ("quiet", "panic=-1 reboot=panic_warm quiet"),
        ("panic=5", "reboot=panic_warm panic=5"),
        ("reboot=k", "panic=-1 reboot=panic_warm reboot=k"),
        ("reboot=k quiet panic=1", "reboot=panic_warm reboot=k quiet panic=1"),
        ("nopanic=1 oops=panic", "panic=-1 reboot=panic_warm nopanic=1 oops=panic"),
    ] {
        assert_eq!(with_command_line(user).unwrap(), all);
    }
}

#[test]
fn parameters_for_the_guests_init_are_not_the_kernels() {
    let all = "panic=-1 reboot=panic_warm quiet -- panic=5 reboot=k";
    assert_eq!(with_command_line("quiet -- panic=5 reboot=k").unwrap(), all);
}

#[test]
fn spaces_inside_stay_and_spaces_around_go() {
    assert_eq!(with_command_line(" ").unwrap(), "panic=-1 reboot=panic_warm");
    let all = "panic=-1 reboot=panic_warm a  \"b c\"";
    assert_eq!(with_command_line("  a  \"b c\" ").unwrap(), all);
}

#[test]
fn a_command_line_fills_the_kernels_buffer_and_no_more() {
    for prefix in ["", "panic=1 ", "panic=1 reboot=k "] {
        let added = with_command_line(&format!("{prefix}x")).unwrap().len() - prefix.len() - 1;
        let of_length =
            |length: usize| format!("{prefix}{}", "x".repeat(length - prefix.len() - added));
        assert_eq!(
            with_command_line(&of_length(MAX_COMMAND_LINE)).unwrap().len(),
            MAX_COMMAND_LINE
        );
        match with_command_line(&of_length(MAX_COMMAND_LINE + 1)).unwrap_err() {
            Error::CommandLineTooLong { length, added: said, .. } => {
                assert_eq!((length, said), (MAX_COMMAND_LINE + 1, added));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_command_line_is_printable_ascii() {
    for text in ["a\nb", "a\tb", "a\0b", "caf\u{e9}", "a\u{7f}", "\u{1f600}"] {
        assert_eq!(with_command_line(text).unwrap_err(), Error::CommandLineCharacter, "{text:?}");
    }
}

#[test]
fn each_serial_target_is_understood() {
    assert_eq!(with_serial("stdio").unwrap(), SerialTarget::Stdio);
    assert_eq!(with_serial("none").unwrap(), SerialTarget::None);
    assert_eq!(with_serial("file:/a:b").unwrap(), SerialTarget::File("/a:b".into()));
    assert_eq!(with_serial("socket:s").unwrap(), SerialTarget::Socket("s".into()));
}

#[test]
fn other_serial_targets_are_refused() {
    for text in ["", "file", "file:", "socket:", "stdio:", "none:x", "STDIO", "tcp:1", ":", "/a"] {
        assert_eq!(with_serial(text).unwrap_err(), Error::SerialTarget(text.to_owned()));
    }
}

fn with_section(section: SerialSection) -> Result<SerialTarget, Error> {
    let mut config = minimal().merge().unwrap();
    config.serial = Some(section);
    Spec::new(config, CommandLineOnly::default()).map(|spec| spec.serial)
}

#[test]
fn firecrackers_field_names_a_file() {
    let section = SerialSection { serial_out_path: Some("/a".into()), target: None };
    assert_eq!(with_section(section).unwrap(), SerialTarget::File("/a".into()));
    assert_eq!(with_section(SerialSection::default()).unwrap(), SerialTarget::Stdio);
}

#[test]
fn two_serial_targets_are_refused() {
    let target = Some("none".to_owned());
    let section = SerialSection { serial_out_path: Some("/a".into()), target };
    assert_eq!(with_section(section).unwrap_err(), Error::SerialConflict);
}

/// The two uses that are in conflict, if any.
fn conflict(args: &RunArgs) -> Option<(&'static str, &'static str)> {
    match check(args) {
        Err(Error::PathConflict { first, second, .. }) => Some((first, second)),
        Ok(_) => None,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn an_output_must_not_be_an_input_or_another_output() {
    let args = |kernel: &str, initrd: &str, serial: &str, api: &str| RunArgs {
        kernel: Some(kernel.into()),
        initrd: Some(initrd.into()),
        serial: Some(serial.to_owned()),
        api_sock: Some(api.into()),
        ..RunArgs::default()
    };
    let found = |kernel, initrd, serial, api| conflict(&args(kernel, initrd, serial, api));
    assert_eq!(found("k", "i", "file:k", "a"), Some(("the kernel", "the serial target")));
    assert_eq!(found("k", "i", "file:i", "a"), Some(("the initrd", "the serial target")));
    assert_eq!(found("k", "i", "file:s", "k"), Some(("the kernel", "the control socket")));
    assert_eq!(found("k", "i", "file:s", "i"), Some(("the initrd", "the control socket")));
    assert_eq!(found("k", "i", "socket:s", "s"), Some(("the serial target", "the control socket")));
    assert_eq!(found("k", "i", "socket:s", "a"), None);
    assert_eq!(found("k", "k", "stdio", "a"), None, "two inputs do each other no harm");
}

#[test]
fn the_socket_of_a_guest_is_not_another_file() {
    let args = |vsock: &str| RunArgs {
        kernel: Some("k".into()),
        serial: Some("socket:s".to_owned()),
        api_sock: Some("a".into()),
        vsock: Some(vsock.parse().unwrap()),
        ..RunArgs::default()
    };
    let vsock = "the socket of --vsock";
    assert_eq!(conflict(&args("k,cid=9")), Some(("the kernel", vsock)));
    assert_eq!(conflict(&args("s")), Some(("the serial target", vsock)));
    assert_eq!(conflict(&args("./a")), Some((vsock, "the control socket")));
    assert_eq!(conflict(&args("v")), None);
}

#[test]
fn another_name_of_a_file_is_still_that_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("Image"), "kernel").unwrap();
    fs::create_dir(path("sub")).unwrap();
    symlink(path("Image"), path("soft")).unwrap();
    symlink(directory.path(), path("here")).unwrap();
    fs::hard_link(path("Image"), path("hard")).unwrap();
    for other in ["Image", "./Image", "sub/../Image", "soft", "here/Image", "hard"] {
        let args = RunArgs {
            kernel: Some(path("Image")),
            serial: Some(format!("file:{}", path(other).display())),
            ..RunArgs::default()
        };
        assert_eq!(conflict(&args), Some(("the kernel", "the serial target")), "{other}");
    }
}

#[test]
fn outputs_that_do_not_exist_yet_conflict_in_any_spelling() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("sub")).unwrap();
    symlink(directory.path(), path("here")).unwrap();
    for (other, conflicts) in
        [("s", true), ("sub/../s", true), ("here/s", true), ("sub/s", false), ("no/such/s", false)]
    {
        let args = RunArgs {
            serial: Some(format!("socket:{}", path("s").display())),
            api_sock: Some(path(other)),
            ..minimal()
        };
        assert_eq!(conflict(&args).is_some(), conflicts, "{other}");
    }
}

#[test]
fn a_relative_path_and_its_other_spelling_conflict() {
    let args = |serial: &str, api: &str| RunArgs {
        serial: Some(serial.to_owned()),
        api_sock: Some(api.into()),
        ..minimal()
    };
    assert!(conflict(&args("socket:./no-such-socket", "no-such-socket")).is_some());
    assert!(conflict(&args("socket:no-such-socket", "no-such-socket2")).is_none());
}

#[test]
fn an_id_fits_a_file_name() {
    let with_id = |id: &str| check(&RunArgs { id: Some(id.to_owned()), ..minimal() });
    for id in ["a", "vm-1", "A9-", &"x".repeat(64)] {
        assert_eq!(with_id(id).unwrap().id, id);
    }
    for id in ["", "a b", "a/b", "..", "a_b", "caf\u{e9}", "a\n", &"x".repeat(65)] {
        assert_eq!(with_id(id).unwrap_err(), Error::Id(id.to_owned()));
    }
}

/// What a client of the control socket reads, given to another VM as its configuration file.
fn fed_back(spec: &Spec) -> Spec {
    let text = serde_json::to_string(&spec.to_config()).unwrap();
    {
        let flags = CommandLineOnly { id: Some(&spec.id), ..CommandLineOnly::default() };
        Spec::new(serde_json::from_str(&text).unwrap(), flags).unwrap()
    }
}

prop_compose! {
    fn any_args()(
        initrd in proptest::option::of("[a-z]{1,8}"),
        cmdline in proptest::option::of("[ -~]{0,40}"),
        chunks in proptest::option::of(32u64..100_000),
        cpus in proptest::option::of(1u32..600),
        mte in proptest::option::of(prop_oneof![
            Just(MteMode::Require), Just(MteMode::Auto), Just(MteMode::Off)
        ]),
        serial in proptest::option::of(prop_oneof![
            Just("stdio".to_owned()),
            Just("none".to_owned()),
            "file:/no-such/[a-z:é]{1,8}",
            "socket:/no-such/[a-z:]{1,8}",
        ]),
        memory_backing in proptest::option::of(prop_oneof![
            Just(MemoryBacking::Anonymous), Just(MemoryBacking::Memfd), Just(MemoryBacking::Hugetlbfs)
        ]),
        (no_balloon, rng, lock_memory, track_dirty_pages) in any::<(bool, bool, bool, bool)>(),
        clock in proptest::option::of(prop_oneof![Just(ClockMode::Stop), Just(ClockMode::Advance)]),
        balloon in proptest::option::of(
            "reporting=(on|off),deflate-on-oom=(on|off),target=[1-6]?[0-3]M,stats=[0-9]{1,4}"
        ),
        vsock in proptest::option::of("/no-such/V[a-z,]{0,5}(,cid=[3-9][0-9]{0,8})?"),
    ) -> RunArgs {
        let memory = chunks.map(|chunks| Bytes::mib(2 * chunks));
        let initrd = initrd.map(Into::into);
        let balloon = balloon.map(|text: String| text.parse().unwrap());
        let vsock = vsock.map(|text: String| text.parse().unwrap());
        RunArgs {
            initrd, cmdline, memory, cpus, mte, serial, memory_backing, no_balloon, rng, lock_memory,
            track_dirty_pages, balloon, vsock, clock, ..minimal()
        }
    }
}

proptest! {
    #[test]
    fn the_configuration_of_a_vm_makes_the_same_vm_again(args in any_args()) {
        let spec = check(&args).unwrap();
        prop_assert_eq!(format!("{:?}", fed_back(&spec)), format!("{spec:?}"));
    }
}

#[test]
fn the_configuration_file_is_not_written_over() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let serial = format!(r#"{{"serial_out_path": {:?}}}"#, file.path());
    let text = format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, "serial": {serial}}}"#);
    let flags = CommandLineOnly { config: Some(file.path()), ..CommandLineOnly::default() };

    let error = Spec::new(serde_json::from_str(&text).unwrap(), flags).unwrap_err();

    assert!(error.to_string().contains("the configuration file"), "{error}");
}

#[test]
fn a_reboot_parameter_that_says_nothing_of_panics_leaves_ours_in_place() {
    let line = command_line("console=ttyS0 reboot=k panic=1", None, false).unwrap();

    assert_eq!(line, "reboot=panic_warm console=ttyS0 reboot=k panic=1");
    assert_eq!(
        command_line("reboot=panic_cold panic=0", None, false).unwrap(),
        "reboot=panic_cold panic=0"
    );
}

#[test]
fn a_boot_image_is_for_anonymous_memory_that_is_not_locked() {
    let with = |args: RunArgs| check(&RunArgs { boot_image: true, ..args });
    assert!(!check(&minimal()).unwrap().boot_image);
    let spec = with(minimal()).unwrap();
    assert!(spec.boot_image);
    assert_eq!(format!("{:?}", fed_back(&spec)), format!("{spec:?}"));

    let memfd = Some(MemoryBacking::Memfd);
    let refused = with(RunArgs { memory_backing: memfd, ..minimal() }).unwrap_err();
    assert_eq!(refused, Error::BootImageBacking(MemoryBacking::Memfd));
    let refused = with(RunArgs { lock_memory: true, ..minimal() }).unwrap_err();
    assert_eq!(refused, Error::BootImageLocked);
    for mode in [Some(TagStorageMode::Strict), Some(TagStorageMode::Demand), None] {
        let broker = Some("/broker".into());
        assert!(with(RunArgs { tag_storage: mode, broker, ..minimal() }).is_ok());
    }
}

#[test]
fn a_bare_command_line_is_the_users_own() {
    for user in ["", "quiet", "reboot=k", "-append x"] {
        let boot = BootSource {
            kernel_image_path: Some("Image".into()),
            boot_args: Some(user.to_owned()),
            bare_boot_args: Some(true),
            ..BootSource::default()
        };
        let mut config = Config::default();
        config.boot_source = Some(boot);

        let spec = Spec::new(config, CommandLineOnly::default()).unwrap();

        assert_eq!(spec.command_line, user);
        let again = Spec::new(spec.to_config(), CommandLineOnly::default()).unwrap();
        assert_eq!(again.command_line, user, "as GET /vm/config has it");
    }
}

#[test]
fn limits_of_the_entropy_source_are_kept_and_shown() {
    let text = r#"{"boot-source": {"kernel_image_path": "Image"},
        "entropy": {"rate_limiter": {"bandwidth": {"size": 1024, "refill_time": 100}}}}"#;
    let spec = |text: &str| {
        let config: Config = serde_json::from_str(text).unwrap();
        Spec::new(config, CommandLineOnly::default())
    };

    let limited = spec(text).unwrap();

    assert_eq!(limited.rng.unwrap().bandwidth.unwrap().size.get(), 1024);
    let shown = serde_json::to_value(limited.to_config()).unwrap();
    assert_eq!(shown["entropy"]["rate_limiter"]["bandwidth"]["size"], 1024);
    let never = text.replace("100", "100000000");
    assert!(matches!(spec(&never), Err(Error::EntropyLimits(_))));
}

/// Clients of Firecracker read its words for huge pages, and no other.
#[test]
fn the_default_of_huge_pages_is_not_shown() {
    let shown = |pages| {
        let mut config = Config::default();
        config.boot_source =
            Some(BootSource { kernel_image_path: Some("Image".into()), ..BootSource::default() });
        config.machine_config =
            Some(MachineConfig { huge_pages: pages, ..MachineConfig::default() });
        let spec = Spec::new(config, CommandLineOnly::default()).unwrap();
        spec.to_config().machine_config.unwrap().huge_pages
    };

    assert_eq!(shown(None), None);
    assert_eq!(shown(Some(HugePages::Transparent)), None);
    assert_eq!(shown(Some(HugePages::None)), Some(HugePages::None));
}

#[test]
fn every_path_that_a_description_names_can_be_changed() {
    let args = RunArgs {
        initrd: Some("initrd".into()),
        disk: vec!["disk".parse().unwrap(), "cd,ro".parse().unwrap()],
        net: vec!["stream=peer".parse().unwrap()],
        vsock: Some("vsock".parse().unwrap()),
        serial: Some("socket:console".to_owned()),
        broker: Some("broker".into()),
        log: Some("log".into()),
        metrics: Some("metrics".into()),
        ..minimal()
    };
    let mut spec = check(&args).unwrap();
    let named = spec.named_paths(CommandLineOnly::default()).len();

    let paths = spec.paths_mut();

    // The broker's twice: of a guest with MTE, and of one without.
    assert_eq!(paths.len(), named + 2, "{paths:?}");
    for (path_use, path) in paths {
        let expected = match path.to_str().unwrap() {
            "Image" | "initrd" | "cd" => PathUse::Read,
            "disk" => PathUse::Write,
            "broker" | "peer" => PathUse::Connect,
            "vsock" => PathUse::Listen("the socket of --vsock"),
            "console" => PathUse::Listen("the console's socket"),
            "log" => PathUse::Make("the log"),
            _ => PathUse::Make("the file of counters"),
        };
        assert_eq!(path_use, expected, "{}", path.display());
    }
}
