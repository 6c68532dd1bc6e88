//! Where a VM's memory lies beside tag storage that is a NUMA node.

pub(crate) mod borrower;
pub(crate) mod policy;

pub use borrower::{BorrowerLease, Error as BorrowerLeaseError, Status};
pub use policy::{LendingError, Placement, RamKind};
