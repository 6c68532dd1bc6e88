//! The Debian packages as `make deb` builds them, of programs that are nothing but a header.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use testing::scratch::Scratch;

const PROGRAMS: [&str; 3] = ["tessera", "tesseractl", "tessera-agent"];
/// Where e_machine is in an ELF header, and its value for arm64 (elf(5)).
const MACHINE: usize = 18;
const EM_AARCH64: u8 = 183;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The header of a 64-bit little-endian ELF file for this machine.
fn program(machine: u8) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[MACHINE] = machine;
    header
}

/// Programs and a manual page for each, as the build has them.
fn products(folder: &Path, machine: u8) {
    let manuals = folder.join("share/man/man1");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(&manuals).unwrap();
    for name in PROGRAMS {
        fs::write(folder.join("bin").join(name), program(machine)).unwrap();
    }
    for page in ["tessera", "tessera-run", "tessera-broker", "tesseractl", "tesseractl-list"] {
        fs::write(manuals.join(format!("{page}.1")), ".TH\n").unwrap();
    }
    fs::create_dir_all(folder.join("share/sbom")).unwrap();
    for name in PROGRAMS {
        fs::write(folder.join(format!("share/sbom/{name}.cdx.json")), "{}\n").unwrap();
    }
    let completions = folder.join("share/bash-completion/completions");
    fs::create_dir_all(&completions).unwrap();
    fs::write(completions.join("tesseractl"), "complete\n").unwrap();
}

fn build(folder: &Path) -> Output {
    Command::new(root().join("resources/debian/build.sh"))
        .args(["bin", "share", "debs"].map(|name| folder.join(name)))
        .env("DEB_VERSION", "1.2")
        .env("DEBFULLNAME", "A Name")
        .env("DEBEMAIL", "a@example.org")
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .unwrap()
}

struct Package {
    path: PathBuf,
    /// Its control files, unpacked.
    control: PathBuf,
    /// Its files, unpacked.
    files: PathBuf,
}

impl Package {
    fn open(folder: &Path, name: &str) -> Self {
        let path = folder.join(format!("debs/{name}_1.2_arm64.deb"));
        let (control, files) =
            (folder.join(format!("{name}.control")), folder.join(format!("{name}.files")));
        for (option, target) in [("--control", &control), ("--extract", &files)] {
            said(&Command::new("dpkg-deb").arg(option).arg(&path).arg(target).output().unwrap());
        }
        Self { path, control, files }
    }

    fn field(&self, name: &str) -> String {
        let mut command = Command::new("dpkg-deb");
        said(&command.arg("--field").arg(&self.path).arg(name).output().unwrap()).trim().to_owned()
    }

    /// Path and `mode owner` of everything in it.
    fn contents(&self) -> BTreeMap<String, String> {
        let list = said(&Command::new("dpkg-deb").arg("-c").arg(&self.path).output().unwrap());
        let entry = |line: &str| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            (words[5].trim_start_matches('.').to_owned(), format!("{} {}", words[0], words[1]))
        };
        list.lines().map(entry).collect()
    }

    fn control_file(&self, name: &str) -> String {
        fs::read_to_string(self.control.join(name)).unwrap()
    }
}

#[test]
fn packages_have_what_they_are_to_have_where_it_belongs() {
    let scratch = Scratch::new();
    products(scratch.path(), EM_AARCH64);
    said(&build(scratch.path()));

    let host = Package::open(scratch.path(), "tessera");
    let contents = host.contents();
    for path in [
        "/usr/bin/tessera",
        "/usr/bin/tesseractl",
        "/usr/lib/systemd/system/tessera-broker.service",
        "/usr/lib/systemd/system/tessera@.service",
        "/usr/lib/udev/rules.d/60-tessera.rules",
        "/usr/lib/tmpfiles.d/tessera.conf",
        "/usr/share/man/man1/tessera-run.1.gz",
        "/usr/share/man/man1/tesseractl-list.1.gz",
        "/usr/share/bash-completion/completions/tesseractl",
        "/usr/share/doc/tessera/copyright",
        "/usr/share/doc/tessera/sbom/tessera.cdx.json",
        "/usr/share/doc/tessera/sbom/tesseractl.cdx.json",
        "/usr/share/doc/tessera/changelog.gz",
        "/usr/share/doc/tessera/install.md",
        "/usr/share/tessera/demo.json",
        "/usr/share/tessera/fleet/pacemaker/vm",
        "/usr/share/tessera/fleet/slurm/tessera.conf",
        "/usr/share/tessera/fleet/slurm/vm.job",
        "/usr/share/tessera/openapi.yaml",
        "/usr/share/tessera/grafana/tessera.json",
        "/etc/tessera/",
        "/etc/default/tessera-broker",
    ] {
        assert!(contents.contains_key(path), "{path} is not in {contents:#?}");
    }
    assert!(!contents.keys().any(|path| path.contains("tessera-agent")), "{contents:#?}");
    assert_eq!(host.control_file("conffiles"), "/etc/default/tessera-broker\n");
    assert_eq!(host.field("Recommends"), "passt");

    let guest = Package::open(scratch.path(), "tessera-agent");
    let agent = guest.contents();
    assert!(agent.contains_key("/usr/lib/systemd/system/tessera-agent.service"), "{agent:#?}");
    assert!(agent.contains_key("/usr/share/man/man1/tessera-agent.1.gz"), "{agent:#?}");
    let both = |path: &&String| !path.ends_with('/') && contents.contains_key(*path);
    assert_eq!(agent.keys().filter(both).collect::<Vec<_>>(), Vec::<&String>::new());

    for package in [&host, &guest] {
        for (path, mode) in package.contents() {
            let wanted = match path.as_str() {
                path if path.ends_with('/') => "drwxr-xr-x root/root",
                path if path.starts_with("/usr/bin/") => "-rwxr-xr-x root/root",
                // Scripts and settings of a fleet.
                path if path.starts_with("/usr/share/tessera/fleet/") => {
                    match path.contains('.') && !path.ends_with(".job") {
                        true => "-rw-r--r-- root/root",
                        false => "-rwxr-xr-x root/root",
                    }
                }
                _ => "-rw-r--r-- root/root",
            };
            assert_eq!(mode, wanted, "{path}");
        }
        // Static programs.
        assert_eq!(package.field("Depends"), "");
        assert_eq!(package.field("Version"), "1.2");
        assert_eq!(package.field("Architecture"), "arm64");
        assert_eq!(package.field("Maintainer"), "A Name <a@example.org>");
        assert!(package.field("Installed-Size").parse::<u32>().unwrap() > 0);
    }
}

#[test]
fn digests_scripts_and_units_of_packages_hold() {
    let scratch = Scratch::new();
    products(scratch.path(), EM_AARCH64);
    said(&build(scratch.path()));

    for name in ["tessera", "tessera-agent"] {
        let package = Package::open(scratch.path(), name);
        let mut check = Command::new("md5sum");
        check.args(["--check", "--strict", "--quiet"]).arg(package.control.join("md5sums"));
        said(&check.current_dir(&package.files).output().unwrap());
        for script in ["postinst", "prerm", "postrm"] {
            let path = package.control.join(script);
            said(&Command::new("sh").arg("-n").arg(&path).output().unwrap());
            // Unpacked as it is in the package.
            said(&Command::new("test").arg("-x").arg(&path).output().unwrap());
        }
        let units = fs::read_dir(package.files.join("usr/lib/systemd/system")).unwrap();
        for unit in units.map(|unit| unit.unwrap().path()) {
            let text = fs::read_to_string(&unit).unwrap();
            let programs: Vec<&str> = text
                .lines()
                .filter(|line| line.starts_with("Exec"))
                .flat_map(|line| line.split(['=', ' ']))
                .filter(|word| word.starts_with("/usr/bin/"))
                .collect();
            assert!(!programs.is_empty(), "{text}");
            for program in programs {
                assert!(package.files.join(&program[1..]).is_file(), "{program} of {unit:?}");
            }
        }
    }
}

#[test]
fn a_package_is_the_same_each_time_and_has_no_program_of_another_machine() {
    let scratch = Scratch::new();
    products(scratch.path(), EM_AARCH64);
    let files = || {
        said(&build(scratch.path()));
        let debs = fs::read_dir(scratch.join("debs")).unwrap().map(|deb| deb.unwrap().path());
        debs.map(|deb| (deb.clone(), fs::read(deb).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let first = files();
    assert_eq!(first.len(), 2);
    assert!(first == files(), "two builds differ");

    // EM_X86_64.
    products(scratch.path(), 62);
    let refused = build(scratch.path());
    assert_eq!(refused.status.code(), Some(66), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no arm64 program"), "{refused:?}");
}

#[test]
fn an_installation_has_units_with_its_own_prefix_and_none_goes_to_a_root_of_another_machine() {
    let scratch = Scratch::new();
    products(scratch.path(), EM_AARCH64);
    let target = scratch.join("target");
    let install = |part: &str, destdir: &Path| {
        Command::new(root().join("resources/install.sh"))
            .args([part, "/opt/vm"])
            .args([destdir, &scratch.join("bin"), &scratch.join("share")])
            .output()
            .unwrap()
    };

    said(&install("host", &target));
    said(&install("guest", &target));

    let unit = |name: &str| {
        let path = target.join("opt/vm/lib/systemd/system").join(name);
        fs::read_to_string(path).unwrap()
    };
    assert!(unit("tessera@.service").contains("ExecStart=/opt/vm/bin/tessera run"));
    assert!(unit("tessera-agent.service").contains("ExecStart=/opt/vm/bin/tessera-agent"));
    assert!(target.join("opt/vm/share/man/man1/tessera.1").is_file());

    assert_eq!(install("desk", &target).status.code(), Some(64));
    if !cfg!(target_arch = "aarch64") {
        assert_eq!(install("host", Path::new("/")).status.code(), Some(69));
    }
}
