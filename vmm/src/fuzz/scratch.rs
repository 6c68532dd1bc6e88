//! A file in memory that targets read by its path.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC)?);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok(Self { file, path })
    }
}

/// Calls `read` with the path of a file that has these bytes. Each thread has one file for all its executions.
///
/// # Panics
/// When this machine has no memory left for it.
pub(crate) fn with_file<T>(bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| Scratch::new().expect("a file in memory"));
        let written = scratch.file.set_len(0).and_then(|()| scratch.file.write_all_at(bytes, 0));
        written.expect("memory for the file");
        read(&scratch.path)
    })
}
