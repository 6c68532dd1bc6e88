//! Listening sockets of AF_VSOCK, whose addresses rustix does not know.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};

/// The host's context id (`VMADDR_CID_HOST`, include/uapi/linux/vm_sockets.h).
pub(crate) const HOST: u32 = libc::VMADDR_CID_HOST;

/// Listens at this port of every context id of the machine.
///
/// # Errors
/// The kernel's: without the modules of vsock there is no such address family.
pub(crate) fn bind(port: u32) -> io::Result<OwnedFd> {
    let family = AddressFamily::from_raw(libc::AF_VSOCK as u16);
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: a sockaddr_vm is plain integers, for which zeros are a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    // SAFETY: the address is of the type and the size that this family has, and lives through the call.
    let status = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel clips the number (net.core.somaxconn).
    listen(&socket, i32::MAX)?;
    Ok(socket)
}

/// The next connection, and the context id that it comes from.
///
/// # Errors
/// The kernel's.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    // SAFETY: a sockaddr_vm is plain integers, for which zeros are a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the address, which has that many.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has made this descriptor for the caller, and nothing else has it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.svm_cid))
}
