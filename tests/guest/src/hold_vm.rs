//! Holds an empty VM open on an emulated host for as long as the host runs.
//!
//! KVM switches its preemption notifiers on with the first VM of a host and off with the last: a static key, for which
//! the kernel patches the scheduler's code as it runs (`preempt_notifier_inc` in kernel/sched/core.c). QEMU's emulation
//! with a thread for each processor may go on with what it has translated of the code before. Then a vCPU's thread that
//! was preempted is put and never loaded again, and its guest never exits (docs/lab.md). While a VM is held, the code
//! stays as it is.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

/// `KVM_CREATE_VM` in include/uapi/linux/kvm.h: `_IO(KVMIO, 0x01)`.
const CREATE_VM: u64 = 0xae01;

/// Ends when the VM is there, and leaves a process that holds it.
fn main() -> io::Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    // SAFETY: the call takes a number, the type of the VM, and none of our memory.
    if unsafe { libc::ioctl(kvm.as_raw_fd(), CREATE_VM as _, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this process has one thread, and the child does nothing but wait.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => loop {
            // SAFETY: the call takes nothing.
            unsafe { libc::pause() };
        },
        _ => Ok(()),
    }
}
