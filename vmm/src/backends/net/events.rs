//! What makes a network device work: its doorbells, its port, its timers.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::virtio::mmio::Transport;
use devices::virtio::net::{Counters, Net, Progress, RECEIVE, TRANSMIT};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::port::{Port, Watch};
use crate::backends::lookout::Lookout;
use crate::backends::queues::{QUEUES_END, QueueEvents};
use crate::error::say;
use crate::memory::GuestRam;
use crate::sys::timer::Timer;

// What events are of that no doorbell has.
const PORT: u32 = QUEUES_END;
const RX_TIMER: u32 = QUEUES_END + 1;
const TX_TIMER: u32 = QUEUES_END + 2;
const RETRY: u32 = QUEUES_END + 3;

/// The first attempt to have a peer back comes so soon ...
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// ... each other after twice the time, but not more: a user who has started the peer again does not wait long.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What an event asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    pub(super) rx: bool,
    pub(super) tx: bool,
    pub(super) hung_up: bool,
    pub(super) retry: bool,
}

/// How long to wait before the next attempt to have a peer back.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    /// A peer is lost that was there for so long, and had something to say. One that leaves as soon as it comes, say a
    /// passt that cannot have its port, is not tried as often as one that was there.
    fn lost(&mut self, lasted: Duration, spoke: bool) {
        if lasted >= LAST_RETRY || spoke {
            self.0 = FIRST_RETRY;
        }
    }

    fn next(&mut self) -> Duration {
        let longer = LAST_RETRY.min(self.0 * 2);
        std::mem::replace(&mut self.0, longer)
    }
}

/// Serves a network device, on a worker.
pub struct NetEvents {
    queues: QueueEvents<Net<Port>>,
    counters: Arc<Counters>,
    lookout: Lookout,
    retry: Timer,
    backoff: Backoff,
    watched: Watch,
    /// Since when there is something to be watched, and how many frames had come from the host then.
    since: (Instant, u64),
}

impl NetEvents {
    /// Of the device whose queues these are.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(mut queues: QueueEvents<Net<Port>>) -> io::Result<Self> {
        let counters = queues.with(|transport| transport.device().counters());
        Ok(Self {
            queues,
            counters,
            lookout: Lookout::default(),
            retry: Timer::new()?,
            backoff: Backoff(FIRST_RETRY),
            watched: Watch::default(),
            since: (Instant::now(), 0),
        })
    }

    fn due(&mut self, events: &Events) -> Due {
        if let Some(queue) = self.queues.signalled(events) {
            return Due { rx: queue == RECEIVE, tx: queue == TRANSMIT, ..Due::default() };
        }
        match events.data() {
            PORT => {
                let set = events.event_set();
                let closed = EventSet::HANG_UP | EventSet::ERROR | EventSet::READ_HANG_UP;
                let hung_up = set.intersects(closed);
                Due {
                    rx: hung_up || set.contains(EventSet::IN),
                    tx: hung_up || set.contains(EventSet::OUT),
                    hung_up,
                    retry: false,
                }
            }
            RX_TIMER => {
                self.queues.with(|transport| transport.device_mut().port_mut().take_rx_timer());
                Due { rx: true, ..Due::default() }
            }
            TX_TIMER => {
                self.queues.with(|transport| transport.device_mut().port_mut().take_tx_timer());
                Due { tx: true, ..Due::default() }
            }
            RETRY => Due { retry: self.retry.take(), ..Due::default() },
            _ => Due::default(),
        }
    }

    /// A turn of the device, with its gate entered: what is to be watched then, and how many frames have passed in one
    /// direction, as a request and its answer are not many. With `looks` another turn follows one in which some have:
    /// notifications of frames to be sent are off until then, and it is not decided whether the driver is interrupted.
    pub(super) fn turn(&mut self, due: Due, looks: bool) -> (Watch, u64) {
        let Counters { rx_frames, tx_frames, .. } = &*self.counters;
        let passed = || [rx_frames, tx_frames].map(|frames| frames.load(Ordering::Relaxed));
        let before = passed();
        let (watch, sent) = self.queues.with(|transport| {
            let (mut came_back, mut sent) = (false, false);
            if due.retry {
                came_back = transport.device_mut().port_mut().reconnect();
            }
            if due.tx {
                transport.device_mut().port_mut().flush();
                sent = transmit(transport, looks);
            }
            // The host may have answered already.
            if due.rx || came_back || sent {
                let progress = match looks {
                    true => transport.with_queue_quietly(RECEIVE, Net::receive),
                    false => transport.with_queue(RECEIVE, Net::receive),
                };
                if progress == Some(Progress::More) {
                    transport.notify(RECEIVE);
                }
                // Without a driver, or without its buffers, the end of a stream is not read.
                let unread = matches!(progress, None | Some(Progress::Driver));
                if due.hung_up && unread {
                    transport.device_mut().port_mut().hung_up();
                }
            }
            let device = transport.device_mut();
            let up = device.port().is_up();
            if device.set_link(up) {
                transport.config_changed();
                if !up {
                    // Frames that wait for the peer are dropped: its descriptor has no events any more.
                    transmit(transport, false);
                }
            }
            (transport.device().port().watch(), sent)
        });
        let changes = passed().into_iter().zip(before).map(|(now, then)| now.wrapping_sub(then));
        // What was sent may have been dropped.
        (watch, changes.max().unwrap_or(0).max(sent.into()))
    }

    /// Watches what is to be watched, and closes a port whose peer has gone.
    fn watch(&mut self, wanted: Watch, ops: &mut EventOps<'_>) {
        match (self.watched.port, wanted.port) {
            (None, Some((descriptor, blocked))) => {
                if !add(ops, Events::with_data_raw(descriptor, PORT, edges(blocked))) {
                    // One that can be had again is tried later, when it may be watched.
                    self.watched = Watch { port: None, ..wanted };
                    if self.queues.with(|transport| transport.device_mut().port_mut().close()) {
                        self.try_later();
                    }
                    return;
                }
                self.since = (Instant::now(), self.counters.rx_frames.load(Ordering::Relaxed));
            }
            (Some((before, was_blocked)), Some((descriptor, blocked))) => {
                if before == descriptor && was_blocked != blocked {
                    let events = Events::with_data_raw(descriptor, PORT, edges(blocked));
                    if let Err(error) = ops.modify(events) {
                        say(&format!(
                            "a network device is slow, as its port cannot be watched: {error}"
                        ));
                    }
                }
            }
            (Some((before, _)), None) => {
                // It is open: it is closed below at the earliest.
                let _ = ops.remove(Events::empty_raw(before));
            }
            (None, None) => {}
        }
        self.watched = wanted;
        if wanted.lost && self.queues.with(|transport| transport.device_mut().port_mut().close()) {
            let (since, frames) = self.since;
            let spoke = self.counters.rx_frames.load(Ordering::Relaxed) != frames;
            self.backoff.lost(since.elapsed(), spoke);
            self.try_later();
        }
    }

    /// Does what is due, with `looks` before and after a yield. How many frames have passed, and how many of them in the
    /// last turn.
    fn serve(&mut self, due: Due, looks: bool, ops: &mut EventOps<'_>) -> (u64, u64) {
        let gate = self.queues.gate().clone();
        // A port's edge is not lost on a closed gate: its queues are served when it opens.
        let Some(turn) = gate.enter() else {
            if due.retry {
                self.try_later();
            }
            return (0, 0);
        };
        let (mut wanted, mut frames) = self.turn(due, looks);
        let mut last = frames;
        if looks {
            self.lookout.brought(frames);
            if frames > 0 {
                self.lookout.give_way();
                (wanted, last) = self.turn(Due { rx: true, tx: true, ..Due::default() }, true);
                self.lookout.brought(last);
                frames += last;
            }
            self.queues.with(|transport| {
                [RECEIVE, TRANSMIT].into_iter().for_each(|queue| transport.interrupt_for(queue));
            });
        }
        drop(turn);
        let was_up = self.watched.port.is_some();
        self.watch(wanted, ops);
        if due.retry && !was_up && self.watched.port.is_none() {
            self.try_later();
        }
        (frames, last)
    }

    fn try_later(&mut self) {
        if let Err(error) = self.retry.once(self.backoff.next()) {
            say(&format!("a network device stays without its peer, as it has no timer: {error}"));
        }
    }
}

/// A turn of transmitq, and another one soon if it has more. With `looks` the caller gives it that, and notifications
/// are off until then. Whether it does.
fn transmit(transport: &mut Transport<Net<Port>, GuestRam>, looks: bool) -> bool {
    let progress = match looks {
        true => transport.with_queue_quietly(TRANSMIT, Net::transmit_part),
        false => transport.with_queue(TRANSMIT, Net::transmit),
    };
    let more = progress == Some(Progress::More);
    if more && !looks {
        transport.notify(TRANSMIT);
    }
    more && looks
}

fn edges(blocked: bool) -> EventSet {
    let readable = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if blocked { readable | EventSet::OUT } else { readable }
}

/// Whether these are watched from now on.
fn add(ops: &mut EventOps<'_>, events: Events) -> bool {
    let added = ops.add(events);
    if let Err(error) = &added {
        say(&format!("the port of a network device cannot be watched: {error}"));
    }
    added.is_ok()
}

impl MutEventSubscriber for NetEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.init(ops);
        add(ops, Events::with_data_raw(self.retry.as_raw_fd(), RETRY, EventSet::IN));
        let ((rx, tx), wanted) = self.queues.with(|transport| {
            let port = transport.device().port();
            (port.timers(), port.watch())
        });
        add(ops, Events::with_data_raw(rx, RX_TIMER, EventSet::IN));
        add(ops, Events::with_data_raw(tx, TX_TIMER, EventSet::IN));
        self.watch(wanted, ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let mut due = self.due(&events);
        let mut looks = self.lookout.begin();
        loop {
            let (frames, last) = self.serve(due, looks, ops);
            if !looks || frames == 0 {
                return;
            }
            looks = self.lookout.found(frames);
            // A turn that finds none has notifications on again.
            if last == 0 {
                return;
            }
            if looks && !self.lookout.look_again() {
                return self.queues.signal(TRANSMIT);
            }
            due = Due { rx: true, tx: true, ..Due::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_leaves_as_soon_as_it_comes_is_tried_less_and_less_often() {
        let mut backoff = Backoff(FIRST_RETRY);
        let mut delays = Vec::new();
        for _ in 0..8 {
            backoff.lost(Duration::from_millis(10), false);
            delays.push(backoff.next().as_millis());
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);

        backoff.lost(LAST_RETRY, false);
        assert_eq!(backoff.next(), FIRST_RETRY);
        assert!(backoff.next() > FIRST_RETRY);
        backoff.lost(Duration::ZERO, true);
        assert_eq!(backoff.next(), FIRST_RETRY);
    }
}
