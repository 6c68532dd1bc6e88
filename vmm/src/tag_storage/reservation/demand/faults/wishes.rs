//! What loads chunks asks for: slots for those that are touched, as for any touch, and for others when no touch waits.

use std::time::Instant;

use rustix::process::Pid;

use super::Faults;
use crate::tag_storage::chunk::{ChunkIndex, one};
use crate::tag_storage::reservation::backend::Answer;
use crate::tag_storage::reservation::chunk_table::State;
use crate::tag_storage::reservation::demand::loader::{Purpose, Requests, Unreserved, Wish};

impl Faults {
    /// Takes what has been asked for since the last time.
    pub(super) fn take_requests(&mut self) {
        let Requests { touches, wishes, thinned } = self.shared.loader.take();
        for (chunk, thread) in touches {
            self.touched_unloaded(chunk, thread);
        }
        for chunk in thinned {
            self.shared.free_if_absent(chunk);
        }
        self.wishes.extend(wishes);
    }

    /// A thread waits for a chunk that is not loaded.
    fn touched_unloaded(&mut self, chunk: ChunkIndex, thread: Option<Pid>) {
        self.shared.counters.touches.add(1);
        let state = self.shared.table().state(chunk);
        let waits = (state == Some(State::Unloaded)).then_some(chunk);
        self.shared.threads.set(thread, waits);
        if waits.is_none() {
            // Its slot has come since, and it may even be loaded.
            self.shared.loader.grant(chunk);
        } else if !self.is_pending(chunk) {
            // No walk through new memory leads to what the guest has used before.
            self.pend_with(chunk, one(chunk));
        }
    }

    /// Takes the answer to the wish under way, if it is there. Whether none is awaited then.
    pub(super) fn take_answer_to_wish(&mut self) -> bool {
        let Some(wish) = self.wish.take() else { return true };
        match self.shared.pool.answer() {
            Some(answer) => self.end_wish(wish, answer),
            None => self.wish = Some(wish),
        }
        self.wish.is_none()
    }

    /// Reserves for chunks that are not touched, as long as no touch waits.
    pub(super) fn serve_wishes(&mut self) {
        if self.lack.is_some() {
            for wish in self.wishes.drain(..) {
                wish.answer(Err(Unreserved::Short));
            }
        }
        while self.pending.is_empty() && self.wish.is_none() {
            let Some(wish) = self.wishes.pop_front() else { break };
            self.begin_wish(wish);
        }
    }

    fn begin_wish(&mut self, wish: Wish) {
        if self.shared.table().state(wish.chunk) != Some(State::Unloaded) {
            wish.answer(Ok(()));
            return;
        }
        if wish.purpose == Purpose::Ahead && !self.ahead.has_plenty(&self.shared) {
            wish.answer(Err(Unreserved::Short));
            return;
        }
        self.asked_at = Instant::now();
        self.shared.counters.requests.add(1);
        match self.shared.pool.request(&[wish.chunk], 1) {
            Some(answer) => self.end_wish(wish, answer),
            None => self.wish = Some(wish),
        }
    }

    fn end_wish(&mut self, wish: Wish, answer: Answer) {
        match answer {
            Ok(_) => {
                let chunk = wish.chunk;
                if !self.shared.begin_load(chunk) {
                    self.shared.pool.free(&[chunk]);
                    wish.answer(Ok(()));
                    return;
                }
                // It may have been touched since, and who has asked may wait no longer: its slot is there for both.
                let is_touched = self.end_waits(|waits| waits == chunk);
                let is_heard = wish.answer(Ok(()));
                if is_touched || !is_heard {
                    self.shared.loader.grant(chunk);
                }
            }
            // What is ahead may be what is missing.
            Err(_) if wish.purpose == Purpose::Save && self.yield_ahead() > 0 => {
                self.wishes.push_front(wish);
            }
            Err(why) => {
                wish.answer(Err(Unreserved::Refused(why)));
            }
        }
    }
}

impl Wish {
    /// Whether who has asked waits still.
    fn answer(self, answer: Result<(), Unreserved>) -> bool {
        self.reply.try_send(answer).is_ok()
    }
}
