//! One borrower: where its pages on the node are, and moving them off it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use super::process::Process;
use crate::sys::numa::BATCH;

/// A process that may have pages on the node, and how far it has been searched.
pub(crate) struct BorrowerProcess {
    pub process: Box<dyn Process>,
    /// Mappings that had pages on the node when they were last listed, still to be searched; last one first.
    unsearched: Vec<Range<u64>>,
    /// Pages that would not move.
    stuck: BTreeSet<u64>,
}

/// How much one eviction may search and try, in calls that ask the kernel for the places of up to [`BATCH`]
/// pages or to move single ones: some tenths of a second. A borrower chooses how large and how sparse its
/// memory is, and how many pages of it will not move; the next request for its blocks tries again, and
/// continues where this ended.
const EFFORT: u32 = 4096;

/// What a list of a process's mappings costs beside such a call.
const LISTING: usize = 64;

/// What is left of the effort that one eviction may cost.
#[derive(Debug)]
pub(crate) struct Effort(u32);

impl Effort {
    pub(crate) fn new() -> Self {
        Self(EFFORT)
    }

    /// Whether nothing is left.
    pub(crate) fn is_spent(&self) -> bool {
        self.0 == 0
    }

    fn spend(&mut self, calls: usize) {
        self.0 = self.0.saturating_sub(u32::try_from(calls).unwrap_or(u32::MAX));
    }
}

/// Where pages come from and may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    /// The node to be emptied.
    pub from: u32,
    /// Where its pages may go, best first.
    pub to: &'a [u32],
    /// The page size.
    pub page: u64,
}

/// Why the moving stopped early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The process has gone, and its pages with it.
    Gone,
    /// No other node has room.
    Full(io::Error),
    /// The host refuses.
    Refused(io::Error),
}

/// What came of moving pages out of a few addresses.
struct Emptied {
    /// How many have gone.
    gone: u64,
    /// Whether there are some that have not been tried.
    more: bool,
    /// Why no more have gone.
    result: Result<(), Stop>,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // EINVAL: it is ending, and has no memory any more (mm/migrate.c, find_mm_struct).
            Some(libc::ESRCH | libc::ENOENT | libc::EINVAL) => Self::Gone,
            Some(libc::ENOMEM) => Self::Full(error),
            _ => Self::Refused(error),
        }
    }
}

impl BorrowerProcess {
    pub(crate) fn new(process: Box<dyn Process>) -> Self {
        Self { process, unsearched: Vec::new(), stuck: BTreeSet::new() }
    }

    /// How many of its pages would not move.
    pub(crate) fn stuck(&self) -> u64 {
        self.stuck.len() as u64
    }

    /// Forgets which pages would not move: they are tried again.
    pub(crate) fn forget_stuck(&mut self) {
        self.stuck.clear();
    }

    /// Forgets those stuck pages that have left the node.
    pub(crate) fn review_stuck(&mut self, from: u32) {
        let pages: Vec<u64> = self.stuck.iter().copied().collect();
        let mut still = BTreeSet::new();
        for batch in pages.chunks(BATCH) {
            match self.on_node(from, batch) {
                Ok(here) => still.extend(here),
                // Without a process there are none; what cannot be seen stays as it is.
                Err(Stop::Gone) => return self.stuck.clear(),
                Err(_) => still.extend(batch),
            }
        }
        self.stuck = still;
    }

    /// Moves pages off the node until `wanted` have gone, none is left that would, or the effort is spent.
    /// Huge pages move whole: the last may bring more. Adds to `moved` as pages leave.
    pub(crate) fn move_off(
        &mut self,
        route: Route<'_>,
        wanted: u64,
        moved: &mut u64,
        effort: &mut Effort,
    ) -> Result<(), Stop> {
        let mut listed = false;
        while *moved < wanted && !effort.is_spent() {
            let Some(piece) = self.next_piece(route.page) else {
                if std::mem::replace(&mut listed, true) {
                    break;
                }
                effort.spend(LISTING);
                self.unsearched = match self.process.mappings(route.from) {
                    // It has chosen to be hard to search: others are not.
                    Err(error) if error.kind() == io::ErrorKind::FileTooLarge => break,
                    mappings => mappings?,
                };
                self.unsearched.reverse();
                continue;
            };
            effort.spend(1);
            let emptied = self.empty_piece(route, &piece, wanted - *moved, effort)?;
            *moved += emptied.gone;
            if emptied.more {
                // None of those that were tried is tried again: this ends.
                self.unsearched.push(piece);
            }
            emptied.result?;
        }
        Ok(())
    }

    /// The next addresses to search: of one huge page at most, and within it.
    fn next_piece(&mut self, page: u64) -> Option<Range<u64>> {
        let span = page * BATCH as u64;
        loop {
            let mapping = self.unsearched.last_mut()?;
            if mapping.is_empty() {
                self.unsearched.pop();
                continue;
            }
            let end = (mapping.start / span + 1).saturating_mul(span).min(mapping.end);
            let piece = mapping.start..end;
            mapping.start = end;
            return Some(piece);
        }
    }

    /// Moves up to `wanted` pages out of these addresses.
    fn empty_piece(
        &mut self,
        route: Route<'_>,
        piece: &Range<u64>,
        wanted: u64,
        effort: &mut Effort,
    ) -> Result<Emptied, Stop> {
        let all: Vec<u64> = piece.clone().step_by(route.page as usize).collect();
        let before = self.on_node(route.from, &all)?;
        let chosen: Vec<u64> = before
            .iter()
            .copied()
            .filter(|page| !self.stuck.contains(page))
            .take(usize::try_from(wanted).unwrap_or(usize::MAX))
            .collect();
        if chosen.is_empty() {
            return Ok(Emptied { gone: 0, more: false, result: Ok(()) });
        }
        let mut result = self.send(&chosen, route);
        if result.is_ok() {
            // The kernel leaves out what comes behind a page that will not move.
            let left = self.on_node(route.from, &chosen)?;
            effort.spend(left.len());
            result = left.iter().try_for_each(|page| self.send(&[*page], route));
        }
        if result.is_ok() {
            let left = self.on_node(route.from, &chosen)?;
            self.stuck.extend(left);
        }
        // The rest of a huge page has moved as well.
        let after = self.on_node(route.from, &before)?;
        let more = after.iter().any(|page| !self.stuck.contains(page));
        Ok(Emptied { gone: (before.len() - after.len()) as u64, more, result })
    }

    /// Which of these pages are on the node.
    fn on_node(&self, node: u32, pages: &[u64]) -> Result<Vec<u64>, Stop> {
        self.check_alive()?;
        let places = self.process.locate(pages)?;
        // Had it ended in between, this would be of another process.
        self.check_alive()?;
        let here =
            pages.iter().zip(places).filter(|(_, place)| i64::from(*place) == i64::from(node));
        Ok(here.map(|(page, _)| *page).collect())
    }

    fn send(&self, pages: &[u64], route: Route<'_>) -> Result<(), Stop> {
        let mut full = io::Error::from_raw_os_error(libc::ENOMEM);
        for node in route.to {
            self.check_alive()?;
            match self.process.relocate(pages, *node) {
                Ok(()) => return Ok(()),
                // No room, or the process may not have memory there.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EACCES)) => {
                    full = error;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Stop::Full(full))
    }

    fn check_alive(&self) -> Result<(), Stop> {
        if self.process.is_alive() { Ok(()) } else { Err(Stop::Gone) }
    }
}
