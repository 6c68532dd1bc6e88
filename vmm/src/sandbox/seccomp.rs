//! Installs filters of system calls.
//!
//! # References
//! seccomp(2); Linux Documentation/userspace-api/seccomp_filter.rst
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::io;

use super::{Error, SeccompMode, answer};

// Actions (include/uapi/linux/seccomp.h).
const TRAP: u32 = 0x0003_0000;
const LOG: u32 = 0x7ffc_0000;

/// The opcode of `return` in an instruction (include/uapi/linux/bpf_common.h).
const RETURN: u64 = 0x06;

/// Whether the kernel can filter so.
///
/// # Errors
/// When it cannot.
pub(super) fn look(mode: SeccompMode) -> Result<(), Error> {
    let action = if mode == SeccompMode::Log { LOG } else { TRAP };
    // SAFETY: the kernel reads four bytes at the address.
    unsafe { seccomp(libc::SECCOMP_GET_ACTION_AVAIL, (&raw const action).cast()) }
        .map_err(Error::NoSeccomp)
}

/// Puts the calling thread under a filter, for good.
///
/// # Errors
/// When the kernel does not take it.
pub(super) fn install(program: &'static [u64], mode: SeccompMode) -> Result<(), Error> {
    let program: Cow<'_, [u64]> = match mode {
        SeccompMode::On => Cow::Borrowed(program),
        SeccompMode::Log => program.iter().map(|word| logs(*word)).collect(),
        SeccompMode::Off => return Ok(()),
    };
    // The kernel's bound is 4096, which vmm/seccomp/bpf.rs keeps.
    let length = program.len() as libc::c_ushort;
    // An instruction is eight bytes, as `struct sock_filter` lies in little-endian memory.
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies the program, of which there are `length` instructions, and keeps no address.
    unsafe { seccomp(libc::SECCOMP_SET_MODE_FILTER, (&raw const filter).cast()) }
        .map_err(Error::Filter)
}

/// The same instruction, where it forbids a call, for a filter that logs it.
fn logs(word: u64) -> u64 {
    match word == RETURN | u64::from(TRAP) << 32 {
        true => RETURN | u64::from(LOG) << 32,
        false => word,
    }
}

/// # Safety
/// `argument` is what the operation asks for.
unsafe fn seccomp(operation: libc::c_uint, argument: *const libc::c_void) -> io::Result<()> {
    // SAFETY: by the contract of this function.
    answer(unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, argument) }).map(drop)
}
