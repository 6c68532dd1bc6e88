//! A page that the guest reads and the VMM writes: no guest memory, and not saved with it.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use arch::units::Bytes;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A page of the host's size, zero at first.
#[derive(Debug)]
pub struct SharedPage(NonNull<u8>);

// SAFETY: the page is plain memory without thread affinity, and this type alone has its address.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// Maps one.
    ///
    /// # Errors
    /// When the host has no memory.
    pub(crate) fn new() -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the addresses, where nothing else is.
        let page =
            unsafe { mmap_anonymous(ptr::null_mut(), Self::length(), access, MapFlags::PRIVATE) }?;
        NonNull::new(page.cast()).map(Self).ok_or(Errno::NOMEM)
    }

    /// Writes its first bytes. No guest runs that could read half of them.
    pub(crate) fn write(&mut self, bytes: &[u8; 16]) {
        // SAFETY: a page is longer than this, mapped and writable, and no reference to it exists.
        unsafe { self.0.cast::<[u8; 16]>().write_unaligned(*bytes) }
    }

    /// Where it is in this process.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    pub(crate) fn host_address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    /// Its first bytes.
    #[cfg(test)]
    pub(crate) fn first(&self) -> [u8; 16] {
        // SAFETY: as in `write`.
        unsafe { self.0.cast().read_unaligned() }
    }

    /// Its size.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    pub(crate) fn size() -> Bytes {
        Bytes::new(Self::length() as u64)
    }

    fn length() -> usize {
        rustix::param::page_size()
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the page is its own, and nothing else has its address: a VM that has it is gone before.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), Self::length()) };
    }
}
