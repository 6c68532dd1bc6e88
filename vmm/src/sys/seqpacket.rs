//! Packets on a Unix socket: sent whole or not at all, and descriptors with them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};

/// Connects to the socket at `path`. `timeout` bounds that, each send and each receive.
pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // The send timeout bounds connect, too (net/unix/af_unix.c, unix_stream_connect).
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Two connected sockets.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Sends a message; waits for room in the socket for as long as its timeout says.
pub(crate) fn send(socket: impl AsFd, message: &[u8]) -> Result<(), Errno> {
    send_with(socket.as_fd(), message, SendFlags::NOSIGNAL)
}

/// Sends a message if there is room for it.
pub(crate) fn send_now(socket: impl AsFd, message: &[u8]) -> Result<(), Errno> {
    send_with(socket.as_fd(), message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(socket: BorrowedFd<'_>, message: &[u8], flags: SendFlags) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::net::send(socket, message, flags)).map(drop)
}

/// Sends a message and a descriptor with it; waits as [`send`] does.
pub(crate) fn send_fd(socket: impl AsFd, message: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    send_fd_with(socket.as_fd(), message, fd, SendFlags::NOSIGNAL)
}

/// Sends a message and a descriptor with it, if there is room for it.
pub(crate) fn send_fd_now(
    socket: impl AsFd,
    message: &[u8],
    fd: BorrowedFd<'_>,
) -> Result<(), Errno> {
    send_fd_with(socket.as_fd(), message, fd, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_fd_with(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fd: BorrowedFd<'_>,
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    // There is space for exactly this.
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let parts = [IoSlice::new(message)];
    sendmsg(socket, &parts, &mut control, flags).map(drop)
}

/// Receives a message; none when the other side is gone. Descriptors that come with it are closed by the
/// kernel, as there is no place for them.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<&[u8]>, Errno> {
    receive_with(socket.as_fd(), buffer, RecvFlags::empty())
}

/// Receives a message that is there already.
pub(crate) fn receive_now(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<&[u8]>, Errno> {
    receive_with(socket.as_fd(), buffer, RecvFlags::DONTWAIT)
}

fn receive_with<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
    flags: RecvFlags,
) -> Result<Option<&'a [u8]>, Errno> {
    let mut once =
        |flags| rustix::net::recv(socket, &mut buffer[..], flags).map(|(length, _)| length);
    let mut result = once(flags);
    while result == Err(Errno::INTR) {
        result = once(flags);
    }
    // The kernel says first that the other side closed with something unread, and then gives what it had
    // sent before: why it closed (net/core/datagram.c, __skb_try_recv_datagram).
    if result == Err(Errno::CONNRESET) {
        result = once(flags | RecvFlags::DONTWAIT);
    }
    match result {
        Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => Ok(None),
        Ok(length) => Ok(buffer.get(..length)),
        Err(errno) => Err(errno),
    }
}

/// A message and the descriptor that came with it.
pub(crate) type Carried<'a> = (&'a [u8], Option<OwnedFd>);

/// Receives a message and the descriptor with it, close-on-exec. The kernel closes further ones.
pub(crate) fn receive_fd(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> Result<Option<Carried<'_>>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut once = |flags| {
        let mut parts = [IoSliceMut::new(&mut buffer[..])];
        recvmsg(socket.as_fd(), &mut parts, &mut control, flags).map(|message| message.bytes)
    };
    let mut result = once(RecvFlags::CMSG_CLOEXEC);
    if result == Err(Errno::CONNRESET) {
        result = once(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT);
    }
    let length = match result {
        Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => return Ok(None),
        other => other?,
    };
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last().or(fd);
        }
    }
    Ok(buffer.get(..length).map(|message| (message, fd)))
}
