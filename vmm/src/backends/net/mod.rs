//! The host's side of network devices.
//!
//! ```text
//! worker net-ID:  NetEvents  ->  Transport<Net<Port>>  ->  Port (rate limiters)  ->  TapPort
//!                                                                               \->  StreamPort  ->  Peer
//! ```
//!
//! The descriptor of a port is watched for edges (EPOLLET): each turn reads until there is nothing, so a guest
//! without buffers, or one that is paused, leaves it alone and causes no wake-ups beyond those of arrivals.

mod events;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod peer;
mod port;
mod stream;
mod tap;
mod told;

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use devices::virtio::net::{Counters, Net};
use serde_json::{Value, json};
use thiserror::Error;

use crate::backends::queues::Shared;
use crate::backends::rate_limiter::SharedLimiter;
use crate::spec::{NetSpec, RateLimiterChange};
pub use events::NetEvents;
pub use port::Port;

/// Why the host's side of a network device cannot be had.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host has no tap devices.
    #[error("/dev/net/tun is not there: load the module tun on the host")]
    NoTaps(#[source] io::Error),
    /// A tap that is another user's, or that is to be made without the right to.
    #[error(
        "the tap {name} is not this user's, or does not exist: make it with `ip tuntap add mode tap user $USER \
         vnet_hdr {name}` as root"
    )]
    TapDenied {
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A tap that another process has.
    #[error(
        "the tap {name} is attached to another process: give each network interface one of its own"
    )]
    TapBusy {
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An interface that is no tap, or one of several queues.
    #[error("{name} is no tap device with a single queue: choose another name, or remove it")]
    NoTap {
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another reason.
    #[error("cannot attach to the tap {name}")]
    Tap {
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel's taps do not have the header that virtio has.
    #[error("the tap {name} does not take virtio's header: the host needs Linux 2.6.32 or later")]
    TapHeader {
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A descriptor that is no tap.
    #[error(
        "descriptor {number} is no tap device: pass one that was opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No peer.
    #[error("cannot connect to the network's peer at {}: start passt, gvproxy or whatever serves it first", path.display())]
    Socket {
        /// Where it should listen.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No passt.
    #[error(
        "there is no program passt, which --net user needs: install it (Debian's package passt)"
    )]
    NoPasst,
    /// A process that is confined starts no other.
    #[error(
        "a VM that runs starts no program: serve the network by a passt of your own and --net stream=PATH, or give \
         --seccomp off and --sandbox off"
    )]
    NoProcess,
    /// A passt that cannot be started.
    #[error("cannot start passt")]
    Passt {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No timer.
    #[error("the host gives no timers for a rate limiter: look at ulimit -n")]
    Timer(#[source] io::Error),
}

impl OpenError {
    /// Why TUNSETIFF failed (tun_set_iff in Linux `drivers/net/tun.c`).
    fn tap(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoTaps(source),
            Some(libc::EPERM | libc::EACCES) => Self::TapDenied { name, source },
            Some(libc::EBUSY) => Self::TapBusy { name, source },
            Some(libc::EINVAL | libc::EEXIST) => Self::NoTap { name, source },
            _ => Self::Tap { name, source },
        }
    }

    /// Whether it is for a lack of rights.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::TapDenied { .. } => true,
            Self::Socket { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }
}

/// Controls a network interface of a machine, without its lock: a turn of the device may wait for tag storage.
pub struct Control {
    spec: NetSpec,
    counters: Arc<Counters>,
    rx: SharedLimiter,
    tx: SharedLimiter,
}

impl Control {
    /// Of this device, which was made of `spec`.
    pub fn new(spec: &NetSpec, transport: &Shared<Net<Port>>) -> Self {
        let transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
        let device = transport.device();
        let (rx, tx) = device.port().limiters();
        Self { spec: spec.clone(), counters: device.counters(), rx, tx }
    }

    /// What the interface is made of, as it is now.
    pub fn spec(&self) -> &NetSpec {
        &self.spec
    }

    /// Changes its limits.
    pub fn limit(&mut self, rx: RateLimiterChange, tx: RateLimiterChange) {
        self.spec.rx_limits.update(rx);
        self.spec.tx_limits.update(tx);
        self.rx.update(rx);
        self.tx.update(tx);
    }

    /// What reads its counters.
    pub fn reader(&self) -> Box<dyn Fn() -> Value> {
        let counters = Arc::clone(&self.counters);
        let (rx, tx) = (self.rx.clone(), self.tx.clone());
        Box::new(move || Self::metrics(&counters, rx.throttled(), tx.throttled()))
    }

    fn metrics(counters: &Counters, rx_throttled: u64, tx_throttled: u64) -> Value {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "link_up": read(&counters.link_up) == 1,
            "link_changes_total": read(&counters.link_changes),
            "rx_frames_total": read(&counters.rx_frames),
            "rx_bytes": read(&counters.rx_bytes),
            "rx_oversized_total": read(&counters.rx_oversized),
            "rx_failures_total": read(&counters.rx_failures),
            "rx_starved_total": read(&counters.rx_starved),
            "rx_throttled_total": rx_throttled,
            "tx_frames_total": read(&counters.tx_frames),
            "tx_bytes": read(&counters.tx_bytes),
            "tx_malformed_total": read(&counters.tx_malformed),
            "tx_unlinked_total": read(&counters.tx_unlinked),
            "tx_failures_total": read(&counters.tx_failures),
            "tx_blocked_total": read(&counters.tx_blocked),
            "tx_throttled_total": tx_throttled,
        })
    }
}

#[cfg(test)]
mod tests;
