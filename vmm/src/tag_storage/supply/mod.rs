//! Where tag storage comes from.
//!
//! | File | Responsibility |
//! |---|---|
//! | `ledger` | nothing physical: the pool counts |
//! | `node/` | the memory of a NUMA node |
//! | `open` | the supply that was asked for, and how much it has |

pub mod capacity;
mod ledger;
pub mod lend_policy;
pub mod node;
mod open;

use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use arch::mte::geometry::BlockIndex;
use thiserror::Error;

pub use ledger::Ledger;
pub use node::Node;
pub use open::{OpenError, Opened, open};

/// Which supply: it stands beside every figure that the pool gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SupplyName {
    /// Counted and enforced, nothing physical.
    Ledger,
    /// The tag storage is the memory of this NUMA node.
    Node(u32),
}

impl fmt::Display for SupplyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ledger => f.write_str("ledger"),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

/// Why a text names no supply.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no supply of tag storage: write ledger, or node:N for the memory of NUMA node N")]
pub struct UnknownSupply(String);

impl FromStr for SupplyName {
    type Err = UnknownSupply;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownSupply(text.to_owned());
        if text == "ledger" {
            return Ok(Self::Ledger);
        }
        let node = text.strip_prefix("node:").ok_or_else(unknown)?;
        // `parse` alone would take "+1".
        if !node.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(unknown());
        }
        node.parse().map(Self::Node).map_err(|_| unknown())
    }
}

/// Why blocks cannot be had now.
#[derive(Debug, Error)]
pub enum TakeError {
    /// Other memory is in the way for the moment; another try may do.
    #[error("other memory is in these blocks for the moment: try again")]
    Busy,
    /// Memory in these blocks cannot be moved.
    #[error(
        "memory from {} up to {} is pinned: use other blocks until its owner unpins it",
        .0.start, .0.end
    )]
    Pinned(Range<BlockIndex>),
    /// The host refuses.
    #[error("the host refuses: see why below; other blocks will not help")]
    Host(#[source] io::Error),
}

/// The memory behind the blocks of a pool.
///
/// The pool calls [`take`](Self::take) for blocks that are free or were just evicted,
/// [`release`](Self::release) for blocks that it took, [`evict`](Self::evict) for blocks that it lent; never
/// two of them at the same time for one block. Ranges are not empty, and lie in the tags of one
/// chunk.
///
/// Unless the supply [is instant](Self::is_instant), no lock is held during a call, so that it may sleep.
pub trait Supply: Send + Sync {
    /// Its name.
    fn name(&self) -> SupplyName;

    /// Takes the memory of these blocks: no other process has it from now on.
    ///
    /// # Errors
    /// When it cannot be had. Then none of it is taken.
    fn take(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError>;

    /// Gives back what [`take`](Self::take) took.
    fn release(&self, blocks: Range<BlockIndex>);

    /// Empties blocks that were lent: what is in them moves elsewhere, its contents intact.
    ///
    /// # Errors
    /// When something would not move. What did move stays where it went.
    fn evict(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError>;

    /// What other memory has done to blocks that are not taken; `None` where there is none.
    fn observe(&self) -> Option<Observation> {
        None
    }

    /// The same without waiting for blocks that are being taken or emptied: `None` while there are such.
    fn observe_at_once(&self) -> Option<Observation> {
        self.observe()
    }

    /// Memory that would not move is to be tried again.
    fn forget_pinned(&self) {}

    /// Whether no call ever sleeps or makes a system call. The pool then keeps its lock and does a whole
    /// reserve at once.
    fn is_instant(&self) -> bool;
}

/// What other memory does to the blocks of a supply that shares them with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// How many blocks could be taken, those that are being taken among them.
    pub free: u64,
    /// How many blocks have memory that would not move.
    pub pinned: u64,
}

impl<S: Supply + ?Sized> Supply for Arc<S> {
    fn name(&self) -> SupplyName {
        (**self).name()
    }

    fn take(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        (**self).take(blocks)
    }

    fn release(&self, blocks: Range<BlockIndex>) {
        (**self).release(blocks);
    }

    fn evict(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        (**self).evict(blocks)
    }

    fn observe(&self) -> Option<Observation> {
        (**self).observe()
    }

    fn observe_at_once(&self) -> Option<Observation> {
        (**self).observe_at_once()
    }

    fn forget_pinned(&self) {
        (**self).forget_pinned();
    }

    fn is_instant(&self) -> bool {
        (**self).is_instant()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_as_it_is_written() {
        for name in [SupplyName::Ledger, SupplyName::Node(0), SupplyName::Node(u32::MAX)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn other_names_are_refused() {
        for text in ["", "Ledger", "ledger ", "node", "node:", "node:+1", "node:-1", "node:x", "1"]
        {
            assert_eq!(text.parse::<SupplyName>(), Err(UnknownSupply(text.to_owned())));
        }
        assert!("node:4294967296".parse::<SupplyName>().is_err());
    }
}
