//! A disk's queue as events of its worker.

use std::collections::BTreeSet;

use devices::virtio::block::{Block, InFlight, Request, Status};
use devices::virtio::mmio::Served;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::io::Error;
use super::{Control, DiskSlot};
use crate::backends::lookout::Lookout;
use crate::backends::queues::{QUEUES_END, QueueEvents};
use crate::backends::rate_limiter::SharedLimiter;
use crate::error::{chain, say};
use crate::memory::GuestRam;

/// Most batches between two looks at the events, among them the end of the thread: a guest can have its requests write
/// the next ones into its queue.
const MOST_BATCHES: usize = 16;

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
    lookout: Lookout,
    failures: Failures,
}

impl BlockEvents {
    /// The events of a disk's queue.
    pub fn new(control: &Control, queues: QueueEvents<Block>, memory: GuestRam) -> Self {
        Self {
            queues,
            name: control.id().to_owned(),
            slot: control.slot.clone(),
            limiter: control.limiter.clone(),
            memory,
            in_flight: control.in_flight.clone(),
            lookout: Lookout::default(),
            failures: Failures::default(),
        }
    }

    /// Does what is in the queue, until there is no more.
    fn serve(&mut self) {
        let mut looks = self.lookout.begin();
        for _ in 0..MOST_BATCHES {
            let requests = self.batch(looks);
            self.lookout.brought(requests.unwrap_or(0));
            let Some(requests) = requests else { return };
            if looks {
                looks = self.lookout.found(requests);
            }
            if looks && requests > 0 && !self.lookout.look_again() {
                break;
            }
        }
        self.queues.signal(0);
    }

    /// Does a batch of what is in the queue. How many requests there were, or `None` when there are no more, and the
    /// guest notifies of what comes next. With `looks`, it takes another batch to find that there are no more.
    fn batch(&mut self, looks: bool) -> Option<u64> {
        let gate = self.queues.gate().clone();
        let _turn = gate.enter()?;
        let resized = self.slot.take_size();
        let (served, requests) = self.queues.with(|transport| {
            if let Some(sectors) = resized {
                transport.device_mut().resize(sectors);
                transport.config_changed();
            }
            let served = if looks { transport.serve_part(0) } else { transport.serve(0) };
            (served, transport.device_mut().take())
        });
        let count = requests.len();
        if count > 0 {
            let file = self.slot.file();
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
        (served == Served::More).then_some(count as u64)
    }

    fn status(&mut self, outcome: Result<(), Error>) -> Status {
        let Err(error) = outcome else { return Status::Ok };
        if let Some(text) = self.failures.first(&error) {
            say(&format!("the disk {} failed, and the guest sees an I/O error: {text}", self.name));
        }
        Status::IoError
    }
}

/// The failures of a disk that were printed, each once: a guest can repeat any of them as often as it likes. There
/// are as many as the host has error numbers.
#[derive(Debug, Default)]
struct Failures(BTreeSet<String>);

impl Failures {
    /// What to print of a failure, if it is the first of its kind.
    fn first(&mut self, error: &Error) -> Option<String> {
        let text = chain(error);
        self.0.insert(text.clone()).then_some(text)
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
            self.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_failure_is_printed_once_whatever_comes_between() {
        let full = || Error::Host(io::Error::from_raw_os_error(libc::ENOSPC));
        let mut failures = Failures::default();

        assert!(failures.first(&Error::Buffer).is_some());
        assert!(failures.first(&full()).is_some_and(|text| text.contains("space")));
        for _ in 0..3 {
            assert_eq!(failures.first(&Error::Buffer), None);
            assert_eq!(failures.first(&full()), None);
        }
    }
}
