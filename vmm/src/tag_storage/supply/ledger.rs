//! Tag storage that is counted and enforced, with nothing physical behind it.

use std::ops::Range;

use arch::mte::geometry::BlockIndex;

use super::{Supply, SupplyName, TakeError};

/// The supply of a host whose tag storage no program can reach: all of today's. It always has what is
/// asked of it, so that the pool alone decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger;

impl Supply for Ledger {
    fn name(&self) -> SupplyName {
        SupplyName::Ledger
    }

    fn take(&self, _: Range<BlockIndex>) -> Result<(), TakeError> {
        Ok(())
    }

    fn release(&self, _: Range<BlockIndex>) {}

    fn evict(&self, _: Range<BlockIndex>) -> Result<(), TakeError> {
        Ok(())
    }

    fn is_instant(&self) -> bool {
        true
    }
}
