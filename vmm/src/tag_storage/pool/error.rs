//! Why tag storage cannot be had, or not be given back.

use arch::units::Bytes;
use thiserror::Error;

use super::blocks;
use super::lease::{MAX_LEASES, TermsError};
use super::units::{LeaseId, MAX_CAPACITY, SlotIndex};
use crate::tag_storage::supply::{SupplyName, TakeError};

/// Why there is no such pool.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// Not enough for one chunk.
    #[error(
        "{capacity} of tag storage in blocks of {block} has no room for the tags of one chunk: give \
         more --capacity"
    )]
    TooSmall {
        /// The capacity asked for.
        capacity: Bytes,
        /// The size of a block.
        block: Bytes,
    },
    /// More than any host has.
    #[error("{0} of tag storage is more than any host has: give at most {MAX_CAPACITY} --capacity")]
    TooLarge(Bytes),
    /// More pages would refer to a block than can be counted.
    #[error(
        "tag storage in blocks of {0} cannot be shared out: look at the device tree's block-size"
    )]
    HugeBlock(Bytes),
}

/// Why tag storage cannot be had.
#[derive(Debug, Error)]
pub enum ReserveError {
    /// The lease is not open, or no longer.
    #[error("{0} is not open: open one first")]
    UnknownLease(LeaseId),
    /// The terms make no lease.
    #[error("these are no terms for a lease of tag storage")]
    Terms(#[source] TermsError),
    /// There are as many leases as there can be.
    #[error("{MAX_LEASES} leases are open, as many as there can be: end a VM first")]
    TooManyLeases,
    /// The lease has all that its terms allow.
    #[error(
        "{wanted} more of tag storage would be above this lease's maximum of {max} ({supply}): free \
         guest memory, or give a larger --tag-max"
    )]
    OverMax {
        /// What was asked for.
        wanted: Bytes,
        /// The lease's maximum, in whole chunks' tags.
        max: Bytes,
        /// The supply.
        supply: SupplyName,
    },
    /// No slot is left whose blocks can be had: to tag storage what out-of-memory is to memory.
    #[error(
        "tag storage is exhausted: {wanted} asked for, {free} free, {set_aside} more set aside for \
         leases ({supply}): free guest memory, end a VM, or give the broker a larger --capacity"
    )]
    Exhausted {
        /// What was asked for.
        wanted: Bytes,
        /// What is neither reserved nor set aside. Where it would do, the blocks behind it are pinned or
        /// busy.
        free: Bytes,
        /// What is promised to leases and not reserved yet.
        set_aside: Bytes,
        /// The supply.
        supply: SupplyName,
    },
    /// There was enough, and not all of it was reserved in time. A lack that ends by itself.
    #[error(
        "the request for {wanted} of tag storage ran out of time, as what is in the way moves slowly ({supply}): try \
         again, give the host less to do, or start the broker with --lend never"
    )]
    TimedOut {
        /// What was asked for.
        wanted: Bytes,
        /// The supply.
        supply: SupplyName,
    },
    /// The host refuses; other slots would not help.
    #[error("the supply of tag storage, {supply}, fails: see why below")]
    Supply {
        /// The supply.
        supply: SupplyName,
        /// Its reason.
        #[source]
        source: TakeError,
    },
    /// The books are wrong.
    #[error(transparent)]
    Blocks(#[from] blocks::Error),
}

impl ReserveError {
    /// Whether tag storage itself was lacking, so that freeing some, wherever, may help.
    pub fn is_lack(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::TimedOut { .. } | Self::Supply { .. })
    }
}

/// Why tag storage cannot be given back.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FreeError {
    /// The lease is not open, or no longer.
    #[error("{0} is not open: what it had is free already")]
    UnknownLease(LeaseId),
    /// The slot is not this lease's: it was freed before, or never its own.
    #[error("{lease} does not hold {slot}: nothing was freed")]
    NotHeld {
        /// The lease.
        lease: LeaseId,
        /// The slot.
        slot: SlotIndex,
    },
    /// The books are wrong.
    #[error(transparent)]
    Blocks(#[from] blocks::Error),
}
