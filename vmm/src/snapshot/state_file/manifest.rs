//! What a host must have to restore a snapshot, and what is good to know of it.

use arch::units::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::id::SnapshotId;

/// What a host must have to restore a snapshot, and what is good to know of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Whether it has all of the memory.
    pub kind: Kind,
    /// The host's page size in bytes.
    pub page_size: u64,
    /// The version of the interrupt controller: 2 or 3.
    pub gic_version: u8,
    /// The frequency of the counter in Hz (CNTFRQ_EL0).
    pub counter_frequency: u32,
    /// Whether the VM has MTE.
    pub mte: bool,
    /// What its vCPUs have.
    pub cpu_features: CpuFeatures,
    /// How much memory the VM has, in bytes.
    pub memory_size: u64,
    /// The page size of the guest's kernel in bytes, if it is known.
    pub guest_page_size: Option<u64>,
    /// The VM's configuration, as its configuration file would have it.
    pub config: Value,
    /// The version of Tessera that made it, for information.
    pub vmm_version: String,
    /// The release of the host's kernel, for information.
    pub host_kernel: String,
    /// When it was made, in seconds since 1970, for information.
    pub saved_at: u64,
}

impl Manifest {
    /// The host's page size.
    pub fn page_size(&self) -> Bytes {
        Bytes::new(self.page_size)
    }

    /// How much memory the VM has.
    pub fn memory_size(&self) -> Bytes {
        Bytes::new(self.memory_size)
    }
}

/// Whether a snapshot has all of the memory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Kind {
    /// All of it.
    Full,
    /// What changed since another snapshot.
    Diff {
        /// The id of that one.
        base: SnapshotId,
    },
}

/// Features of vCPUs that the host's CPUs must have.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CpuFeatures {
    /// Scalable vectors.
    pub sve: bool,
    /// Pointer authentication.
    pub pauth: bool,
    /// Performance monitors.
    pub pmu: bool,
}
