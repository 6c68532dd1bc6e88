//! Snapshots: the files that hold a VM, its state and its memory with its tags.
//!
//! A snapshot is a pair of files. The *state file* has the manifest (what a host must have to restore it), the
//! vCPUs, the interrupt controller, the clock and the devices. The *memory file* has the pages of guest memory and
//! their tags. Both carry the id of the snapshot, so that a wrong pair is refused. A memory file may be a *diff*,
//! that holds what changed since another snapshot; [`merge`](merge()) makes a full one of both.
//!
//! A third file may be beside the memory file, its *working set*: which chunks a restored guest touched first.
//!
//! Each file has a version of its own format and checksums over all that is used of it. All are read from
//! descriptors, never mapped: a file that shrinks meanwhile is an error and no signal. Nothing in a file is used
//! before it is checked against the file's length and against the limits of a VM.

mod error;
mod format;
mod id;
pub mod memory_file;
mod merge;
mod new_file;
mod output;
mod pair;
mod source;
pub mod state_file;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;
pub(crate) mod working_set;

pub use error::{Error, Fault};
pub use id::SnapshotId;
pub use memory_file::{MemoryReader, MemorySink, MemoryView, PageSet, load_memory, save_memory};
pub use merge::merge;
pub use pair::{NewPair, Pair};
pub use state_file::{CpuFeatures, DeviceState, DeviceStates, Kind, Manifest, State, StateFile};
pub use working_set::{Recorder, WorkingSet};

/// The name of the state file in a directory that holds one snapshot.
pub const STATE: &str = "state";
/// The name of the memory file in a directory that holds one snapshot.
pub const MEMORY: &str = "memory";
