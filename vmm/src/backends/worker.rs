//! A thread for one device, with an event loop of its own: a slow disk or peer delays nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::say;
use crate::sys::thread::{self, Role};

/// What serves a device on a worker.
pub type WorkerEvents = Box<dyn MutEventSubscriber + Send>;

/// Bytes of stack: requests keep their data in guest memory.
const STACK: usize = 128 << 10;

/// How many events one wait returns at most.
const MOST_EVENTS: usize = 16;

/// How long the end of a VM waits for what a device has under way on the host, where a disk or the server behind
/// it may hang for ever. The guest does not run then: what is lost is as after a loss of power.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread that serves a device until it is dropped. It is joined then, if it ends: what it uses stays until it has
/// ended.
pub struct Worker {
    name: String,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
    /// [`PATIENCE`], which tests shorten.
    patience: Duration,
}

struct Stop {
    stopped: AtomicBool,
    event: EventFd,
}

impl Worker {
    /// Starts a thread of this name, of which the kernel shows 15 bytes.
    ///
    /// # Errors
    /// When the host has no descriptor or thread left.
    pub(crate) fn start(role: Role, name: &str, device: WorkerEvents) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let stop = Arc::new(Stop { stopped: AtomicBool::new(false), event });
        let mut events = EventManager::<WorkerEvents>::new_with_capacity(MOST_EVENTS)
            .map_err(|error| io::Error::other(error.to_string()))?;
        events.add_subscriber(Box::new(StopEvents(Arc::clone(&stop))));
        events.add_subscriber(device);
        let (stopped, called) = (Arc::clone(&stop), name.to_owned());
        let (end, ended) = channel::<()>();
        let body = move || {
            let _end = end;
            while !stopped.stopped.load(Ordering::Acquire) {
                if let Err(error) = events.run() {
                    return say(&format!(
                        "{called} is dead, as it cannot wait for events: {error}"
                    ));
                }
            }
        };
        let thread = thread::spawn(role, name, STACK, body)?;
        Ok(Self { name: name.to_owned(), stop, thread: Some(thread), ended, patience: PATIENCE })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.stopped.store(true, Ordering::Release);
        // A full event counter is an event as well.
        let _ = self.stop.event.write(1);
        if self.ended.recv_timeout(self.patience) == Err(RecvTimeoutError::Timeout) {
            return say(&format!(
                "{} waits for the host and is left: what the guest has not flushed may be lost",
                self.name
            ));
        }
        if let Some(thread) = self.thread.take() {
            // It has printed its panic.
            let _ = thread.join();
        }
    }
}

/// Wakes the thread so that it finds itself stopped.
struct StopEvents(Arc<Stop>);

impl MutEventSubscriber for StopEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0.event, EventSet::IN)) {
            say(&format!("a thread of a device cannot be stopped by an event: {error}"));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::Sender;

    use super::*;

    /// Says in which thread its event came.
    struct Says(EventFd, Sender<Option<String>>);

    impl MutEventSubscriber for Says {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.0.read().unwrap();
            self.1.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }
    }

    #[test]
    fn events_are_served_in_a_thread_of_that_name_until_the_worker_is_dropped() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (sender, said) = channel();
        let worker =
            Worker::start(Role::Disk, "disk-0", Box::new(Says(event.try_clone().unwrap(), sender)))
                .unwrap();

        event.write(1).unwrap();
        assert_eq!(said.recv().unwrap().as_deref(), Some("disk-0"));

        drop(worker);
        // Its thread has ended, and with it the sender.
        assert!(said.recv().is_err());
    }

    /// Serves an event for as long as its disk hangs.
    struct Hangs(EventFd, Sender<()>, Receiver<()>);

    impl MutEventSubscriber for Hangs {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.0.read().unwrap();
            self.1.send(()).unwrap();
            let _ = self.2.recv();
        }
    }

    #[test]
    fn a_thread_that_waits_for_the_host_does_not_keep_the_end_of_the_vm() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        let (sender, hangs) = channel();
        let (disk, hung) = channel();
        let mut worker =
            Worker::start(Role::Disk, "disk-0", Box::new(Hangs(event, sender, hung))).unwrap();
        hangs.recv().unwrap();
        worker.patience = Duration::ZERO;

        drop(worker);

        // What it uses is there, and goes when it ends.
        assert!(disk.send(()).is_ok());
        assert!(hangs.recv().is_err());
    }
}
