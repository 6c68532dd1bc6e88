//! Snapshots: what `PUT /snapshot/create`, `PUT /snapshot/load` and `--restore` need of the machine and its files.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use arch::units::Bytes;
use thiserror::Error;

use super::Error;
use crate::api::ControlError;
use crate::api::model::SnapshotType;
use crate::backends::balloon::{self, Status};
use crate::config::{
    self, CommandLineOnly, Config, MemoryBacking, MteMode, RestoreMemory, RestoreRequest,
    SnapshotFiles,
};
use crate::error::{chain, say};
use crate::exit_status::ExitStatus;
use crate::hypervisor::state::VcpuState;
use crate::hypervisor::{self, Hypervisor};
use crate::machine::{self, Board, Machine, MachineState, NoBase, PausedMemory, SavedMemory};
use crate::sandbox::{self, FileUse};
use crate::snapshot::{
    self, CpuFeatures, Fault, Kind, Manifest, MemoryReader, NewPair, Pair, SnapshotId, State,
    WorkingSet,
};
use crate::spec::{BalloonSpec, Spec};
use crate::template;

/// A snapshot whose state has been read and checked; nothing has been made of it.
pub struct Saved {
    /// The configuration of the VM when it was saved.
    pub(super) config: Config,
    pair: Pair,
}

/// A VM that is to be restored.
pub struct Restore {
    state: State,
    memory: SavedMemory,
    /// Whether the guest runs then.
    pub(super) resume: bool,
}

/// Why a VM was not saved.
#[derive(Debug, Error)]
pub(super) enum SaveError {
    /// The machine cannot be saved now.
    #[error(transparent)]
    Machine(#[from] machine::SaveStateError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] snapshot::Error),
    /// The host does not show which pages of guest memory there are.
    #[error("the host does not show which pages of guest memory there are (/proc/self/pagemap)")]
    Pages(#[source] io::Error),
    /// There is nothing that a diff could build on.
    #[error(transparent)]
    NoBase(#[from] NoBase),
    /// The hypervisor does not give its log of writes.
    #[error(transparent)]
    Log(#[from] hypervisor::Error),
    /// The configuration has no form that can be saved.
    #[error("the configuration of the VM cannot be written")]
    Config(#[source] serde_json::Error),
}

/// Why a VM was not restored.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] snapshot::Error),
    /// Its configuration is of a program that knows more than this one, or of none.
    #[error(
        "the configuration in the snapshot cannot be read: restore it with the version of tessera that saved it"
    )]
    Config(#[source] serde_json::Error),
    /// Locked memory is all read at once.
    #[error(
        "the VM's memory is locked, which reads all of it at once: leave out --lazy (\"lazy\" in the API)"
    )]
    LazyLocked,
    /// Only anonymous memory can be replaced page by page.
    #[error(
        "only anonymous memory can be shared with a template, and that of the snapshot is not: leave out --shared \
         (\"shared\" in the API)"
    )]
    SharedBacking,
    /// Locked memory is copied at once.
    #[error(
        "the VM's memory is locked, which copies all of it at once: leave out --shared (\"shared\" in the API)"
    )]
    SharedLocked,
    /// There is no template.
    #[error(transparent)]
    Template(#[from] template::Error),
    /// The host has pages of another size.
    #[error(
        "the snapshot is of a host with pages of {saved}, and this one has pages of {here}: restore it on a host with \
         the same"
    )]
    PageSize {
        /// When it was saved.
        saved: Bytes,
        /// The host's.
        here: Bytes,
    },
}

impl Restore {
    /// The memory file beside which a record of what is touched is made.
    pub(super) fn record(&self) -> Option<&std::path::Path> {
        match &self.memory {
            SavedMemory::Lazy(reader, WorkingSet::Recording(_)) => Some(reader.path()),
            _ => None,
        }
    }
}

impl LoadError {
    /// The status that the process ends with.
    pub(super) fn status(&self) -> ExitStatus {
        match self {
            Self::File(error) => error.status(),
            Self::Config(_) => ExitStatus::BadImage,
            Self::LazyLocked | Self::SharedBacking | Self::SharedLocked => ExitStatus::Config,
            Self::Template(_) | Self::PageSize { .. } => ExitStatus::Unavailable,
        }
    }
}

impl From<SaveError> for ControlError {
    fn from(error: SaveError) -> Self {
        const ACTION: &str = "save the VM";
        match &error {
            // What waits for tag storage or for a disk may have it the next time.
            SaveError::Machine(machine) if machine.may_pass() => Self::unavailable(ACTION, error),
            SaveError::File(file) if is_forbidden(file) => Self::refused(format!(
                "{}: a VM makes files in the folder of its control socket and in those that it was started with alone: \
                 start it with --allow DIR, or with --sandbox off",
                chain(&error)
            )),
            SaveError::File(file) if is_of_the_path(&file.fault) => Self::refused(chain(&error)),
            SaveError::NoBase(_) => Self::refused(chain(&error)),
            _ => Self::failed(ACTION, error),
        }
    }
}

/// Whether the sandbox is what keeps a file from being made. Where it lets the file be made, modes keep it from that.
fn is_forbidden(error: &snapshot::Error) -> bool {
    let is_denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
    matches!(&error.fault, Fault::Create(source) if is_denied(source))
        && sandbox::forbids(&error.file, FileUse::Make)
}

/// Whether a file cannot be written for a reason that another path would not have.
fn is_of_the_path(fault: &Fault) -> bool {
    use io::ErrorKind as Kind;

    match fault {
        Fault::NotRegular | Fault::NoName | Fault::SameFile => true,
        Fault::Create(source) => matches!(
            source.kind(),
            Kind::NotFound
                | Kind::PermissionDenied
                | Kind::NotADirectory
                | Kind::IsADirectory
                | Kind::ReadOnlyFilesystem
                | Kind::InvalidFilename
                // A path with a zero byte.
                | Kind::InvalidInput
        ),
        _ => false,
    }
}

/// The description of a machine as it is now, which is what a snapshot has of it: with MTE or without, whatever the
/// next host could give.
pub(super) fn as_it_is(machine: &Machine, spec: &Spec, has_mte: bool) -> Spec {
    Spec {
        disks: machine.disks().cloned().collect(),
        net: machine.network_interfaces().cloned().collect(),
        // It is all in the snapshot.
        boot_image: false,
        mte: if has_mte { MteMode::Require } else { MteMode::Off },
        tag_storage: spec.tag_storage.clone().filter(|_| has_mte),
        balloon: spec.balloon.map(|spec| balloon_as_it_is(machine, spec)),
        ..spec.clone()
    }
}

fn balloon_as_it_is(machine: &Machine, spec: BalloonSpec) -> BalloonSpec {
    match machine.balloon().map(balloon::Control::status) {
        Some(Status { target, stats_interval_s, auto, .. }) => BalloonSpec {
            target,
            stats_interval_s,
            auto: auto.choice.is_some(),
            floor: (auto.choice.is_some() || spec.floor.is_some()).then_some(auto.floor),
            ..spec
        },
        None => spec,
    }
}

/// Checks all that can be checked of a restore before anything is made.
pub(super) fn prepare(
    request: RestoreRequest,
    flags: CommandLineOnly<'_>,
) -> Result<(Spec, Restore), Error> {
    let RestoreRequest { files, memory, resume, changes } = request;
    let lazy = matches!(memory, RestoreMemory::Lazy { .. });
    let saved = read(&files)?;
    let config = Config::restored(saved.config.clone(), changes).map_err(config::Error::from)?;
    let spec = Spec::new(config, CommandLineOnly { snapshot: Some(&files), ..flags })?;
    if lazy && spec.lock_memory {
        return Err(LoadError::LazyLocked.into());
    }
    let Pair { state, memory: reader } = saved.pair;
    let memory = match memory {
        RestoreMemory::Eager => SavedMemory::Eager(reader),
        RestoreMemory::Lazy { record } => {
            let working_set = working_set(&reader, record)?;
            SavedMemory::Lazy(reader, working_set)
        }
        RestoreMemory::Shared => {
            check_shared(&spec)?;
            SavedMemory::Shared(template::connect(&reader).map_err(LoadError::from)?)
        }
    };
    Ok((spec, Restore { state, memory, resume }))
}

/// What is known of what the guest touches first, or the means to record it.
fn working_set(memory: &MemoryReader, record: bool) -> Result<WorkingSet, LoadError> {
    if record {
        return Ok(WorkingSet::record(memory)?);
    }
    Ok(WorkingSet::read(memory).unwrap_or_else(|error| {
        say(&format!("no memory is read before the guest touches it: {}", chain(&error)));
        WorkingSet::Known(Vec::new())
    }))
}

/// Whether the memory of such a VM can be a template's.
fn check_shared(spec: &Spec) -> Result<(), LoadError> {
    if spec.backing != MemoryBacking::Anonymous {
        return Err(LoadError::SharedBacking);
    }
    match spec.lock_memory {
        true => Err(LoadError::SharedLocked),
        false => Ok(()),
    }
}

/// Writes a paused machine into files, with all of its memory or with what has changed. It may be resumed whatever
/// becomes of them, and what is not saved is a change as before. Returns which snapshot is to be
/// [confirmed](Machine::confirm).
pub(super) fn save(
    machine: &mut Machine,
    spec: &Spec,
    to: &SnapshotFiles,
    what: SnapshotType,
) -> Result<SnapshotId, SaveError> {
    let base = match what {
        SnapshotType::Full => None,
        SnapshotType::Diff => Some(machine.base()?),
    };
    let config = serde_json::to_value(spec.to_config()).map_err(SaveError::Config)?;
    let state = machine.save()?;
    let contents = PausedMemory::new(machine.ram()).map_err(SaveError::Pages)?;
    let mut pair = NewPair::create(&to.state, &to.memory)?;
    // After all that can change memory.
    let changes = machine.take_changes()?;
    let since = changes.as_ref().filter(|_| base.is_some());
    machine.load_memory(since)?;
    pair.save_memory(&contents.since(since), base, &mut |_| {})?;
    let mut manifest = manifest(&state, spec, config);
    manifest.kind = base.map_or(Kind::Full, |base| Kind::Diff { base });
    let MachineState { vcpus, gic, clock, devices, .. } = state;
    let id = pair.id();
    pair.commit(&State { id, manifest, vcpus, gic, clock, devices })?;
    machine.saved_as(id, changes);
    Ok(id)
}

fn manifest(state: &MachineState, spec: &Spec, config: serde_json::Value) -> Manifest {
    let first = state.vcpus.first();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Manifest {
        kind: Kind::Full,
        page_size: rustix::param::page_size() as u64,
        gic_version: state.gic.version,
        counter_frequency: state.clock.frequency,
        mte: state.mte,
        cpu_features: CpuFeatures {
            sve: first.is_some_and(|vcpu| vcpu.sve_lengths.is_some()),
            pauth: first.is_some_and(VcpuState::has_pointer_authentication),
            pmu: spec.pmu,
        },
        memory_size: spec.memory.get(),
        guest_page_size: Some(state.guest_page.get()),
        config,
        vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        host_kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        saved_at: since.as_secs(),
    }
}

/// Reads and checks what a snapshot says of its VM and of its host.
fn read(files: &SnapshotFiles) -> Result<Saved, LoadError> {
    let pair = Pair::open(&files.state, &files.memory)?;
    let manifest = &pair.state.manifest;
    let (saved, here) = (manifest.page_size(), Bytes::new(rustix::param::page_size() as u64));
    if saved != here {
        return Err(LoadError::PageSize { saved, here });
    }
    let config = serde_json::from_value(manifest.config.clone()).map_err(LoadError::Config)?;
    Ok(Saved { config, pair })
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
    spec: &Spec,
    hypervisor: &dyn Hypervisor,
    restore: Restore,
) -> Result<Board, machine::Error> {
    let State { id, manifest, vcpus, gic, clock, devices } = restore.state;
    let guest_page = manifest.guest_page_size.map_or(Bytes::kib(4), Bytes::new);
    let state = MachineState { vcpus, gic, clock, devices, mte: manifest.mte, guest_page };
    let board = Board::restored(spec, hypervisor, state, restore.memory)?;
    if spec.track_dirty_pages { board.track_since(id) } else { Ok(board) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::ErrorKind;
    use std::path::Path;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::config::{RestoreChanges, SerialSection, TagStorageMode, TagStorageSection};
    use crate::hypervisor::fake::FakeHypervisor;
    use crate::machine::testing::{config, machine, spec};
    use crate::snapshot::testing::{FakeMemory, state};

    #[test]
    fn what_the_client_can_mend_is_refused_and_what_it_cannot_has_failed() {
        let file = |fault| {
            ControlError::from(SaveError::File(snapshot::Error { file: "/s".into(), fault }))
        };
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::PermissionDenied,
            ErrorKind::NotADirectory,
            ErrorKind::ReadOnlyFilesystem,
            ErrorKind::InvalidInput,
        ] {
            let answer = file(Fault::Create(io::Error::from(kind)));
            assert!(matches!(answer, ControlError::Refused(_)), "{answer:?}");
            assert!(answer.to_string().contains("/s"), "{answer}");
        }
        let busy = ControlError::from(SaveError::Machine(machine::SaveStateError::Busy));
        assert!(matches!(busy, ControlError::Unavailable { .. }), "{busy:?}");
        let io = io::Error::from;
        for of_the_host in [
            Fault::NoSpace(io(ErrorKind::StorageFull)),
            Fault::Create(io(ErrorKind::StorageFull)),
            Fault::Create(io(ErrorKind::QuotaExceeded)),
            Fault::Create(io(ErrorKind::OutOfMemory)),
            Fault::Write(io(ErrorKind::Other)),
        ] {
            let answer = file(of_the_host);
            assert!(matches!(answer, ControlError::Failed { .. }), "{answer:?}");
        }
    }

    /// A folder with a snapshot of a VM with this configuration.
    fn snapshot_of(config: serde_json::Value) -> (TempDir, SnapshotFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::in_folder(folder.path());
        let page = Bytes::new(rustix::param::page_size() as u64);
        let memory = FakeMemory::new(32, page, true);
        let mut pair = NewPair::create(&files.state, &files.memory).unwrap();
        pair.save_memory(&memory, None, &mut |_| {}).unwrap();
        let mut state = state(pair.id(), &memory);
        state.manifest.config = config;
        pair.commit(&state).unwrap();
        (folder, files)
    }

    fn prepared(
        files: &SnapshotFiles,
        lazy: bool,
        changes: RestoreChanges,
    ) -> Result<(Spec, Restore), Error> {
        let memory = match lazy {
            true => RestoreMemory::Lazy { record: false },
            false => RestoreMemory::Eager,
        };
        let request = RestoreRequest { files: files.clone(), memory, resume: true, changes };
        prepare(request, CommandLineOnly::default())
    }

    fn status(files: &SnapshotFiles) -> ExitStatus {
        prepared(files, false, RestoreChanges::default()).err().unwrap().status()
    }

    #[test]
    fn a_description_comes_back_as_it_was_saved() {
        let saved = Spec { mte: MteMode::Require, ..spec(config(Path::new("/boot/Image"), 2)) };
        let (_folder, files) = snapshot_of(serde_json::to_value(saved.to_config()).unwrap());

        let (restored, restore) = prepared(&files, true, RestoreChanges::default()).unwrap();

        let mut expected = saved.to_config();
        expected.serial = Some(SerialSection::from_flag("stdio"));
        assert_eq!(restored.to_config(), expected);
        assert_eq!(saved_config(&files).unwrap(), saved.to_config());
        assert!(matches!(restore.memory, SavedMemory::Lazy(..)) && restore.resume);
    }

    #[test]
    fn a_snapshot_that_cannot_be_read_has_its_documented_status() {
        let (folder, files) = snapshot_of(json!({ "machine-config": { "vcpu_count": 2 } }));
        // No kernel, which a VM has.
        assert_eq!(status(&files), ExitStatus::Config);
        let (_other, unknown) = snapshot_of(json!({ "machine-config": { "sockets": 2 } }));
        assert_eq!(status(&unknown), ExitStatus::BadImage);
        let SnapshotFiles { state, memory } = files.clone();
        let swapped = SnapshotFiles { state: memory, memory: state };
        assert_eq!(status(&swapped), ExitStatus::BadImage);
        let mixed = SnapshotFiles { memory: unknown.memory, ..files.clone() };
        assert_eq!(status(&mixed), ExitStatus::BadImage);
        let absent = SnapshotFiles::in_folder(&folder.path().join("absent"));
        assert_eq!(status(&absent), ExitStatus::NoInput);
        std::fs::write(&files.memory, "short").unwrap();
        assert_eq!(status(&files), ExitStatus::BadImage);
    }

    #[test]
    fn memory_is_lazy_however_tag_storage_is_reserved() {
        let saved = Spec { mte: MteMode::Require, ..spec(config(Path::new("/boot/Image"), 1)) };
        let (_folder, files) = snapshot_of(serde_json::to_value(saved.to_config()).unwrap());
        for mode in [TagStorageMode::Demand, TagStorageMode::Strict] {
            let changes = RestoreChanges {
                tag_storage: TagStorageSection { mode: Some(mode), ..TagStorageSection::default() },
                ..RestoreChanges::default()
            };

            let (spec, restore) = prepared(&files, true, changes).unwrap();

            assert!(matches!(restore.memory, SavedMemory::Lazy(..)));
            let when = &spec.tag_storage.as_ref().unwrap().when;
            let is_on_demand = matches!(when, crate::spec::ReservationMode::Demand { .. });
            assert_eq!(is_on_demand, mode == TagStorageMode::Demand);
        }
    }

    #[test]
    fn a_working_set_is_read_or_recorded_and_a_bad_one_is_left_out() {
        let saved = spec(config(Path::new("/boot/Image"), 1));
        let (_folder, files) = snapshot_of(serde_json::to_value(saved.to_config()).unwrap());
        let working_set = |record| {
            let memory = RestoreMemory::Lazy { record };
            let changes = RestoreChanges::default();
            let request = RestoreRequest { files: files.clone(), memory, resume: true, changes };
            match prepare(request, CommandLineOnly::default()).unwrap().1.memory {
                SavedMemory::Lazy(_, working_set) => working_set,
                _ => unreachable!(),
            }
        };
        let known = |chunks: &[u64]| match working_set(false) {
            WorkingSet::Known(found) => assert_eq!(found, chunks),
            WorkingSet::Recording(_) => panic!("it is not to be recorded"),
        };

        known(&[]);
        let WorkingSet::Recording(recorder) = working_set(true) else {
            panic!("it is to be recorded")
        };
        known(&[]);
        recorder.write(&[1, 0]).unwrap();
        known(&[1, 0]);
        std::fs::write(WorkingSet::path(&files.memory), "none").unwrap();
        known(&[]);
    }

    #[test]
    fn memory_that_is_locked_is_not_lazy() {
        let locked = Spec { lock_memory: true, ..spec(config(Path::new("/boot/Image"), 1)) };
        let (_folder, files) = snapshot_of(serde_json::to_value(locked.to_config()).unwrap());

        let refused = prepared(&files, true, RestoreChanges::default()).err().unwrap();

        assert!(chain(&refused).contains("locked"), "{refused:?}");
        assert_eq!(refused.status(), ExitStatus::Config);
    }

    #[test]
    fn memory_that_cannot_be_replaced_page_by_page_is_not_shared() {
        let plain = Spec { mte: MteMode::Require, ..spec(config(Path::new("/boot/Image"), 1)) };
        let cases = [
            (Spec { lock_memory: true, ..plain.clone() }, "locked"),
            (Spec { backing: MemoryBacking::Memfd, ..plain }, "anonymous"),
        ];
        for (saved, words) in cases {
            let (_folder, files) = snapshot_of(serde_json::to_value(saved.to_config()).unwrap());
            let changes = RestoreChanges::default();
            let memory = RestoreMemory::Shared;
            let request = RestoreRequest { files, memory, resume: true, changes };

            let refused = prepare(request, CommandLineOnly::default()).err().unwrap();

            assert!(chain(&refused).contains(words), "{refused:?}");
            assert_eq!(refused.status(), ExitStatus::Config);
        }
    }

    #[test]
    fn a_saved_description_has_the_balloon_as_it_was_changed() {
        let hypervisor = FakeHypervisor::new([vec![]]);
        let machine = machine(&hypervisor, 1);
        let started = spec(config(Path::new("Image"), 1));
        let target = Bytes::mib(16);
        let request = balloon::Request { target_mib: Some(16), ..Default::default() };
        machine.balloon().unwrap().update(&request).unwrap();

        let saved = as_it_is(&machine, &started, true);

        assert_eq!(saved.balloon, started.balloon.map(|spec| BalloonSpec { target, ..spec }));
        let request =
            balloon::Request { auto: Some(true), floor_mib: Some(20), ..Default::default() };
        machine.balloon().unwrap().update(&request).unwrap();
        let saved = as_it_is(&machine, &started, true).balloon.unwrap();
        assert_eq!((saved.target, saved.auto), (target, true));
        assert_eq!(saved.floor, Some(Bytes::mib(20)));
        // A target that is named ends the VMM's choice.
        let request = balloon::Request { target_mib: Some(8), ..Default::default() };
        machine.balloon().unwrap().update(&request).unwrap();
        let saved = as_it_is(&machine, &started, true).balloon.unwrap();
        assert_eq!((saved.target, saved.auto), (Bytes::mib(8), false));
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

#[cfg(test)]
mod diffs;
