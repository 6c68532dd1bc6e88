//! A thread that keeps taking, checking and freeing memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::{Value, json};

use super::held::Held;
use crate::machine;

/// Of so many pieces one has tags, where the machine has MTE.
const WITH_TAGS: u64 = 4;

/// Bytes taken at a time: a huge page.
const PIECE: usize = 2 << 20;

/// A thread that presses on the machine's memory.
#[derive(Debug)]
pub(super) struct Pressure {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Done, String>>,
}

/// What the thread has done.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    pieces: u64,
    wrong: usize,
}

impl Pressure {
    /// Starts it, to hold at most `most` bytes.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(most: usize) -> Result<Self, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("pressure".into())
            .spawn(move || press(most / PIECE, &stopped))
            .map_err(|error| format!("no thread for the pressure: {error}"))?;
        Ok(Self { stop, thread })
    }

    /// Ends it; what it held is free when this returns.
    ///
    /// # Errors
    /// What the thread met with.
    pub(super) fn stop(self) -> Result<Value, String> {
        self.stop.store(true, Ordering::Relaxed);
        let done = self.thread.join().map_err(|_| "the pressure panicked".to_owned())??;
        Ok(json!({ "pieces": done.pieces, "wrong": done.wrong }))
    }
}

/// Holds up to `most` pieces: all but the newest are given back once that many are held.
fn press(most: usize, stop: &AtomicBool) -> Result<Done, String> {
    let mut held = VecDeque::new();
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        // Tags are checked granule by granule, which takes long.
        let is_tagged = machine::has_mte() && done.pieces.is_multiple_of(WITH_TAGS);
        held.push_back(if is_tagged { Held::tagged(PIECE)? } else { Held::touched(PIECE)? });
        done.pieces = done.pieces.saturating_add(1);
        while held.len() > most {
            done.wrong = done.wrong.saturating_add(held.pop_front().map_or(0, wrong));
        }
        // Half of a processor is enough to press, and the driver that is to work beside it needs one as well.
        thread::sleep(started.elapsed());
    }
    let left: usize = held.into_iter().map(wrong).sum();
    done.wrong = done.wrong.saturating_add(left);
    Ok(done)
}

/// What is wrong with a piece, and whether it came with the data or tags of others.
fn wrong(held: Held) -> usize {
    held.wrong().saturating_add(usize::from(!held.fresh()))
}
