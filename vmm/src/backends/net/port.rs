//! What is behind a network device: one of the backends, with its limits.

use std::io::{self, ErrorKind};
use std::os::fd::RawFd;

use devices::ports::{NetPort, Throttle};
use devices::virtio::Features;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::OpenError;
use super::peer::{Passt, Peer};
use super::stream::StreamPort;
use super::tap::TapPort;
use crate::backends::rate_limiter::SharedLimiter;
use crate::spec::{NetBackendSpec, NetSpec};

#[derive(Debug)]
enum Backend {
    Tap(TapPort),
    Stream(StreamPort),
}

/// A backend with its limits.
#[derive(Debug)]
pub struct Port {
    backend: Backend,
    rx: SharedLimiter,
    tx: SharedLimiter,
}

/// What is to be watched for a port.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Its descriptor, and whether it is to be writable.
    pub(super) port: Option<(RawFd, bool)>,
    /// The peer has gone: the port is to be closed once its descriptor is watched no more.
    pub(super) lost: bool,
}

impl Port {
    /// Opens what a description names.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(spec: &NetSpec) -> Result<Self, OpenError> {
        let backend = match &spec.backend {
            NetBackendSpec::Tap(name) => Backend::Tap(TapPort::open(name)?),
            NetBackendSpec::Descriptor(number) => Backend::Tap(TapPort::inherit(*number)?),
            NetBackendSpec::Stream(path) => {
                Backend::Stream(StreamPort::open(Peer::Socket(path.clone()))?)
            }
            NetBackendSpec::User(forward) => {
                Backend::Stream(StreamPort::open(Peer::User(Passt::new(forward.clone())))?)
            }
        };
        let limiter = |spec| SharedLimiter::new(spec).map_err(OpenError::Timer);
        Ok(Self { backend, rx: limiter(spec.rx_limits)?, tx: limiter(spec.tx_limits)? })
    }

    /// The limits on what is received, and on what is sent.
    pub(super) fn limiters(&self) -> (SharedLimiter, SharedLimiter) {
        (self.rx.clone(), self.tx.clone())
    }

    /// Whether there is a peer.
    pub(super) fn is_up(&self) -> bool {
        match &self.backend {
            Backend::Tap(tap) => tap.is_up(),
            Backend::Stream(stream) => stream.is_up(),
        }
    }

    pub(super) fn watch(&self) -> Watch {
        let (port, lost, blocked) = match &self.backend {
            Backend::Tap(tap) => (tap.descriptor(), tap.is_lost(), tap.is_blocked()),
            Backend::Stream(stream) => (stream.descriptor(), stream.is_lost(), stream.is_blocked()),
        };
        let port = port.map(|descriptor| (descriptor, blocked));
        Watch { port, lost }
    }

    /// What goes off when frames may be received again, and when they may be sent again.
    pub(super) fn timers(&self) -> (RawFd, RawFd) {
        (self.rx.timer(), self.tx.timer())
    }

    /// Takes the event of the timer for frames that are received.
    pub(super) fn take_rx_timer(&mut self) {
        self.rx.take_timer();
    }

    /// Takes the event of the timer for frames that are sent.
    pub(super) fn take_tx_timer(&mut self) {
        self.tx.take_timer();
    }

    /// Sends what is left of a frame.
    pub(super) fn flush(&mut self) {
        if let Backend::Stream(stream) = &mut self.backend {
            stream.flush();
        }
    }

    /// The descriptor reports an error or a peer that has closed it, and is not read now.
    pub(super) fn hung_up(&mut self) {
        match &mut self.backend {
            Backend::Tap(tap) => tap.check(),
            Backend::Stream(stream) => stream.lose("it has closed the connection"),
        }
    }

    /// Closes what [`Watch::lost`] is said of. Whether it may come back.
    pub(super) fn close(&mut self) -> bool {
        match &mut self.backend {
            Backend::Tap(tap) => tap.close(),
            Backend::Stream(stream) => {
                stream.close();
                true
            }
        }
    }

    /// Tries to have the peer back. Whether there is one.
    pub(super) fn reconnect(&mut self) -> bool {
        match &mut self.backend {
            Backend::Tap(tap) => tap.reattach(),
            Backend::Stream(stream) => stream.reconnect(),
        }
    }
}

impl NetPort for Port {
    fn has_header(&self) -> bool {
        matches!(self.backend, Backend::Tap(_))
    }

    fn offloads(&self) -> Features {
        match &self.backend {
            Backend::Tap(tap) => tap.offloads(),
            Backend::Stream(_) => Features::default(),
        }
    }

    fn set_offloads(&mut self, acked: Features) {
        if let Backend::Tap(tap) = &mut self.backend {
            tap.set_offloads(acked);
        }
    }

    fn receive<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        if !self.rx.is_open() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length = match &mut self.backend {
            Backend::Tap(tap) => tap.receive(pieces, rest)?,
            Backend::Stream(stream) => stream.receive(pieces, rest)?,
        };
        self.rx.spend(length as u64);
        Ok(length)
    }

    fn send<B: BitmapSlice>(&mut self, pieces: &[VolatileSlice<'_, B>]) -> io::Result<()> {
        if !self.tx.is_open() {
            return Err(ErrorKind::WouldBlock.into());
        }
        match &mut self.backend {
            Backend::Tap(tap) => tap.send(pieces)?,
            Backend::Stream(stream) => stream.send(pieces)?,
        }
        self.tx.spend(pieces.iter().map(|piece| piece.len() as u64).sum());
        Ok(())
    }
}
