//! Which parts of guest memory are a template's, and what becomes of them as the guest gives them back.
//!
//! A private mapping of a file shows the file again when its pages are dropped, data and tags. So a part that is given
//! back gets anonymous memory of its own instead. Each such overlay costs mappings, of which a process has a bounded
//! number (vm.max_map_count, 65530 by default): beyond a bound, and where the host refuses one, the part is cleared in
//! place.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arch::layout::CHUNK;
use arch::units::Bytes;

/// The most extents of a template: they and what lies between them take 8193 mappings.
pub const MOST_EXTENTS: usize = 4096;

/// The most overlays. Each takes at most two mappings more, one of its own and the rest of what it lies in; whether it
/// merges with a neighbour is for the kernel to say. With those of the extents there are 41 thousand.
const MOST_OVERLAYS: usize = 16384;

/// One of so many is kept for parts of a chunk and more, as a guest may give back single pages first.
const FOR_CHUNKS: usize = 4;

/// Mappings that are left to the process: its code, its heap, the stacks of its threads and what its devices map are
/// some hundreds.
const OF_THE_PROCESS: u64 = 1024;

/// What can be done to guest memory.
pub(super) trait Overlay {
    /// Lays anonymous memory over a part, of zero data and zero tags.
    ///
    /// # Errors
    /// What the host answers. The part is as it was then, or reads zero.
    fn replace(&self, part: &Range<u64>) -> io::Result<()>;

    /// Writes zero data and zero tags.
    ///
    /// # Errors
    /// What the host answers.
    fn clear(&self, part: &Range<u64>) -> io::Result<()>;

    /// Gives the pages of anonymous memory back.
    ///
    /// # Errors
    /// What the host answers.
    fn drop_pages(&self, part: &Range<u64>) -> io::Result<()>;
}

/// The parts of guest memory that are a template's. What is no part of it never becomes one.
#[derive(Debug)]
pub(super) struct TemplateParts {
    parts: Mutex<Parts>,
    /// The most overlays.
    most: usize,
}

impl TemplateParts {
    /// These extents, in order and apart from one another, in a process that may have so many mappings.
    pub(super) fn new(extents: &[Range<u64>], mappings: u64) -> Self {
        let taken = OF_THE_PROCESS + 2 * extents.len() as u64 + 1;
        let most = usize::try_from(mappings.saturating_sub(taken) / 2).unwrap_or(MOST_OVERLAYS);
        let parts = extents.iter().map(|extent| (extent.start, extent.end)).collect();
        let parts = Mutex::new(Parts { parts, overlays: 0 });
        Self { parts, most: most.min(MOST_OVERLAYS) }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of guest memory they are.
    pub(super) fn size(&self) -> Bytes {
        Bytes::new(self.lock().parts.iter().map(|(start, end)| end - start).sum())
    }

    /// The pieces of a range, in order, each with whether it is the template's.
    pub(super) fn pieces(&self, range: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        self.lock().pieces(range)
    }

    /// Gives a range back, which reads zero then, tags as well. Returns how much of it takes no memory of this process
    /// any more.
    ///
    /// # Errors
    /// What the host answers: some of the range may be as it was.
    pub(super) fn discard(&self, range: &Range<u64>, memory: &impl Overlay) -> io::Result<Bytes> {
        let mut gone = 0;
        // Memory changes without the lock: the more pages the longer that takes, and others ask for the parts. Another
        // thread that gives the same back meanwhile lays one more overlay over it, or clears what is zero.
        for (part, is_template) in self.pieces(range) {
            let length = part.end - part.start;
            if !is_template {
                memory.drop_pages(&part)?;
            } else if !self.may_overlay(length) || self.replace(&part, memory).is_err() {
                memory.clear(&part)?;
                continue;
            }
            gone += length;
        }
        Ok(Bytes::new(gone))
    }

    /// Takes an overlay, if there is one for so much.
    fn may_overlay(&self, length: u64) -> bool {
        let kept = if length < CHUNK.get() { self.most / FOR_CHUNKS } else { 0 };
        let mut parts = self.lock();
        let may = parts.overlays < self.most - kept;
        parts.overlays += usize::from(may);
        may
    }

    fn replace(&self, part: &Range<u64>, memory: &impl Overlay) -> io::Result<()> {
        let replaced = memory.replace(part);
        let mut parts = self.lock();
        match replaced {
            // Not before: it would show the template again if its pages were dropped.
            Ok(()) => parts.remove(part),
            Err(_) => parts.overlays -= 1,
        }
        replaced
    }
}

/// Offsets, apart from one another, in order.
#[derive(Debug)]
struct Parts {
    /// Start and end.
    parts: BTreeMap<u64, u64>,
    overlays: usize,
}

impl Parts {
    fn pieces(&self, range: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let before = self.parts.range(..=range.start).next_back();
        let after = self.parts.range(range.start.saturating_add(1)..range.end.max(range.start + 1));
        for (start, end) in before.into_iter().chain(after) {
            let part = (*start).max(at)..(*end).min(range.end);
            if part.is_empty() {
                continue;
            }
            if at < part.start {
                pieces.push((at..part.start, false));
            }
            at = part.end;
            pieces.push((part, true));
        }
        if at < range.end {
            pieces.push((at..range.end, false));
        }
        pieces
    }

    /// Takes a range out.
    fn remove(&mut self, range: &Range<u64>) {
        for (piece, _) in self.pieces(range).into_iter().filter(|(_, is_template)| *is_template) {
            self.remove_piece(&piece);
        }
    }

    /// Takes a piece out of the part that it lies in.
    fn remove_piece(&mut self, piece: &Range<u64>) {
        let Some((&start, &end)) = self.parts.range(..=piece.start).next_back() else { return };
        self.parts.remove(&start);
        for rest in [start..piece.start, piece.end..end] {
            if !rest.is_empty() {
                self.parts.insert(rest.start, rest.end);
            }
        }
    }
}

#[cfg(test)]
mod tests;
