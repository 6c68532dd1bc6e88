//! Files in and out, in bulk and in number.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use testing::scratch::Scratch;
use testing::wait::until;

use crate::debian::{
    ADDRESS, exec, lab, noise, on_a_tap, plan, said, sh, sha256, start_on_a_tap, tesseractl, timed,
};

const LARGE: u64 = 256 << 20;
const FOLDERS: usize = 50;
const FILES_EACH: usize = 100;
const MODES: [u32; 5] = [0o644, 0o600, 0o755, 0o444, 0o640];

/// Small files of different lengths, contents and permissions.
fn make_tree(root: &Path) {
    for folder in 0..FOLDERS {
        let path = root.join(format!("folder-{folder}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..FILES_EACH {
            let number = folder * FILES_EACH + file;
            let path = path.join(format!("file {file}"));
            fs::write(&path, format!("{number} ").repeat(number % 300)).unwrap();
            let mode = MODES[number % MODES.len()];
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// Each file of a tree with its permissions and its content.
fn tree(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for folder in fs::read_dir(root).unwrap() {
        let folder = folder.unwrap().path();
        for file in fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.insert(name, (mode, fs::read(&path).unwrap()));
        }
    }
    files
}

/// Permissions, length, name and content of each file below the working folder, summed.
const SUM_OF_TREE: &str = "(find . -type f -printf '%m %s %p\\n' | LC_ALL=C sort; \
     find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat) | sha256sum";

#[test]
fn a_large_file_goes_in_over_vsock_and_out_over_the_network_and_a_tree_both_ways() {
    lab().run(|| {
        let scratch = Scratch::new();
        let guest = start_on_a_tap(on_a_tap(plan(&scratch)));
        let large = scratch.join("large");
        noise(&large, LARGE);
        let sum = sha256(&large);
        timed("boot", || said(exec(&guest, &["systemctl", "is-system-running", "--wait"])));

        timed("256 MiB in over vsock", || {
            said(tesseractl(&guest, &["cp", large.to_str().unwrap(), ":/var/tmp/"]))
        });
        fs::remove_file(&large).unwrap();
        let serve = "systemd-run --quiet python3 -m http.server --directory /var/tmp 8000";
        said(sh(&guest, serve));
        let url = format!("http://{ADDRESS}:8000/");
        let curl = |arguments: &[&str]| {
            Command::new("curl").args(["--silent", "--fail"]).args(arguments).output().unwrap()
        };
        until("a server", || curl(&["--head", &url]).status.success().then_some(()));
        let back = scratch.join("back");
        timed("256 MiB out over the tap", || {
            said(curl(&["--output", back.to_str().unwrap(), &format!("{url}large")]))
        });
        assert_eq!(sha256(&back), sum);
        fs::remove_file(&back).unwrap();

        let source = scratch.join("tree");
        make_tree(&source);
        timed("5000 files in", || {
            said(tesseractl(&guest, &["cp", source.to_str().unwrap(), ":/var/tmp/"]))
        });
        let mut here = Command::new("sh");
        let here = here.args(["-c", SUM_OF_TREE]).current_dir(&source).output().unwrap();
        assert_eq!(said(sh(&guest, &format!("cd /var/tmp/tree && {SUM_OF_TREE}"))), said(here));
        let out = scratch.join("out");
        fs::create_dir(&out).unwrap();
        timed("5000 files out", || {
            said(tesseractl(&guest, &["cp", ":/var/tmp/tree", out.to_str().unwrap()]))
        });
        let (sent, received) = (tree(&source), tree(&out.join("tree")));
        assert_eq!(sent.len(), FOLDERS * FILES_EACH);
        let different = sent.iter().find(|(name, file)| received.get(*name) != Some(file));
        assert_eq!((different, received.len()), (None, sent.len()));

        said(tesseractl(&guest, &["stop"]));
        guest.finish().expect_power_off();
    });
}
