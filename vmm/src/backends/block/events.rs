//! A disk's queue as events of its worker.

use std::sync::PoisonError;

use devices::virtio::block::{Block, InFlight, Request, Status};
use devices::virtio::mmio::Served;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::io::Error;
use super::{Control, DiskSlot};
use crate::backends::queues::{QUEUES_END, QueueEvents};
use crate::backends::rate_limiter::SharedLimiter;
use crate::error::{chain, say};
use crate::memory::GuestRam;

/// The number of the limiter's event.
const LIMITER: u32 = QUEUES_END;

/// Serves a disk in its thread.
pub struct BlockEvents {
    queues: QueueEvents<Block>,
    name: String,
    slot: DiskSlot,
    limiter: SharedLimiter,
    memory: GuestRam,
    in_flight: InFlight,
    /// The failure that was printed last: a disk that fails does so again and again.
    said: Option<String>,
}

impl BlockEvents {
    /// The events of a disk's queue.
    pub fn new(control: &Control, queues: QueueEvents<Block>, memory: GuestRam) -> Self {
        let (slot, limiter) = control.parts();
        let device = control.device.lock().unwrap_or_else(PoisonError::into_inner);
        let in_flight = device.device().in_flight();
        drop(device);
        let name = control.id().to_owned();
        Self { queues, name, slot, limiter, memory, in_flight, said: None }
    }

    /// Does what is in the queue, a batch at a time. Whether there is more.
    fn batch(&mut self) -> bool {
        let gate = self.queues.gate().clone();
        let Some(_turn) = gate.enter() else { return false };
        let (served, requests) = self.queues.with(|transport| {
            let served = transport.serve(0);
            (served, transport.device_mut().take())
        });
        if !requests.is_empty() {
            let file = self.slot.file();
            let count = requests.len();
            let done: Vec<(Request, Status)> = requests
                .into_iter()
                .map(|request| {
                    let outcome = file.perform(request.operation(), &self.memory);
                    (request, self.status(outcome))
                })
                .collect();
            self.in_flight.done(count);
            self.queues.with(|transport| {
                transport.with_queue(0, |device, ring| device.complete(ring, done))
            });
        }
        served == Served::More
    }

    fn status(&mut self, outcome: Result<(), Error>) -> Status {
        let Err(error) = outcome else {
            self.said = None;
            return Status::Ok;
        };
        let text = chain(&error);
        if self.said.as_ref() != Some(&text) {
            say(&format!("the disk {} failed, and the guest sees an I/O error: {text}", self.name));
            self.said = Some(text);
        }
        Status::IoError
    }
}

impl MutEventSubscriber for BlockEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.queues.init(ops);
        let watched = ops.add(Events::with_data_raw(self.limiter.timer(), LIMITER, EventSet::IN));
        if let Err(error) = watched {
            say(&format!("the disk {} may get stuck at its limits: {error}", self.name));
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let due = match events.data() {
            LIMITER => self.limiter.take_timer(),
            _ => self.queues.signalled(&events).is_some(),
        };
        if due {
            while self.batch() {}
        }
    }
}
