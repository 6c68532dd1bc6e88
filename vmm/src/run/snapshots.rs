//! Snapshots: what `PUT /snapshot/create`, `PUT /snapshot/load` and `--restore` need of the machine and its files.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::Error;
use crate::api::ControlError;
use crate::config::{self, CommandLineOnly, Config, MteMode, RestoreRequest, SnapshotFiles};
use crate::console::{Output, Quiesce};
use crate::events::EventLog;
use crate::exit_status::ExitStatus;
use crate::hypervisor::Hypervisor;
use crate::machine::{Board, Machine};
use crate::spec::Spec;

/// A snapshot whose state has been read and checked; nothing has been made of it.
pub struct Saved {
    /// The configuration of the VM when it was saved.
    pub(super) config: Config,
}

/// A VM that is to be restored.
#[expect(dead_code, reason = "nothing restores a machine yet")]
pub struct Restore {
    pub(super) saved: Saved,
    /// Whether memory is read when the guest touches it.
    pub(super) lazy: bool,
    /// Whether the guest runs then.
    pub(super) resume: bool,
}

/// Why a VM was not saved.
#[cfg_attr(not(test), expect(dead_code, reason = "nothing saves a machine yet"))]
#[derive(Debug, Error)]
pub(super) enum SaveError {
    /// A file cannot be created.
    #[error("cannot create {} for the snapshot", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A device has not finished what it does.
    #[error("{0} has not finished what it has under way; the VM stays paused")]
    Busy(String),
    /// The host fails.
    #[error("{0}")]
    Host(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This program cannot.
    #[error("snapshots are not built in")]
    NotBuiltIn,
}

/// Why a VM was not restored.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {} of the snapshot", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// This program cannot.
    #[error("snapshots are not built in")]
    NotBuiltIn,
}

impl LoadError {
    /// The status that the process ends with.
    pub(super) fn status(&self) -> ExitStatus {
        match self {
            Self::Read { source, .. } => ExitStatus::for_input(source.kind()),
            Self::NotBuiltIn => ExitStatus::Unavailable,
        }
    }
}

impl From<SaveError> for ControlError {
    fn from(error: SaveError) -> Self {
        const ACTION: &str = "save the VM";
        match error {
            SaveError::Create { .. } | SaveError::NotBuiltIn => {
                Self::refused(crate::error::chain(&error))
            }
            SaveError::Busy(_) => Self::unavailable(ACTION, error),
            SaveError::Host(source) => Self::failed(ACTION, source),
        }
    }
}

/// The description of a machine as it is now, which is what a snapshot has of it: with MTE or without, whatever the
/// next host could give.
pub(super) fn as_it_is(machine: &Machine, spec: &Spec, has_mte: bool) -> Spec {
    Spec {
        disks: machine.disks().cloned().collect(),
        net: machine.network_interfaces().cloned().collect(),
        mte: if has_mte { MteMode::Require } else { MteMode::Off },
        tag_storage: spec.tag_storage.clone().filter(|_| has_mte),
        ..spec.clone()
    }
}

/// Checks all that can be checked of a restore before anything is made.
pub(super) fn prepare(
    request: RestoreRequest,
    flags: CommandLineOnly<'_>,
) -> Result<(Spec, Restore), Error> {
    let RestoreRequest { files, lazy, resume, changes } = request;
    let saved = read(&files)?;
    let config = Config::restored(saved.config.clone(), changes).map_err(config::Error::from)?;
    let spec = Spec::new(config, CommandLineOnly { snapshot: Some(&files), ..flags })?;
    Ok((spec, Restore { saved, lazy, resume }))
}

/// Writes a paused machine into files.
pub(super) fn save(
    _machine: &mut Machine,
    _spec: &Spec,
    _to: &SnapshotFiles,
) -> Result<(), SaveError> {
    Err(SaveError::NotBuiltIn)
}

/// Reads and checks what a snapshot says of its VM and of its host.
pub(super) fn read(_files: &SnapshotFiles) -> Result<Saved, LoadError> {
    Err(LoadError::NotBuiltIn)
}

/// The configuration of a VM when it was saved.
///
/// # Errors
/// When the snapshot cannot be read, or is none.
pub fn saved_config(files: &SnapshotFiles) -> Result<Config, LoadError> {
    read(files).map(|saved| saved.config)
}

/// Makes the VM of a snapshot, its memory and its vCPUs.
pub(super) fn board(
    _spec: &Spec,
    _hypervisor: &dyn Hypervisor,
    _restore: &Restore,
) -> Result<Board, LoadError> {
    Err(LoadError::NotBuiltIn)
}

/// Gives it its devices, and all of it the state that was saved.
pub(super) fn machine(
    _board: Board,
    _spec: &Spec,
    _restore: &Restore,
    _output: Output,
    _quiesce: Quiesce,
    _log: EventLog,
) -> Result<Machine, LoadError> {
    Err(LoadError::NotBuiltIn)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::ErrorKind;
    use std::path::Path;

    use super::*;
    use crate::config::SerialSection;
    use crate::hypervisor::fake::FakeHypervisor;
    use crate::machine::testing::{config, machine, spec};

    #[test]
    fn what_the_client_can_mend_is_refused_and_what_it_cannot_has_failed() {
        let create = |kind| SaveError::Create { path: "/s".into(), source: io::Error::from(kind) };
        for error in [create(ErrorKind::NotFound), create(ErrorKind::PermissionDenied)] {
            let answer = ControlError::from(error);
            assert!(matches!(answer, ControlError::Refused(_)), "{answer:?}");
            assert!(answer.to_string().contains("/s"), "{answer}");
        }
        let busy = ControlError::from(SaveError::Busy("the disk a".to_owned()));
        assert!(matches!(busy, ControlError::Unavailable { .. }), "{busy:?}");
        let full = io::Error::from(ErrorKind::StorageFull);
        let full = ControlError::from(SaveError::Host(full.into()));
        assert!(matches!(full, ControlError::Failed { .. }), "{full:?}");
    }

    #[test]
    fn a_saved_description_has_the_mte_that_the_guest_has() {
        let hypervisor = FakeHypervisor::new([vec![]]);
        let machine = machine(&hypervisor, 1);
        let auto = spec(config(Path::new("Image"), 1));

        let modes = [true, false].map(|has_mte| as_it_is(&machine, &auto, has_mte).mte);

        assert_eq!(modes, [MteMode::Require, MteMode::Off]);
    }

    #[test]
    fn a_snapshot_replaces_nothing_that_the_vm_uses() {
        let mut used = config(Path::new("/boot/Image"), 1);
        used.serial = Some(SerialSection::from_flag("file:/run/console"));
        let spec = spec(used);
        let files = |state: &str, memory: &str| SnapshotFiles {
            state: state.into(),
            memory: memory.into(),
        };

        for wrong in [
            files("/boot/Image", "/s/memory"),
            files("/s/state", "/run/../run/console"),
            files("/s/one", "/s/one"),
        ] {
            let error = spec.check_snapshot(&wrong).unwrap_err();
            assert!(error.to_string().contains("give each a path of its own"), "{error}");
        }
        assert_eq!(spec.check_snapshot(&files("/s/state", "/s/memory")), Ok(()));
    }
}
