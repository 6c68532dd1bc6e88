//! A file system of the host that has little room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs, mounted as long as this lives.
pub struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// Mounts one of so many bytes on a folder, which is made.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir(&at).unwrap();
        mount(&at, &["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]);
        Self(at)
    }

    /// Gives it so many bytes.
    ///
    /// # Panics
    /// When it has more in use.
    pub fn resize(&self, bytes: u64) {
        mount(&self.0, &["-o", &format!("remount,size={bytes}")]);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn mount(at: &Path, words: &[&str]) {
    let status = Command::new("mount").args(words).arg(at).status().unwrap();
    assert!(status.success(), "{words:?}");
}
