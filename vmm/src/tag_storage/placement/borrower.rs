//! Where guest memory may be beside tag storage that is a NUMA node: a guest's with MTE never there, another's
//! as the broker lends it.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::policy::{LendingError, Placement, RamKind};
use crate::memory::GuestRam;
use crate::tag_storage::broker::{self, Client};
use crate::tag_storage::supply::SupplyName;
use crate::tag_storage::supply::lend_policy::LendPolicy;
use crate::tag_storage::supply::node::Topology;

/// Why a VM cannot borrow.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no broker, or it says no.
    #[error("the VM '{vm}' cannot borrow the broker's tag storage")]
    Broker {
        /// The VM.
        vm: String,
        /// Why.
        #[source]
        source: broker::Error,
    },
    /// The kernel does not place its memory.
    #[error("the memory of the VM '{vm}' cannot be placed as the broker lends it")]
    Placement {
        /// The VM.
        vm: String,
        /// Why.
        #[source]
        source: LendingError,
    },
}

/// Keeps memory with tags, and all else that this process will have, off the node that is this supply.
/// Nothing has touched the memory so far, and this is the first thread.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn keep_off(supply: SupplyName, ram: &GuestRam) -> Result<(), LendingError> {
    let SupplyName::Node(node) = supply else { return Ok(()) };
    let topology = Topology::default();
    let placement = Placement::new(&topology, node, LendPolicy::Never, RamKind::Tagged)?;
    placement.keep_process_off()?;
    placement.apply(ram)
}

/// What there is to say of a VM that borrows.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// The tag storage that its memory may be in: a ledger has none to lend.
    pub supply: SupplyName,
    /// When.
    pub lend: LendPolicy,
}

/// A VM without MTE beside a broker: its memory may be in unused tag storage. Dropped, it
/// borrows no more.
pub struct BorrowerLease {
    // Field order is drop order: memory that may be in tag storage is gone before the broker loses sight of it.
    ram: GuestRam,
    broker: Arc<Client>,
    /// Where the supply is a node.
    placement: Option<Placement>,
}

impl BorrowerLease {
    /// Places this memory, which nothing has touched so far, as the broker at `path` lends. Locked memory could
    /// not be taken back, and is lent nothing.
    ///
    /// # Errors
    /// When there is no broker, or it or the kernel refuses.
    pub fn new(path: &Path, vm: &str, ram: &GuestRam, locked: bool) -> Result<Self, Error> {
        let refused = |source| Error::Broker { vm: vm.to_owned(), source };
        let broker = Client::borrow(path, vm).map_err(refused)?;
        let terms = broker.status().terms;
        let place = |node| {
            let kind = if locked { RamKind::Locked } else { RamKind::Movable };
            let placement = Placement::new(&Topology::default(), node, terms.lend, kind)?;
            placement.apply(ram).map(|()| placement)
        };
        let placement = match terms.supply {
            SupplyName::Ledger => Ok(None),
            SupplyName::Node(node) => place(node).map(Some),
        };
        let placement =
            placement.map_err(|source| Error::Placement { vm: vm.to_owned(), source })?;
        Ok(Self { broker: Arc::new(broker), ram: ram.clone(), placement })
    }

    /// The broker, whose events the main thread handles.
    pub fn broker(&self) -> &Arc<Client> {
        &self.broker
    }

    /// What it may live in, and when.
    pub fn status(&self) -> Status {
        let terms = self.broker.status().terms;
        Status { supply: terms.supply, lend: terms.lend }
    }

    /// Whether the broker's tag storage is the memory of a node, in or off which guest memory is placed.
    pub fn is_on_node(&self) -> bool {
        self.placement.is_some()
    }

    /// Whether guest memory may be in tag storage that others take back.
    pub fn is_lent_to(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.policy() != LendPolicy::Never)
    }

    /// Whether [`rebalance`](Self::rebalance) is to be called from time to time.
    pub fn is_balanced(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.policy() == LendPolicy::Balanced)
    }

    /// Looks again where the host's free memory is.
    ///
    /// # Errors
    /// When the kernel does not tell, or refuses.
    pub fn rebalance(&self) -> Result<(), LendingError> {
        match &self.placement {
            Some(placement) => placement.rebalance(&self.ram).map(drop),
            None => Ok(()),
        }
    }
}
