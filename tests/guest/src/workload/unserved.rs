//! `unserved`: accesses of a process to an address at which nothing is.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};

use serde_json::json;

use super::After;
use crate::report;

pub(super) const NAME: &str = "unserved";

/// The argument of a child, before what it is to do.
pub(crate) const CHILD: &str = "unserved-child";

/// Between the devices of the machine's map: see `arch::layout`.
const NOWHERE: libc::off_t = 0x1800_0000;

/// Has a child read there, and another write, and reports the signals that end them.
///
/// # Errors
/// When there is no child.
pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    let signal = |act: &str| {
        let child = Command::new("/proc/self/exe").args([CHILD, act]).stdin(Stdio::null()).status();
        child.map(|status| status.signal()).map_err(|error| format!("no child: {error}"))
    };
    report::send(NAME, "ends", json!({ "read": signal("read")?, "write": signal("write")? }));
    Ok(After::Stay)
}

/// The life of a child: one access, which must not be survived.
pub(crate) fn child(act: &str) -> ExitCode {
    match access(act == "write") {
        Ok(()) => println!("the access was survived"),
        Err(error) => println!("/dev/mem: {error}"),
    }
    ExitCode::from(3)
}

fn access(write: bool) -> io::Result<()> {
    // SIGBUS has the standard library's handler, which returns from what is no stack overflow with the default
    // action set for the next time (library/std/src/sys/pal/unix/stack_overflow.rs): the access would be made
    // twice.
    // SAFETY: the default action calls nothing of this process.
    if unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    let memory =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
    let size = crate::system::page_size();
    // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            memory.as_raw_fd(),
            NOWHERE,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let word = page.cast::<u32>();
    // SAFETY: an aligned word of the mapping, which nothing else refers to; nothing depends on its value.
    unsafe {
        match write {
            true => word.write_volatile(1),
            false => drop(word.read_volatile()),
        }
    }
    Ok(())
}
