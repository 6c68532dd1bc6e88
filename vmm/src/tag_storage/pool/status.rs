//! What there is to say about a pool.

use serde::{Deserialize, Serialize};

use super::counters::Counters;
use super::units::LeaseId;

/// A pool at one moment. Every size is tag storage, of the supply named here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PoolReport {
    /// `ledger`, which counts and has nothing physical, or `node:N`.
    pub supply: String,
    /// All blocks together.
    pub capacity_bytes: u64,
    /// One block.
    pub block_bytes: u64,
    /// Blocks by state.
    pub blocks: BlocksReport,
    /// The same pool in chunks of guest memory.
    pub chunks: ChunksReport,
    /// Leases, those that are being closed among them.
    pub leases: Vec<LeaseReport>,
    /// Events since the pool was made.
    pub counters: Counters,
}

/// Numbers of blocks; the states sum to the total.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BlocksReport {
    /// All.
    pub total: u64,
    /// They serve as nothing.
    pub free: u64,
    /// The supply is being asked for them.
    pub reserving: u64,
    /// They hold tags.
    pub reserved: u64,
    /// They are being given back to the supply.
    pub releasing: u64,
    /// Ordinary memory may be in them.
    pub lent: u64,
    /// They are being emptied of it.
    pub evicting: u64,
    /// What is in them would not move.
    pub pinned: u64,
    /// Out of use: no whole chunk has its tags there.
    pub disabled: u64,
}

/// Numbers of chunks; `reserved`, `set_aside` and `free` sum to the total.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChunksReport {
    /// As many as all blocks have tags for.
    pub total: u32,
    /// Reserved, being reserved or being freed.
    pub reserved: u32,
    /// Promised to leases and not reserved yet.
    pub set_aside: u32,
    /// For any lease. The blocks of some may be lent or pinned.
    pub free: u32,
}

/// A lease.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LeaseReport {
    /// Its id.
    pub id: LeaseId,
    /// What people call it.
    pub name: String,
    /// Chunks whose tag storage it has.
    pub chunks: u32,
    /// The tags of those chunks. Blocks are shared: leases together may have more or fewer bytes of blocks.
    pub reserved_bytes: u64,
    /// Set aside for it from the start.
    pub min_bytes: u64,
    /// The most it can have.
    pub max_bytes: u64,
    /// It is being closed.
    pub closing: bool,
}
