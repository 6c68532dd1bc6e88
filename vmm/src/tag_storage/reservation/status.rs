//! What there is to say of a VM's tag storage.

use arch::units::Bytes;
use serde_json::Value;

use super::exhaustion::ExhaustionSnapshot;
use crate::spec::ReservationMode;
use crate::tag_storage::supply::SupplyName;

/// The tag storage of one VM at one moment. Sizes are of tag storage.
#[derive(Clone, Debug)]
pub struct Status {
    /// When it is reserved.
    pub mode: ReservationMode,
    /// What is behind it.
    pub supply: SupplyName,
    /// The whole pool, of all VMs.
    pub capacity: Bytes,
    /// Reserved for this VM.
    pub reserved: Bytes,
    /// Set aside for this VM.
    pub min: Bytes,
    /// The most that it can have; `None` for all there is.
    pub max: Option<Bytes>,
    /// Its memory.
    pub chunks: u64,
    /// How many chunks have memory and tag storage; `None` where all have it from the start.
    pub populated: Option<u64>,
    /// How many have tag storage and are not touched yet, where it is reserved on demand.
    pub ahead: Option<u64>,
    /// How many chunks are touched and wait for tag storage.
    pub waiting: u64,
    /// What they wait for.
    pub exhaustion: ExhaustionSnapshot,
    /// Events since the start, by name.
    pub counters: Value,
}
