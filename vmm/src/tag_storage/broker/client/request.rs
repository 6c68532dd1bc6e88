//! Requests that are under way, and what is freed.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{Connection, unexpected};
use super::{Client, Error, Shared, State, lock};
use crate::tag_storage::broker::protocol::wire::{Reply, Request};
use crate::tag_storage::chunk::ChunkIndex;
use crate::tag_storage::pool::{SlotIndex, at_most, tags_of};

/// How long the broker has for an answer that needs no reservation, or for the next part of one. A broker that takes
/// longer is stopped or stuck, and is treated as gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How much longer than the pool takes at most: the broker may have to wait for a processor, and for others'
/// requests before this one.
const MARGIN: Duration = Duration::from_secs(20);

/// How often a thread that waits for an answer looks whether the broker has taken too long.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A request that the broker has not answered yet.
#[derive(Debug)]
pub(super) struct PendingRequest {
    chunks: Vec<ChunkIndex>,
    /// For so many of them at least, the first.
    least: usize,
    /// Those that the broker has given so far.
    slots: Vec<SlotIndex>,
    is_sent: bool,
    /// Since when the broker has said nothing.
    since: Instant,
}

impl PendingRequest {
    fn new(chunks: &[ChunkIndex], least: usize) -> Self {
        let (chunks, slots) = (chunks.to_vec(), Vec::new());
        Self { chunks, least, slots, is_sent: false, since: Instant::now() }
    }

    fn message(&self) -> Request {
        // No pool has so many: it says what it has.
        let [chunks, least] =
            [self.chunks.len(), self.least].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        Request::Reserve { chunks, least }
    }

    fn is_overdue(&self) -> bool {
        self.since.elapsed() >= self.patience()
    }

    /// The first part comes when all chunks have been reserved, the others at once.
    fn patience(&self) -> Duration {
        if !self.slots.is_empty() {
            return PATIENCE;
        }
        at_most(u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)).saturating_add(MARGIN)
    }

    /// Takes a part of the answer; `true` with the last one.
    fn take(&mut self, left: u32, slots: Vec<SlotIndex>) -> Result<bool, Error> {
        let is_first = self.slots.is_empty();
        self.slots.extend(slots);
        self.since = Instant::now();
        let promised = self.slots.len() as u64 + u64::from(left);
        // All or the least, and no more and no less than it has begun to give.
        if is_first && promised == self.least as u64 {
            self.chunks.truncate(self.least);
        }
        if promised != self.chunks.len() as u64 {
            let text = format!("it gave {promised} slots, not {}", self.chunks.len());
            return Err(Error::Answer(text));
        }
        Ok(left == 0)
    }
}

/// The descriptor that becomes ready when a request can make progress, and for what.
#[derive(Debug)]
pub struct Awaited {
    /// The descriptor.
    pub socket: Arc<OwnedFd>,
    /// For what it becomes ready.
    pub events: PollFlags,
}

impl Client {
    /// Asks for tag storage for all of these chunks, none of which has any, for the first `least` of them, or for none. It
    /// does not wait: [`answer`](Self::answer) comes later.
    ///
    /// # Errors
    /// When the broker cannot be asked now; then there is no answer.
    pub fn request(&self, chunks: &[ChunkIndex], least: usize) -> Result<(), Error> {
        let shared = &self.0;
        let mut state = shared.state();
        if state.connection.is_none() || state.given_up {
            shared.look_for_another(&mut state);
            let (path, last_error) = (shared.path.clone(), state.last_error.clone());
            return Err(Error::Detached { path, last_error });
        }
        if state.slots.owed() > 0 || state.adopting {
            state.settle_now = true;
            shared.changed.notify_all();
            shared.look_for_another(&mut state);
            return Err(match state.slots.owed() {
                0 => Error::Adopting,
                owed => Error::Owed { owed: tags_of(owed), supply: state.terms.supply },
            });
        }
        if state.request.is_some() {
            return Err(Error::Busy);
        }
        state.request = (!chunks.is_empty()).then(|| PendingRequest::new(chunks, least));
        shared.flush(&mut state);
        Ok(())
    }

    /// The answer to the request, once there is one: how many of its chunks have tag storage now. It does not wait.
    pub fn answer(&self) -> Option<Result<usize, Error>> {
        let mut state = self.0.state();
        let connection = state.connection.clone().filter(|_| !state.given_up);
        let (Some(connection), Some(_)) = (connection, &state.request) else {
            // It was lost with its connection, or is of no interest any more.
            state.request = None;
            return Some(Err(Error::Lost { path: self.0.path.clone(), source: None }));
        };
        self.0.flush(&mut state);
        match self.0.receive(&mut state, &connection) {
            Ok(None) => None,
            Ok(Some(count)) => Some(Ok(count)),
            Err(error) => {
                state.request = None;
                drop(state);
                // In any other case the broker and this VM no longer agree on what it holds.
                if !matches!(error, Error::Refused(_)) {
                    self.0.detach(&connection);
                }
                Some(Err(error))
            }
        }
    }

    /// What to wait for before the next look for an [`answer`](Self::answer).
    pub fn awaited(&self) -> Option<Awaited> {
        let state = self.0.state();
        let is_sent = state.request.as_ref()?.is_sent;
        let events = if is_sent { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        Some(Awaited { socket: state.connection.as_ref()?.socket().clone(), events })
    }

    /// Reserves tag storage for all of these chunks, or for none of them.
    ///
    /// # Errors
    /// When the broker refuses or cannot be asked; then nothing is reserved.
    pub fn reserve(&self, chunks: &[ChunkIndex]) -> Result<(), Error> {
        self.reserve_at_least(chunks, chunks.len()).map(drop)
    }

    /// As [`request`](Self::request), and waits for the answer.
    ///
    /// # Errors
    /// When the broker refuses or cannot be asked; then nothing is reserved.
    pub fn reserve_at_least(&self, chunks: &[ChunkIndex], least: usize) -> Result<usize, Error> {
        let _waiting = lock(&self.0.request_lock);
        self.request(chunks, least)?;
        if chunks.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(answer) = self.answer() {
                return answer;
            }
            if let Some(Awaited { socket, events }) = self.awaited() {
                // It fails when a signal comes.
                let _ = poll(&mut [PollFd::new(&socket, events)], Some(&LOOK_EVERY));
            }
        }
    }

    /// Frees the tag storage of those of these chunks that have some.
    pub fn free(&self, chunks: &[ChunkIndex]) {
        let mut state = self.0.state();
        let state = &mut *state;
        // While the VM reconnects there is no connection yet, and the broker may have the slot already.
        state.freed.extend(chunks.iter().filter_map(|chunk| state.slots.remove(*chunk)));
        self.0.flush(state);
    }
}

impl Shared {
    /// Sends as much of what waits to be sent as there is room for: what is freed, and then the request, which
    /// may need it.
    pub(super) fn flush(&self, state: &mut State) {
        let Some(connection) = state.connection.clone() else { return };
        connection.free_now(&mut state.freed);
        let room = state.freed.is_empty();
        if let Some(request) = &mut state.request
            && !request.is_sent
            && room
        {
            request.is_sent = connection.send_now(&request.message());
        }
        self.await_room(state, &connection, !room);
    }

    /// Takes what has come of the answer; with the last part, how many chunks it is for.
    fn receive(&self, state: &mut State, connection: &Connection) -> Result<Option<usize>, Error> {
        while let Some(request) = &mut state.request {
            match connection.receive_now(&self.path)? {
                Some(Reply::Reserved { left, slots }) => {
                    if request.take(left, slots)? {
                        return Ok(Some(self.reserved(state)));
                    }
                }
                Some(other) => return Err(unexpected(&other)),
                None if request.is_overdue() => return Err(connection.timed_out(&self.path)),
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Assigns the slots, and returns how many it is.
    fn reserved(&self, state: &mut State) -> usize {
        let Some(PendingRequest { chunks, slots, .. }) = state.request.take() else { return 0 };
        let count = slots.len();
        for (chunk, slot) in chunks.into_iter().zip(slots) {
            state.freed.extend(state.slots.insert(chunk, slot));
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_longer_than_the_pool_takes_at_most() {
        for count in [1, 100, 512, 1024, 1025, 1 << 20] {
            let request = PendingRequest::new(&vec![ChunkIndex(0); count], count);
            let most = at_most(u32::try_from(count).unwrap_or(u32::MAX));
            assert!(request.patience() >= most + MARGIN, "{count} chunks");
        }
    }
}
