//! Tag storage: the host's memory for tags, reserved as guest memory is populated, freed as it is
//! discarded, lent out while unused.
//!
//! A *chunk* of guest memory that is populated needs a *frame*: a chunk-sized piece of the memory that the
//! *blocks* of tag storage cover. The [`Pool`] gives frames to *leases*, one a VM, and keeps the state of
//! each block; its [`Supply`] is what is behind the blocks. The guest knows nothing of it.
//!
//! | File | The noun |
//! |---|---|
//! | `pool` | requests, and the order of what they take |
//! | `state`, `flight` | the books under the pool's lock; what is under way without it |
//! | `blocks`, `frames`, `lease` | the state of each block; which frame is next; who holds which |
//! | `supply/` | what is behind the blocks: a ledger, a NUMA node |
//! | `capacity` | how much there is, and who says so |
//! | `broker/` | the pool of a host, for the VMs that come to its socket |
//! | `policy`, `lending` | when others may have it, and which guest memory is in it meanwhile |
//! | `numa` | the system calls for memory on NUMA nodes |
//! | `counters`, `report`, `error` | what is counted, shown, refused |
//! | `hold`, `source` | one VM's hold on a pool, and where it comes from |
//! | `holding`, `strict`, `demand/`, `chunks`, `uffd` | a VM's tag storage: at once, or as its memory is touched |
//! | `tenancy` | where a VM's memory may be beside tag storage that is a node |
//! | `notices` | what the thread that serves touches tells the VM's main thread |
//! | `sync`, `testing` | locks that tests can order; what tests of a VM's tag storage stand on |

mod blocks;
pub mod broker;
pub mod capacity;
mod chunks;
mod counters;
mod demand;
mod error;
mod flight;
mod frames;
mod hold;
mod holding;
mod lease;
mod lending;
mod notices;
mod numa;
pub mod policy;
mod pool;
mod report;
mod source;
mod state;
mod strict;
pub mod supply;
mod sync;
mod tenancy;
#[cfg(test)]
mod testing;
mod uffd;

pub use arch::mte::geometry::Geometry;
pub use arch::units::Bytes;
pub use blocks::{BlockState, Error as BlockError};
pub use chunks::ChunkIndex;
pub use counters::Counters;
pub use demand::{Demand, Error as DemandError, Exhaustion, FaultCounters, Releaser};
pub use error::{FreeError, PoolError, ReserveError};
pub use frames::FrameIndex;
pub use hold::{Embedded, Hold, HoldReport};
pub use holding::{Error as HoldingError, Holding};
pub use lease::{LeaseId, LeaseTerms, MAX_LEASES, MAX_NAME, TAGS_OF_CHUNK, TermsError, tags_of};
pub use lending::{LendingError, Placement, RamKind};
pub use notices::{News, Notices};
pub use policy::{LendPolicy, UnknownPolicy};
pub use pool::{Adopted, MAX_CAPACITY, Pool};
pub use report::{BlocksReport, ChunksReport, LeaseReport, PoolReport};
pub use source::{Error as SourceError, hold_for};
pub use strict::Strict;
pub use supply::{Ledger, Node, Observation, Supply, SupplyName, TakeError};
pub use tenancy::{Error as TenancyError, Tenancy};
pub use uffd::Error as UffdError;
