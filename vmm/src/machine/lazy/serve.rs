//! The thread that loads chunks: those that are touched, and between them those of the working set.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use arch::layout::CHUNK;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Error, Shared};
use crate::error::{chain, say};
use crate::snapshot::{Recorder, WorkingSet};
use crate::sys::uffd::Fault;
use crate::tag_storage::ChunkIndex;

/// No time at all.
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// In which order chunks are loaded.
#[derive(Default)]
pub(super) struct Order {
    /// Those that are loaded while no thread waits, the next one last.
    pub(super) ahead: Vec<u64>,
    /// Those that were loaded for a thread, if that is recorded.
    pub(super) touched: Option<Vec<u64>>,
    /// Those that threads wait for and that have no tag storage yet.
    pub(super) asked: BTreeSet<u64>,
}

impl Shared {
    /// Loads what is touched until it is stopped, and writes a record of that if there is to be one.
    pub(super) fn run(&self, working_set: WorkingSet) {
        let (mut order, recorder) = match working_set {
            WorkingSet::Known(mut ahead) => {
                ahead.reverse();
                (Order { ahead, ..Order::default() }, None)
            }
            WorkingSet::Recording(recorder) => {
                (Order { touched: Some(Vec::new()), ..Order::default() }, Some(recorder))
            }
        };
        let failure = match catch_unwind(AssertUnwindSafe(|| self.serve(&mut order))) {
            Ok(Ok(())) => return write(recorder, &order),
            Ok(Err(error)) => chain(&error),
            Err(_) => "the thread that loads it panicked; please report this".to_owned(),
        };
        let mut chunks = self.lock();
        self.report(&mut chunks, failure);
        self.release_empty(&chunks);
        for (chunk, _) in std::mem::take(&mut chunks.pending) {
            self.poison(chunk);
        }
        self.count(&chunks);
    }

    fn serve(&self, order: &mut Order) -> Result<(), Error> {
        let mut faults = Vec::new();
        loop {
            // While a touch waits for tag storage, nothing else gets any.
            let is_idle = order.ahead.is_empty() || !order.asked.is_empty();
            let patience = if is_idle { None } else { Some(&AT_ONCE) };
            let told = self.slots.as_ref().map_or(self.stop.as_fd(), |slots| slots.inbox.as_fd());
            let mut ready = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(told, PollFlags::IN),
            ];
            match poll(&mut ready, patience) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::Host(errno.into())),
                Ok(_) if !ready[0].revents().is_empty() => return Ok(()),
                // No thread waits.
                Ok(0) => self.load_next(order),
                Ok(_) => {}
            }
            self.load_granted(order);
            self.uffd.read(&mut faults)?;
            for fault in faults.drain(..) {
                self.touched(order, &fault);
            }
        }
    }

    /// A thread waits for a chunk.
    fn touched(&self, order: &mut Order, fault: &Fault) {
        let offset = fault.address.saturating_sub(self.ram.host_address());
        let chunk = offset / CHUNK.get();
        self.faults.fetch_add(1, Ordering::Relaxed);
        if let Some(touched) = &mut order.touched
            && self.is_pending(chunk)
            && !order.asked.contains(&chunk)
        {
            touched.push(chunk);
        }
        if let Some(slots) = &self.slots
            && !slots.reservation.touched(ChunkIndex(chunk), fault.thread)
        {
            order.asked.insert(chunk);
            return;
        }
        // An error has been reported; the VM ends.
        let _ = self.load(chunk);
    }

    /// Loads those chunks that have got their tag storage since the last look.
    fn load_granted(&self, order: &mut Order) {
        let Some(slots) = &self.slots else { return };
        let mut told = slots.inbox.take();
        if told.all {
            told.granted.extend(order.asked.iter().copied());
        }
        for chunk in told.granted {
            order.asked.remove(&chunk);
            // An error has been reported; the VM ends.
            let _ = self.load(chunk);
        }
    }

    /// Loads the next chunk of the working set. One that cannot be read or has no tag storage is left as it is, and so are
    /// those after it: the guest may never touch them.
    pub(super) fn load_next(&self, order: &mut Order) {
        let Some(chunk) = order.ahead.pop().filter(|chunk| self.is_pending(*chunk)) else { return };
        let reserved = self.slots.as_ref().map_or(Ok(()), |slots| slots.reserve_ahead(chunk));
        match reserved.and_then(|()| self.load_unless(chunk, || self.is_pending(chunk))) {
            Ok(()) => {
                self.ahead.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                say(&format!(
                    "memory of the snapshot is not read before it is touched any more: {}",
                    chain(&error)
                ));
                order.ahead.clear();
            }
        }
    }
}

/// Writes a record. It is for another time: this VM has its end whatever becomes of it.
fn write(recorder: Option<Recorder>, order: &Order) {
    let touched = order.touched.as_deref().unwrap_or_default();
    if let Some(Err(error)) = recorder.map(|recorder| recorder.write(touched)) {
        say(&format!("the working set is not recorded: {}", chain(&error)));
    }
}
