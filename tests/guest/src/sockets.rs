//! Sockets between guest and host (vsock(7)), which the standard library does not have.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// Any identifier of this guest's, for what listens.
const ANY: u32 = u32::MAX;
/// The host.
const HOST: u32 = 2;

/// Listens at a port. It does not take the driver of a device.
///
/// # Errors
/// Before the module `vsock` is loaded; when the port is taken.
pub(crate) fn listen(port: u32) -> io::Result<File> {
    let socket = socket()?;
    let address = address(ANY, port);
    // SAFETY: the address is of the type and size given, and lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), SIZE) })?;
    // SAFETY: takes numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 128) })?;
    Ok(socket)
}

/// The next connection.
///
/// # Errors
/// The kernel's.
pub(crate) fn accept(listener: &File) -> io::Result<File> {
    // SAFETY: where the peer's address could go, there may be nothing.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    check(fd)?;
    // SAFETY: the kernel has just made the descriptor, which has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Connects to a port of the host.
///
/// # Errors
/// The kernel's: ECONNRESET where nothing listens.
pub(crate) fn connect(port: u32) -> io::Result<File> {
    let socket = socket()?;
    let address = address(HOST, port);
    // SAFETY: as for `bind`.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), SIZE) })?;
    Ok(socket)
}

/// Says that nothing more is written.
///
/// # Errors
/// The kernel's.
pub(crate) fn end_writes(socket: &File) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) })
}

/// Bytes of an address, some 16.
const SIZE: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: a sockaddr_vm is made of numbers, for which zeros are a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    address
}

fn socket() -> io::Result<File> {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: as for `accept`.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
