//! Holes in guest memory: what a call leaves that was to map a part of it anew, and failed once the old mapping was gone.
//!
//! A bound on the number of mappings is checked before that. Afterwards the kernel counts what private memory can take at
//! most, where it never promises more than it has (`vm.overcommit_memory=2`): what it has counted for the old mapping is
//! free for a moment, and others may take it.
#![allow(unsafe_code)]

use std::ops::Range;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

use super::{Mapping, PROT_MTE};
use crate::error::say;

/// How often the kernel is asked for memory that it has none to promise for, and how long it has between: the thread that
/// asks may be one that serves devices.
const TRIES: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(10);

/// What a user can do.
const ADVICE: &str = "the kernel has no memory left to promise for a part of the guest's (vm.overcommit_memory=2): raise \
                      vm.overcommit_ratio, or set vm.overcommit_memory to 0";

/// Guest memory has a hole, and what is mapped there next would be the guest's: the process must not live.
pub(super) fn lost() -> ! {
    say(&format!("the VM ends at once, with a hole in the guest's memory: {ADVICE}"));
    std::process::abort();
}

impl Mapping {
    /// Whether nothing is mapped in some of a part (mincore(2), ENOMEM).
    pub(super) fn has_hole(&self, part: &Range<u64>) -> bool {
        let looked = self.is_in_core(part.start, part.end.saturating_sub(part.start));
        looked.is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM))
    }

    /// Closes the hole that a call may have left, which was to map a part of anonymous memory anew and failed: at once with
    /// inaccessible addresses, of which the kernel counts nothing, and then, once it has memory to promise, with zeroes, as
    /// the call should have.
    ///
    /// # Errors
    /// That of the call where there is no hole: the part is as it was. And where the kernel has no memory to promise within
    /// [a tenth of a second](TRIES): then a touch of the part ends the VM, and why is said.
    pub(super) fn close_hole(&self, part: &Range<u64>, errno: Errno) -> Result<(), Errno> {
        if !self.has_hole(part) {
            return Err(errno);
        }
        let length = part.end.saturating_sub(part.start) as usize;
        let at = self.as_ptr().wrapping_add(part.start as usize).cast();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: the part lies in the mapping's own addresses, and nothing that is mapped is replaced.
        let closed = unsafe { mmap_anonymous(at, length, ProtFlags::empty(), flags) };
        match closed {
            Ok(where_it_is) if where_it_is == at => {}
            // Another thread was faster, or a kernel before 4.17 has put it elsewhere.
            _ => lost(),
        }
        let mut access = MprotectFlags::READ | MprotectFlags::WRITE;
        if self.attributes.tags {
            access |= MprotectFlags::from_bits_retain(PROT_MTE);
        }
        for tries in 1.. {
            // SAFETY: the part was just mapped, and nothing refers to it but by its address.
            match unsafe { mprotect(at, length, access) } {
                Ok(()) => break,
                Err(_) if tries < TRIES => thread::sleep(BETWEEN),
                Err(refused) => {
                    say(&format!(
                        "a part of the guest's memory cannot be used, and the VM ends when it is: {ADVICE}"
                    ));
                    return Err(refused);
                }
            }
        }
        self.advise_all(&(part.start as usize..part.end as usize))
    }
}
