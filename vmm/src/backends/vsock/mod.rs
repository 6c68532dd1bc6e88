//! The guest's sockets on the host, by Firecracker's convention.
//!
//! A process of the host connects to the socket and writes `CONNECT PORT`; when the guest has accepted, it reads
//! `OK HOSTPORT`, and the stream is the connection. A process that listens at the socket's path with `_PORT`
//! behind it gets the guest's connections to that port.

mod greeting;
mod host;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use devices::virtio::mmio::Served;
use devices::virtio::vsock::{EVENT, Peers, RX, TX, Vsock};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::queues::{QUEUES_END, QueueEvents, Shared};
use crate::error::say;
use crate::sys::timer::Timer;

pub use host::{Error, GREETING_TIMEOUT, HostPeers, MOST_STREAMS};

/// The number of the events of the host's sockets.
const HOST: u32 = QUEUES_END;
/// The number of the timer's.
const TIMER: u32 = QUEUES_END + 1;

/// Serves a socket device, on a thread of its own.
pub struct VsockEvents {
    queues: QueueEvents<Vsock<HostPeers>>,
    host: Arc<OwnedFd>,
    /// Whether events of the host's sockets are taken: not while the VM is paused.
    watched: bool,
    /// Whether it has been said that they cannot be.
    has_complained: bool,
    timer: Timer,
    /// The deadline that the timer is set for.
    armed: Option<Duration>,
}

/// What there is to do in a turn.
enum Cause {
    Queue(usize),
    Host,
    Timer,
}

impl VsockEvents {
    /// The events of a device and of its sockets.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(
        device: &Shared<Vsock<HostPeers>>,
        queues: QueueEvents<Vsock<HostPeers>>,
    ) -> std::io::Result<Self> {
        let host = device
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .device()
            .peers()
            .events();
        let timer = Timer::new()?;
        Ok(Self { queues, host, watched: false, has_complained: false, timer, armed: None })
    }

    fn host_events(&self) -> Events {
        Events::with_data_raw(self.host.as_raw_fd(), HOST, EventSet::IN)
    }

    fn watch(&mut self, ops: &mut EventOps<'_>) {
        match ops.add(self.host_events()) {
            Ok(()) => (self.watched, self.has_complained) = (true, false),
            // It is tried again whenever the guest has something to say.
            Err(_) if self.has_complained => {}
            Err(error) => {
                self.has_complained = true;
                say(&format!(
                    "no process of the host reaches the guest's sockets, as they cannot be watched: {error}"
                ));
            }
        }
    }

    /// The VM is paused. The doorbells ring when it is resumed.
    fn stand_still(&mut self, cause: &Cause, ops: &mut EventOps<'_>) {
        // It stays readable, and would wake the thread again at once.
        if matches!(cause, Cause::Host) && ops.remove(self.host_events()).is_ok() {
            self.watched = false;
        }
        self.armed = None;
    }

    fn take_turn(&mut self, cause: &Cause) {
        let (now, deadline) = self.queues.with(|transport| {
            match cause {
                Cause::Queue(queue) => {
                    if transport.serve(*queue) == Served::More {
                        transport.notify(*queue);
                    }
                }
                Cause::Host => host::take_events(transport.device_mut()),
                Cause::Timer => {
                    transport.device_mut().expire();
                    transport.device_mut().peers_mut().expire();
                    if transport.device().awaits_driver() && transport.serve(EVENT) == Served::More
                    {
                        transport.notify(EVENT);
                    }
                }
            }
            if transport.device().has_packets() && transport.serve(RX) == Served::More {
                transport.notify(RX);
            }
            // Others get their turn first, as the guest can send without end.
            if transport.device_mut().resume_packets() {
                transport.notify(TX);
            }
            let device = transport.device();
            let deadline = device.next_deadline().into_iter().chain(device.peers().next_deadline());
            (device.peers().now(), deadline.min())
        });
        self.arm(now, deadline);
    }

    fn arm(&mut self, now: Duration, deadline: Option<Duration>) {
        let Some(deadline) =
            deadline.filter(|deadline| self.armed.is_none_or(|armed| *deadline < armed))
        else {
            return;
        };
        // A moment more, so that it is due then; zero would stop the timer.
        let after = deadline.saturating_sub(now) + Duration::from_millis(1);
        if self.timer.once(after).is_ok() {
            self.armed = Some(deadline);
        }
    }
}

impl MutEventSubscriber for VsockEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.init(ops);
        self.watch(ops);
        if let Err(error) = ops.add(Events::with_data(&self.timer, TIMER, EventSet::IN)) {
            say(&format!("connections to the guest's sockets wait without end: {error}"));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let cause = match events.data() {
            HOST => Cause::Host,
            TIMER => {
                self.timer.take();
                self.armed = None;
                Cause::Timer
            }
            _ => match self.queues.signalled(&events) {
                Some(queue) => Cause::Queue(queue),
                None => return,
            },
        };
        let gate = self.queues.gate().clone();
        let Some(_turn) = gate.enter() else { return self.stand_still(&cause, ops) };
        if !self.watched {
            self.watch(ops);
        }
        self.take_turn(&cause);
    }
}

#[cfg(test)]
mod tests;
