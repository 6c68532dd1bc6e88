//! The flag that makes KVM_RUN return at once, set from another thread.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

use crate::vcpu::Kick;

/// `kvm_run.immediate_exit` (Documentation/virt/kvm/api.rst, section 5) through a mapping of its own of
/// the vCPU's shared page, so that it needs no access to the vCPU that is running.
pub(super) struct ImmediateExit {
    page: NonNull<u8>,
    length: usize,
}

// SAFETY: the page is a shared mapping without thread affinity, and is accessed by one atomic byte only.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the first page of the vCPU's `kvm_run`.
    pub(super) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        let length = page_size();
        // SAFETY: the descriptor is the caller's and open while borrowed; a vCPU's is mapped at offset 0.
        let fd =
            unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(vcpu)) };
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let page = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd.as_fd(),
                0,
            )?
        };
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page, length })
    }

    fn set(&self, value: u8) {
        // SAFETY: the field lies in the first page of `kvm_run`, which is mapped until `self` is dropped;
        // the kernel reads it, and everybody else who writes it does so through this type.
        let flag = unsafe {
            AtomicU8::from_ptr(
                self.page.as_ptr().add(std::mem::offset_of!(kvm_run, immediate_exit)),
            )
        };
        flag.store(value, Ordering::SeqCst);
    }
}

impl Kick for ImmediateExit {
    fn leave_guest(&self) {
        self.set(1);
    }

    fn clear(&self) {
        self.set(0);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the page is this value's own mapping, and no reference into it outlives a call.
        let unmapped = unsafe { munmap(self.page.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of an owned mapping: {unmapped:?}");
    }
}
