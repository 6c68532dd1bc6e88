//! Tag storage: the host's memory for tags, reserved as guest memory is populated, freed as it is
//! discarded, lent out while unused.
//!
//! A *chunk* of guest memory that is populated needs a *slot*: a chunk-sized piece of the memory that the
//! *blocks* of tag storage cover. The [`Pool`] gives slots to *leases*, one a VM, and keeps the state of
//! each block; its [`Supply`] is what is behind the blocks. The guest knows nothing of it.
//!
//! Rooms, and what each may use:
//!
//! ```text
//! reservation -> broker::client -> broker::protocol <- broker::server -> pool -> supply -> sys
//!      |                                                                  ^
//!      +------------------------------------------------------------------+  (a VM's own pool)
//! placement   -> broker::client, sys
//! ```
//!
//! | Room | Responsibility |
//! |---|---|
//! | `pool` | which chunk of which VM has which tag storage |
//! | `supply` | what is behind the blocks: a ledger, or the memory of a NUMA node |
//! | `broker` | the pool of a host, shared through a socket |
//! | `reservation` | the tag storage of one VM: all of it at the start, or with each chunk |
//! | `placement` | where guest memory lies beside tag storage that is a node |

pub mod broker;
pub(crate) mod chunk;
pub(crate) mod placement;
pub(crate) mod pool;
pub(crate) mod reservation;
pub mod supply;

pub use arch::mte::geometry::Geometry;
pub use arch::units::Bytes;
pub use chunk::ChunkIndex;
pub use placement::{
    BorrowerLease, BorrowerLeaseError, LendingError, Placement, RamKind, Status as PlacementStatus,
};
pub use pool::{
    Adopted, BlockError, BlockState, BlocksReport, ChunksReport, Counters, FreeError, LeaseId,
    LeaseReport, LeaseTerms, MAX_CAPACITY, MAX_LEASES, MAX_NAME, Pool, PoolError, PoolReport,
    ReserveError, SlotIndex, TAGS_OF_CHUNK, TermsError, tags_of,
};
pub use reservation::{
    Answer, ChunkLoader, Demand, DemandError, DiscardHandler, Embedded, Error as ReservationError,
    Exhaustion, ExhaustionSnapshot, ExhaustionStatus, FaultCounters, LoaderReservation, PoolClient,
    PoolClientError, PoolClientReport, SourceError, Status as ReservationStatus, Strict,
    TagReservation, Unreserved, pool_client_for,
};
pub use supply::capacity;
pub use supply::lend_policy::{LendPolicy, UnknownPolicy};
pub use supply::{Ledger, Node, Observation, Supply, SupplyName, TakeError};
