//! The bodies of `PUT /snapshot/create` and `PUT /snapshot/load`, under Firecracker's names.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::ControlError;
use crate::config::{
    NetworkInterfaceSection, Object, RestoreChanges, RestoreMemory, RestoreRequest, SnapshotFiles,
    VsockChange,
};

/// Firecracker's `SnapshotCreateParams`: the body of `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// What is saved of memory.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// The file for the machine's state.
    pub snapshot_path: PathBuf,
    /// The file for guest memory.
    pub mem_file_path: PathBuf,
    /// Whether the next `Diff` builds on it only if it is confirmed. Ours.
    #[serde(default, skip_serializing_if = "is_false")]
    pub provisional: bool,
}

/// The body of `PUT /snapshot/confirm`. Ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotConfirm {
    /// The file for the machine's state, as it was named.
    pub snapshot_path: PathBuf,
}

impl SnapshotCreate {
    /// A VM into these files, all of it or what has changed.
    pub fn new(files: SnapshotFiles, snapshot_type: SnapshotType) -> Self {
        let SnapshotFiles { state, memory } = files;
        Self { snapshot_type, snapshot_path: state, mem_file_path: memory, provisional: false }
    }

    /// The files to write.
    pub fn files(self) -> SnapshotFiles {
        SnapshotFiles { state: self.snapshot_path, memory: self.mem_file_path }
    }
}

/// What is saved of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What has changed since the VM was last saved or restored.
    Diff,
}

/// Firecracker's `SnapshotLoadParams` with ours beside it: the body of `PUT /snapshot/load`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The file with the machine's state.
    pub snapshot_path: PathBuf,
    /// The file with guest memory. This or the next.
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<PathBuf>,
    /// Where guest memory comes from.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemoryBackend>,
    /// Whether the VM's next snapshots may be diffs, by its old name.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// The same.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Whether the guest runs then.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other taps.
    #[serde(default, deserialize_with = "objects")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another Unix socket for the guest's sockets.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock is set forward by the time since the save.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Huge pages behind guest memory.
    #[serde(default)]
    pub huge_pages: LoadHugePages,
    /// Whether memory is read when the guest touches it. Ours.
    #[serde(default)]
    pub lazy: bool,
    /// Whether it is recorded in which order that is. Ours.
    #[serde(default, skip_serializing_if = "is_false")]
    pub record_working_set: bool,
    /// Whether memory is that of the snapshot's template, which another process holds. Ours.
    #[serde(default)]
    pub shared: bool,
}

/// Firecracker's `MemoryBackend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    /// What it is.
    pub backend_type: MemoryBackendType,
    /// Where it is.
    pub backend_path: PathBuf,
}

/// Where guest memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryBackendType {
    /// A file.
    File,
    /// Another process, on a Unix socket.
    Uffd,
}

/// Another tap behind a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: String,
    /// The tap.
    pub host_dev_name: String,
}

/// Another Unix socket for the guest's sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The socket.
    pub uds_path: PathBuf,
}

/// Huge pages of a restored VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "they are those of a configuration")]
pub enum LoadHugePages {
    /// Those of the VM that was saved.
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    TwoMib,
}

impl SnapshotLoad {
    /// What is to be restored, with what else differs from the VM that was saved.
    ///
    /// # Errors
    /// When it asks for what cannot be had, or for nothing that can be read.
    pub fn into_request(self, mut changes: RestoreChanges) -> Result<RestoreRequest, ControlError> {
        let refused = |why: &str| Err(ControlError::refused(why));
        let memory = match (self.mem_file_path, self.mem_backend) {
            // Firecracker's words, both.
            (Some(_), Some(_)) => {
                return refused(
                    "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
                );
            }
            (None, None) => {
                return refused(
                    "missing field: either `mem_backend` or `mem_file_path` is required",
                );
            }
            (Some(path), None) => path,
            (None, Some(MemoryBackend { backend_type, backend_path })) => match backend_type {
                MemoryBackendType::File => backend_path,
                MemoryBackendType::Uffd => {
                    return refused(
                        "no other process can serve guest memory (backend_type Uffd), as it would have to set tags, too: \
                         name the file, with \"lazy\": true to have it read when the guest touches memory",
                    );
                }
            },
        };
        changes.track_dirty_pages = self.track_dirty_pages || self.enable_diff_snapshots;
        if self.clock_realtime {
            return refused("clock_realtime is for x86 guests: leave it out");
        }
        if self.huge_pages != LoadHugePages::Snapshot {
            return refused(
                "guest memory has the huge pages that it was saved with: leave out huge_pages",
            );
        }
        changes.net.extend(self.network_overrides.into_iter().map(|other| {
            NetworkInterfaceSection {
                iface_id: other.iface_id,
                host_dev_name: Some(other.host_dev_name),
                ..NetworkInterfaceSection::default()
            }
        }));
        let vsock = self.vsock_override;
        changes.vsock = vsock.map(|other| VsockChange { path: other.uds_path, cid: None });
        let files = SnapshotFiles { state: self.snapshot_path, memory };
        let memory = RestoreMemory::of(self.lazy, self.shared, self.record_working_set)
            .map_err(|error| ControlError::refused(error.to_string()))?;
        Ok(RestoreRequest { files, memory, resume: self.resume_vm, changes })
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A field that may be left out, but says something if it is there.
pub(super) fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// As [`not_null`], for an object of fields: an array is none.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Object::deserialize(deserializer).map(|Object(object)| Some(object))
}

/// A list of objects of fields.
fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let objects = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(objects.into_iter().map(|Object(object)| object).collect())
}
