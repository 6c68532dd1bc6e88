//! The supply of a broker, by its name.

use std::sync::Arc;

use arch::mte::geometry::{Error as GeometryError, Geometry};
use thiserror::Error;

use super::capacity::{self, Capacity, Places, Source, Wanted};
use super::lend_policy::LendPolicy;
use super::node::{Node, NodeError, Topology};
use super::{Ledger, Supply, SupplyName};

/// A supply, and what goes with it.
pub struct Opened {
    /// The supply.
    pub supply: Box<dyn Supply>,
    /// How much it has.
    pub capacity: Capacity,
    /// The node that it is, if it is one: it can lend.
    pub node: Option<Arc<Node>>,
}

/// Why there is no such supply.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is nothing physical to lend.
    #[error("a ledger only counts and has nothing to lend: give --lend never, or --supply node:N")]
    NothingToLend,
    /// It is unknown how much there is.
    #[error("it is not known how much tag storage there is")]
    Capacity(#[from] capacity::Error),
    /// Pages of this host make no geometry.
    #[error("tag storage cannot be shared out on this host")]
    Geometry(#[from] GeometryError),
    /// The node will not do.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Opens a supply of this capacity.
///
/// # Errors
/// When there is none of that name, or it cannot be what it is wanted for.
pub fn open(name: SupplyName, wanted: Wanted, lend: LendPolicy) -> Result<Opened, OpenError> {
    let places = Places::host();
    let number = match name {
        SupplyName::Ledger if lend != LendPolicy::Never => return Err(OpenError::NothingToLend),
        SupplyName::Ledger => {
            let capacity = places.capacity(wanted)?;
            return Ok(Opened { supply: Box::new(Ledger), capacity, node: None });
        }
        SupplyName::Node(number) => number,
    };
    let geometry = Geometry::new(places.page, places.page)?;
    let (asked, source) = match wanted {
        Wanted::Auto => (None, Source::Node(number)),
        Wanted::Size(size) => (Some(size), Source::Given),
    };
    let node = Arc::new(Node::new(number, &Topology::default(), asked, geometry.block())?);
    let capacity = Capacity { size: node.capacity(), geometry, source };
    Ok(Opened { supply: Box::new(node.clone()), capacity, node: Some(node) })
}
