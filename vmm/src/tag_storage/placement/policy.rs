//! Which guest memory may be in tag storage that is not reserved, and when.
//!
//! The kernel places each page when it is first touched, by the rule that its mapping has then. A rule never
//! moves what is there already; that is the broker's business, and [`Placement::unlend`]'s.
//!
//! # References
//! Linux mail, "Add support for arm64 MTE dynamic tag storage reuse": movable memory without tags only, and
//! nothing that is pinned for long

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arch::range::MemoryRange;
use thiserror::Error;

use crate::memory::GuestRam;
use crate::sys::numa::{self, MemPolicy, NodeSet};
use crate::tag_storage::supply::lend_policy::LendPolicy;
use crate::tag_storage::supply::node::{self, Topology, TopologyError};

/// What a guest's memory is like, for one who lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamKind {
    /// It has tags, which memory in tag storage cannot have.
    Tagged,
    /// It is locked, and could never be taken back.
    Locked,
    /// It has no tags and can move.
    Movable,
}

/// Why guest memory cannot be kept where it should be.
#[derive(Debug, Error)]
pub enum LendingError {
    /// The node will not do.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The kernel does not take the rule.
    #[error(
        "cannot choose the NUMA nodes of guest memory: Linux 5.15 or newer with CONFIG_NUMA is needed"
    )]
    MemPolicy(#[source] io::Error),
    /// How much memory is free cannot be seen.
    #[error("cannot see how much memory the NUMA nodes have")]
    Usage(#[source] io::Error),
    /// The range is not of this memory.
    #[error("{0:?} is no guest memory: please report this")]
    Outside(MemoryRange),
    /// Some of it would not move.
    #[error(
        "memory of {0:?} is in tag storage and would not leave it: it is in use by a device or another \
         process; try again once that has ended"
    )]
    Pinned(MemoryRange),
}

/// Where one VM's memory is to be.
#[derive(Debug)]
pub struct Placement {
    node: u32,
    others: BTreeSet<u32>,
    policy: LendPolicy,
    kind: RamKind,
    /// Whether the node is the first choice at present, under `balanced`.
    first: AtomicBool,
    /// Addresses that are kept off the node, whatever the policy: sorted, apart from each other.
    unlent: Mutex<Vec<Range<u64>>>,
}

impl Placement {
    /// Memory of this kind beside a node that is tag storage, lent by this policy. Only movable memory is ever
    /// lent.
    ///
    /// # Errors
    /// When the node cannot be tag storage.
    pub fn new(
        topology: &Topology,
        node: u32,
        policy: LendPolicy,
        kind: RamKind,
    ) -> Result<Self, LendingError> {
        let others = topology.others(node)?;
        let policy = if kind == RamKind::Movable { policy } else { LendPolicy::Never };
        let (first, unlent) = (AtomicBool::new(false), Mutex::default());
        Ok(Self { node, others, policy, kind, first, unlent })
    }

    /// The policy that the memory is really under.
    pub fn policy(&self) -> LendPolicy {
        self.policy
    }

    /// Keeps all other memory of a VM with tags off the node as well. To be called on the first thread, before
    /// there are others, and before guest memory is touched.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep_process_off(&self) -> Result<(), LendingError> {
        match self.kind {
            RamKind::Tagged => {
                numa::set_rule_of_thread(&self.elsewhere()).map_err(LendingError::MemPolicy)
            }
            RamKind::Locked | RamKind::Movable => Ok(()),
        }
    }

    /// Sets the rule of guest memory, before any of it is touched or locked.
    ///
    /// # Errors
    /// When the kernel refuses, or under `balanced` does not tell what is free.
    pub fn apply(&self, ram: &GuestRam) -> Result<(), LendingError> {
        if self.policy == LendPolicy::Balanced {
            self.first.store(self.is_node_fuller()?, Ordering::Relaxed);
        }
        self.set(ram)
    }

    /// Under `balanced`, looks again where the free memory is and sets the rule anew if that has changed, for
    /// what is touched from now on. Returns whether the node is the first choice now.
    ///
    /// Between two looks the guest may touch any amount: the node is overdrawn, or left out, by as much as all
    /// guests touch in that time. A few looks a second keep that to some hundred MiB.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn rebalance(&self, ram: &GuestRam) -> Result<bool, LendingError> {
        if self.policy != LendPolicy::Balanced {
            return Ok(self.policy == LendPolicy::Eager);
        }
        let first = self.is_node_fuller()?;
        if self.first.swap(first, Ordering::Relaxed) != first {
            self.set(ram)?;
        }
        Ok(first)
    }

    /// Moves a part of guest memory off the node, for good: it is about to be pinned for long.
    ///
    /// # Errors
    /// When some of it would not move: then it must not be pinned. It is not given more of the node even so.
    pub fn unlend(&self, ram: &GuestRam, range: MemoryRange) -> Result<(), LendingError> {
        let memory = ram.range();
        if !memory.encloses(&range) {
            return Err(LendingError::Outside(range));
        }
        let page = ram.backing().page_size().get();
        let start = ram.host_address() + (range.base.0 - memory.base.0) / page * page;
        let end = ram.host_address() + (range.end().0 - memory.base.0).next_multiple_of(page);
        let mut unlent = self.unlent();
        // First the note: a thread that sets the rules again leaves it alone from now on.
        include(&mut unlent, start..end);
        numa::set_rule(start..end, &self.elsewhere(), true).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EIO) => LendingError::Pinned(range),
                _ => LendingError::MemPolicy(source),
            }
        })
    }

    fn unlent(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.unlent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elsewhere(&self) -> MemPolicy {
        MemPolicy::Bind(NodeSet::new(self.others.iter().copied()))
    }

    fn rule(&self) -> MemPolicy {
        let node_first = match self.policy {
            LendPolicy::Never => return self.elsewhere(),
            LendPolicy::LastResort => false,
            LendPolicy::Balanced => self.first.load(Ordering::Relaxed),
            LendPolicy::Eager => true,
        };
        match node_first {
            true => MemPolicy::First(NodeSet::new([self.node])),
            false => MemPolicy::Prefer(NodeSet::new(self.others.iter().copied())),
        }
    }

    fn set(&self, ram: &GuestRam) -> Result<(), LendingError> {
        let start = ram.host_address();
        let all = start..start + ram.range().size.get();
        let unlent = self.unlent();
        let rule = self.rule();
        for part in outside(&all, &unlent) {
            numa::set_rule(part, &rule, false).map_err(LendingError::MemPolicy)?;
        }
        Ok(())
    }

    /// Whether more than half of the free memory is on the node.
    fn is_node_fuller(&self) -> Result<bool, LendingError> {
        let free = |node: u32| node::free_pages(node).map_err(LendingError::Usage);
        let here = free(self.node)?;
        let mut elsewhere = 0u64;
        for node in &self.others {
            elsewhere = elsewhere.saturating_add(free(*node)?);
        }
        Ok(here > elsewhere)
    }
}

/// Adds a range to sorted ranges that are apart from each other.
fn include(all: &mut Vec<Range<u64>>, new: Range<u64>) {
    if new.is_empty() {
        return;
    }
    // Those that it touches are one with it.
    let from = all.partition_point(|range| range.end < new.start);
    let to = all.partition_point(|range| range.start <= new.end);
    let joined = all[from..to]
        .iter()
        .fold(new, |new, range| new.start.min(range.start)..new.end.max(range.end));
    all.splice(from..to, [joined]);
}

/// The parts of `all` that are in none of these ranges.
fn outside(all: &Range<u64>, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::with_capacity(ranges.len() + 1);
    let mut start = all.start;
    for range in ranges {
        parts.push(start..range.start.min(all.end));
        start = start.max(range.end);
    }
    parts.push(start..all.end);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests;
