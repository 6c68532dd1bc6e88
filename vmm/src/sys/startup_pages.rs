//! Gives back the pages that only the start-up needs: the deepest part of the main thread's stack, and the mappings of
//! the program's file. The kernel maps what is used of the file again, from its page cache; what parses the command line,
//! reads the kernel and describes the board is not used again.
//!
//! # References
//! madvise(2), MADV_DONTNEED; ld(1), `PROVIDE` (`__executable_start`, `etext`)
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use rustix::mm::{Advice, madvise};

/// How much of the stack below the caller stays: what this module's own calls use. A signal is handled before the
/// kernel takes pages away or after it, and finds new ones.
const KEPT: usize = 2 << 10;

/// How much of it is given back at most. Start-up takes less, and the kernel keeps a larger gap than this free of
/// other mappings below a stack (`stack_guard_gap` in mm/mmap.c, 256 pages).
const DEPTH: usize = 256 << 10;

/// Gives the stack back that is below the caller's. Nothing happens on a thread that is not the main thread: other stacks
/// are smaller than the depth. Advice that the kernel does not take changes nothing.
pub(crate) fn release_stack() {
    if rustix::thread::gettid() == rustix::process::getpid() {
        release_below();
    }
}

#[inline(never)]
fn release_below() {
    let here = 0u8;
    let page = rustix::param::page_size();
    let end = ((&raw const here).addr() - KEPT) & !(page - 1);
    // SAFETY: a stack grows down on every Linux machine that this runs on, so what lies this far below a local
    // variable of the running function belongs to calls that have returned; or to no mapping at all.
    let _ = unsafe { advise(end.saturating_sub(DEPTH), end) };
}

/// Takes the program's constants and text out of this process's page tables: nothing writes to them, as relocations are
/// behind them. A debugger's breakpoints go with them.
pub(crate) fn release_program() {
    // Made by the linker: where the first segment of the file begins, and where its text ends.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let (start, end) = ((&raw const __executable_start).addr(), (&raw const etext).addr());
    // The last page may have something else behind the text.
    // SAFETY: these are private mappings of the program's file without the right to write. What is in them is read
    // from the file again.
    let _ = unsafe { advise(start.next_multiple_of(page), end & !(page - 1)) };
}

/// # Safety
/// Nothing relies on what has been written to these addresses.
unsafe fn advise(start: usize, end: usize) -> rustix::io::Result<()> {
    let address: *mut c_void = ptr::with_exposed_provenance_mut(start);
    // SAFETY: by the contract of this function.
    unsafe { madvise(address, end.saturating_sub(start), Advice::LinuxDontNeed) }
}
