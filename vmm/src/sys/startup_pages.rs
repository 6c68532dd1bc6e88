//! Gives back the pages that only the start-up needs: the deepest part of the main thread's stack, and the program's
//! text, of which an idle VM runs a small part.
//!
//! Text comes back from the page cache where it runs again. A breakpoint that a debugger has set before is lost, as
//! it is a change of the text: set it once the guest runs.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use rustix::mm::{Advice, madvise};

/// How much of the stack below the caller stays: what this module's own calls and a signal handler use.
const KEPT: usize = 16 << 10;

/// How much of it is given back at most. Start-up takes less, and the kernel keeps a larger gap than this free of
/// other mappings below a stack (`stack_guard_gap` in mm/mmap.c, 256 pages).
const DEPTH: usize = 256 << 10;

#[cfg(target_arch = "aarch64")]
unsafe extern "C" {
    /// The first byte of the program, by the linker.
    safe static __executable_start: u8;
    /// The first byte behind its text, by the linker.
    safe static _etext: u8;
}

/// Gives them back. Other threads may run meanwhile. Advice that the kernel does not take changes nothing.
pub(crate) fn release() {
    #[cfg(target_arch = "aarch64")]
    release_text();
    if rustix::thread::gettid() == rustix::process::getpid() {
        release_stack();
    }
}

/// The linker's two symbols enclose text and constants, which nothing writes to: neither is relocated, as the
/// program is linked to fixed addresses.
#[cfg(target_arch = "aarch64")]
fn release_text() {
    let page = rustix::param::page_size();
    let start = (&raw const __executable_start).addr() & !(page - 1);
    let end = (&raw const _etext).addr() & !(page - 1);
    // SAFETY: the pages are unmodified pages of the program's file, so they read the same when they come back.
    // Between them are addresses that are not mapped, for which the kernel answers ENOMEM once it is done.
    let _ = unsafe { advise(start, end) };
}

/// Only for the main thread: other stacks are smaller than the depth.
#[inline(never)]
fn release_stack() {
    let here = 0u8;
    let page = rustix::param::page_size();
    let end = ((&raw const here).addr() - KEPT) & !(page - 1);
    // SAFETY: a stack grows down on every Linux machine that this runs on, so what lies this far below a local
    // variable of the running function belongs to calls that have returned; or to no mapping at all.
    let _ = unsafe { advise(end.saturating_sub(DEPTH), end) };
}

/// # Safety
/// Nothing relies on what has been written to these addresses.
unsafe fn advise(start: usize, end: usize) -> rustix::io::Result<()> {
    let address: *mut c_void = ptr::with_exposed_provenance_mut(start);
    // SAFETY: by the contract of this function.
    unsafe { madvise(address, end.saturating_sub(start), Advice::LinuxDontNeed) }
}
