#![allow(clippy::unwrap_used)]

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
#[command(disable_version_flag = true)]
struct Process {
    #[command(flatten)]
    args: JailerArgs,
}

fn parse(line: &str) -> Result<JailerArgs, clap::Error> {
    let words = std::iter::once("jailer").chain(line.split_ascii_whitespace());
    Process::try_parse_from(words).map(|process| process.args)
}

#[test]
fn every_option_of_the_jailer_is_taken() {
    let line = "--id vm1 --exec-file /bin/firecracker --uid 123 --gid 100 --chroot-base-dir /jails --netns /run/n \
                --daemonize --new-pid-ns --cgroup cpu.weight=5 --cgroup memory.max=1G --cgroup-version 2 \
                --parent-cgroup all/vms --resource-limit fsize=5 --resource-limit no-file=64 -- --api-sock /run/a \
                --id other";
    let args = parse(line).unwrap();

    assert_eq!((args.uid, args.gid), (Some(123), Some(100)));
    assert_eq!(args.chroot_base_dir, Path::new("/jails"));
    assert!(args.daemonize && args.new_pid_ns);
    assert_eq!((args.cgroup.len(), args.cgroup_version), (2, 2));
    assert_eq!(args.parent_cgroup.as_deref(), Some("all/vms"));
    let limits = [ResourceLimit::FileSize(5), ResourceLimit::Descriptors(64)];
    assert_eq!(args.resource_limit, limits);
    assert_eq!(args.rest, ["--api-sock", "/run/a", "--id", "other"]);
}

#[test]
fn four_options_are_needed() {
    let all = ["--id a", "--exec-file /f", "--uid 1", "--gid 1"];
    for left_out in all {
        let others: Vec<_> = all.into_iter().filter(|option| *option != left_out).collect();
        assert!(parse(&others.join(" ")).is_err(), "{left_out}");
    }
    let args = parse(&all.join(" ")).unwrap();
    assert_eq!((args.chroot_base_dir.to_str(), args.cgroup_version), (Some(BASE), 1));
    assert!(parse("--version").unwrap().version);
    for wrong in ["--uid -1", "--uid x", "--cgroup-version 3", "--resource-limit cpu=1"] {
        assert!(parse(&format!("--id a --exec-file /f --gid 1 {wrong}")).is_err(), "{wrong}");
    }
}

/// Options for a program and a place that are there.
fn options(folder: &Path, name: &str, more: &str) -> JailerArgs {
    let program = folder.join(name);
    fs::write(&program, "").unwrap();
    let base = folder.join("jails");
    fs::create_dir_all(&base).unwrap();
    let (program, base) = (program.display(), base.display());
    let line = format!("--exec-file {program} --uid 1 --gid 1 --chroot-base-dir {base} {more}");
    parse(&line).unwrap()
}

#[test]
fn the_jail_is_where_firecracker_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let args = options(folder.path(), "firecracker-v1", "--id vm-1");

    let jailer = Jailer::new(&args).unwrap();

    let base = folder.path().canonicalize().unwrap();
    assert_eq!(jailer.root, base.join("jails/firecracker-v1/vm-1/root"));
    assert_eq!(pid_file(&jailer.name), "firecracker-v1.pid");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, more: &str| {
        let args = options(folder.path(), name, more);
        Jailer::new(&args).map(|_| ()).unwrap_err().to_string()
    };

    assert!(refused("firecracker", "--id a_b").starts_with("Invalid instance ID"));
    assert!(refused("tessera", "--id a").contains("must contain \"firecracker\": tessera"));
    let group = refused("firecracker", "--id a --cgroup cpu.shares=5");
    assert!(group.contains("--cgroup-version 2"), "{group}");
    let made = fs::read_dir(folder.path().join("jails")).unwrap().count();
    assert_eq!(made, 0);
}

#[test]
fn a_link_in_the_jail_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let args = options(folder.path(), "firecracker", "--id a");
    let jailer = Jailer::new(&args).unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "kept").unwrap();
    fs::create_dir_all(&jailer.root).unwrap();
    std::os::unix::fs::symlink(&victim, jailer.root.join("firecracker")).unwrap();

    jailer.copy_program().unwrap();

    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
    assert!(jailer.root.join("firecracker").symlink_metadata().unwrap().is_file());
}

#[test]
fn of_two_jailers_of_a_root_the_second_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let args = options(folder.path(), "firecracker", "--id a");
    let jailer = Jailer::new(&args).unwrap();
    let first = jailer.be_alone().unwrap();

    let refused = jailer.be_alone().unwrap_err();

    assert!(matches!(&refused, JailerError::Starting(id) if id == "a"), "{refused}");
    assert!(refused.status() == ExitStatus::CannotCreate);
    drop(first);
    jailer.be_alone().unwrap();
}
