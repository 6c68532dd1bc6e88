//! The Python package against the real `tessera`: its example, which starts eight guests.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use testing::lab::{Lab, artifact, in_nested_host, program};
use testing::scratch::Scratch;

const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/python");

#[test]
fn the_example_has_eight_guests_whose_events_tell_all_and_leaves_nothing() {
    let lab = Lab::new().debian().timeout(Duration::from_secs(900));
    lab.file(Path::new(PACKAGE), "/python").run(|| {
        let package = Path::new(if in_nested_host() { "/python" } else { PACKAGE });
        let scratch = Scratch::new();
        let archives =
            ["initrd.cpio", "agent.cpio"].map(|name| std::fs::read(artifact(name)).unwrap());
        let initrd = scratch.file("initrd", &archives.concat());
        let temporary = scratch.join("tmp");
        std::fs::create_dir(&temporary).unwrap();

        let done = Command::new("python3")
            .arg("-B")
            .arg(package.join("examples/lifecycle.py"))
            .arg(artifact("Image"))
            .arg(initrd)
            .args(["workload=agent", "cryptomgr.notests"])
            .env("PYTHONPATH", package)
            .env("TESSERA", program("tessera"))
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .output()
            .unwrap();

        assert!(done.status.success(), "{done:?}");
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    });
}
