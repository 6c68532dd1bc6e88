//! Frames that come from and go to a tap device of the host.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use devices::virtio::Features;
use devices::virtio::net::features::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6, HOST_TSO4,
    HOST_TSO6, HOST_UFO, HOST_USO,
};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::OpenError;
use crate::error::say;
use crate::sys::tap::{self, Tap, offload};
use crate::sys::vectored;

/// `virtio_net_hdr_v1`, which the driver of a modern device has before each frame.
const HEADER: usize = 12;

/// What may be asked of the kernel, in this order: Linux before 6.2 has no USO, and another kernel need not have
/// UFO.
const OFFERS: [u32; 4] = [
    offload::CSUM | offload::TSO4 | offload::TSO6 | offload::USO | offload::UFO,
    offload::CSUM | offload::TSO4 | offload::TSO6 | offload::UFO,
    offload::CSUM | offload::TSO4 | offload::TSO6,
    offload::CSUM,
];

/// Each offload of a tap with the features that offer it to the driver, and the one that takes it from the driver.
const MEANING: [(u32, Features, Features); 5] = [
    (offload::CSUM, GUEST_CSUM, CSUM),
    (offload::TSO4, GUEST_TSO4, HOST_TSO4),
    (offload::TSO6, GUEST_TSO6, HOST_TSO6),
    (offload::UFO, GUEST_UFO, HOST_UFO),
    (offload::USO, GUEST_USO4.with(GUEST_USO6), HOST_USO),
];

/// A tap device as a port.
#[derive(Debug)]
pub(super) struct TapPort {
    /// `None` once the interface has been removed.
    tap: Option<Tap>,
    name: String,
    /// Whether another tap of this name may take its place.
    by_name: bool,
    offered: Features,
    /// The offloads that the driver takes.
    taken: u32,
    /// The interface has been removed, and the descriptor is to be closed.
    gone: bool,
    blocked: bool,
}

impl TapPort {
    /// The tap of this name, or a new one.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) fn open(name: &str) -> Result<Self, OpenError> {
        let tap = Tap::open(name).map_err(|source| OpenError::tap(name, source))?;
        Self::new(tap, name.to_owned(), true)
    }

    /// A tap that the process has been started with, as this descriptor.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn inherit(number: RawFd) -> Result<Self, OpenError> {
        let inherited = Tap::inherit(number).and_then(|tap| Ok((tap.name()?, tap)));
        let (name, tap) = inherited.map_err(|source| OpenError::Descriptor { number, source })?;
        Self::new(tap, name, false)
    }

    fn new(tap: Tap, name: String, by_name: bool) -> Result<Self, OpenError> {
        let set = tap.set_header(HEADER);
        set.map_err(|source| OpenError::TapHeader { name: name.clone(), source })?;
        let granted = OFFERS.into_iter().find(|offer| tap.set_offloads(*offer).is_ok());
        let offered = granted.map_or(Features::default(), features);
        let tap = Some(tap);
        let port = Self { tap, name, by_name, offered, taken: 0, gone: false, blocked: false };
        port.ask();
        Ok(port)
    }

    fn ask(&self) {
        let asked = self.tap.as_ref().map_or(Ok(()), |tap| tap.set_offloads(self.taken));
        if let Err(error) = asked {
            // Frames come with fewer offloads than the driver takes, which it can do with.
            say(&format!("the tap {} refuses offloads: {error}", self.name));
        }
    }

    pub(super) fn offloads(&self) -> Features {
        self.offered
    }

    pub(super) fn set_offloads(&mut self, acked: Features) {
        self.taken = wanted(acked);
        if !self.gone {
            self.ask();
        }
    }

    pub(super) fn receive<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        let Some(tap) = self.tap.as_ref().filter(|_| !self.gone) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        vectored::readv_then(tap, pieces, rest).map_err(|error| self.failed(error))
    }

    pub(super) fn send<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
    ) -> io::Result<()> {
        let Some(tap) = self.tap.as_ref().filter(|_| !self.gone) else {
            return Err(ErrorKind::NotConnected.into());
        };
        let sent = vectored::writev(tap, pieces);
        self.blocked = sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        sent.map(drop).map_err(|error| self.failed(error))
    }

    fn failed(&mut self, error: io::Error) -> io::Error {
        if error.kind() == ErrorKind::WouldBlock {
            return error;
        }
        self.check();
        if self.gone { ErrorKind::NotConnected.into() } else { error }
    }

    /// Finds out whether the interface has been removed.
    pub(super) fn check(&mut self) {
        if !self.gone && self.tap.as_ref().is_some_and(Tap::is_gone) {
            self.gone = true;
            let until =
                if self.by_name { "there is one of that name" } else { "the VM is started again" };
            say(&format!(
                "the tap {} has been removed: the guest's link is down until {until}",
                self.name
            ));
        }
    }

    /// Closes the descriptor of an interface that has been removed. Whether there may be another one.
    pub(super) fn close(&mut self) -> bool {
        self.tap = None;
        self.gone = false;
        self.blocked = false;
        self.by_name
    }

    /// Attaches to another tap of the same name, if there is one: none is made. Whether it is there.
    pub(super) fn reattach(&mut self) -> bool {
        if self.tap.is_some() || !tap::exists(&self.name) {
            return self.tap.is_some();
        }
        let Ok(tap) = Tap::open(&self.name) else { return false };
        if tap.set_header(HEADER).is_err() {
            return false;
        }
        self.tap = Some(tap);
        self.ask();
        say(&format!("the tap {} is back: the guest's link is up", self.name));
        true
    }

    pub(super) fn is_up(&self) -> bool {
        self.tap.is_some() && !self.gone
    }

    pub(super) fn is_lost(&self) -> bool {
        self.gone
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.tap.as_ref().filter(|_| !self.gone).map(|tap| tap.as_fd().as_raw_fd())
    }
}

/// The features that a tap with these offloads has for a driver.
fn features(offloads: u32) -> Features {
    let granted = MEANING.iter().filter(|(bits, ..)| offloads & bits == *bits);
    granted.fold(Features::default(), |all, (_, guest, host)| all.with(*guest).with(*host))
}

/// What a driver with these features takes. Without checksums the kernel refuses the others (tun_set_offload in
/// Linux `drivers/net/tun.c`), which 5.1.3.1 has depend on them.
fn wanted(acked: Features) -> u32 {
    if !acked.contains(GUEST_CSUM) {
        return 0;
    }
    let taken = MEANING.iter().filter(|(_, guest, _)| acked.contains(*guest));
    taken.fold(0, |all, (bits, ..)| all | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_and_features_mean_the_same() {
        let all = OFFERS[0];
        assert_eq!(wanted(features(all)), all);
        assert_eq!(wanted(features(offload::CSUM)), offload::CSUM);
        assert_eq!(features(0), Features::default());
    }

    #[test]
    fn without_checksums_nothing_is_asked_for() {
        assert_eq!(wanted(GUEST_TSO4.with(GUEST_TSO6)), 0);
    }

    #[test]
    fn half_of_uso_is_none() {
        assert_eq!(wanted(GUEST_CSUM.with(GUEST_USO4)), offload::CSUM);
    }
}
