//! Network interfaces whose other side is a descriptor: tap devices (Linux
//! `Documentation/networking/tuntap.rst`).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Offloads that the reader of a tap takes (Linux `include/uapi/linux/if_tun.h`).
pub(crate) mod offload {
    /// Partial checksums.
    pub(crate) const CSUM: u32 = libc::TUN_F_CSUM;
    /// TCP over IPv4 that is not cut into segments.
    pub(crate) const TSO4: u32 = libc::TUN_F_TSO4;
    /// TCP over IPv6 that is not cut into segments.
    pub(crate) const TSO6: u32 = libc::TUN_F_TSO6;
    /// UDP that is not cut into fragments.
    pub(crate) const UFO: u32 = libc::TUN_F_UFO;
    /// UDP that is not cut into segments, over IPv4 and IPv6: the kernel takes both or none.
    pub(crate) const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
}

/// What a tap is: Ethernet frames, without the old header, with the header of virtio.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// The longest name of an interface, without its final zero.
pub(crate) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// A descriptor of a tap device. Each read and write is one frame.
#[derive(Debug)]
pub(crate) struct Tap(OwnedFd);

impl Tap {
    /// Attaches to the tap of this name, of at most [`MAX_NAME`] bytes, or makes one that lasts as long as the
    /// descriptor.
    ///
    /// # Errors
    /// The system's: NotFound without the driver, EPERM for a tap of another user or one that is to be made
    /// without CAP_NET_ADMIN, EBUSY for one that is attached, EINVAL for an interface that is no such tap.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut request = request();
        let long = || io::Error::from_raw_os_error(libc::ENAMETOOLONG);
        let places = request.ifr_name.get_mut(..name.len()).ok_or_else(long)?;
        for (place, byte) in places.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        if name.len() > MAX_NAME {
            return Err(long());
        }
        // They fit: IFF_VNET_HDR is the greatest, 0x4000.
        request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
        Ok(Self(file))
    }

    /// Takes a descriptor of a tap that this process has been started with: a copy of it.
    ///
    /// # Errors
    /// The system's: EBADF for no descriptor, ENOTTY for one that is no tap's, and EINVAL for a tap without the
    /// flags that [`open`](Self::open) gives it.
    pub(crate) fn inherit(number: RawFd) -> io::Result<Self> {
        // SAFETY: F_DUPFD_CLOEXEC takes any number, and touches no memory.
        let copy = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
        // SAFETY: the call has made this descriptor, so nothing else owns it.
        let tap = Self(unsafe { OwnedFd::from_raw_fd(copy) });
        let request = tap.describe()?;
        // SAFETY: TUNGETIFF has filled in the flags; any bits are a valid c_short.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & FLAGS != FLAGS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let status = rustix::fs::fcntl_getfl(&tap.0)?;
        rustix::fs::fcntl_setfl(&tap.0, status | OFlags::NONBLOCK)?;
        Ok(tap)
    }

    /// The name of its interface.
    ///
    /// # Errors
    /// The system's: EBADFD for one that is gone.
    pub(crate) fn name(&self) -> io::Result<String> {
        let name = self.describe()?.ifr_name.map(|byte| byte.to_ne_bytes()[0]);
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// Whether its interface is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.describe().is_err()
    }

    /// Sets how many bytes the header before each frame has.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn set_header(&self, bytes: usize) -> io::Result<()> {
        let bytes = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &bytes) })?;
        Ok(())
    }

    /// Sets the [offloads](offload) that the reader takes.
    ///
    /// # Errors
    /// The system's: EINVAL for those that it does not have.
    pub(crate) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        let offloads = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })?;
        Ok(())
    }

    fn describe(&self) -> io::Result<libc::ifreq> {
        let mut request = request();
        // SAFETY: TUNGETIFF writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
        Ok(request)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether there is an interface of this name.
pub(crate) fn exists(name: &str) -> bool {
    let kind = (AddressFamily::UNIX, SocketType::DGRAM);
    let socket = socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None);
    socket.is_ok_and(|socket| rustix::net::netdevice::name_to_index(socket, name).is_ok())
}

fn request() -> libc::ifreq {
    // SAFETY: an ifreq consists of integers and pointers, of which all may be zero.
    unsafe { std::mem::zeroed() }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_no_tap_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let error = Tap::inherit(file.as_raw_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        let error = Tap::inherit(-1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_name_that_no_interface_has_is_refused() {
        for length in [MAX_NAME + 1, 100] {
            let error = Tap::open(&"x".repeat(length)).unwrap_err();
            assert_ne!(error.raw_os_error(), None);
        }
    }
}
