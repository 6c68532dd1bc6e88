#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arch::layout::RAM_BASE;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::config::RestoreChanges;
use crate::console::{Output, Quiesce};
use crate::events::EventLog;
use crate::hypervisor::fake::FakeHypervisor;
use crate::machine::NotProvisional;
use crate::machine::testing::{config, kernel, spec};
use crate::snapshot::testing::FakeMemory;
use crate::snapshot::{SnapshotId, load_memory, merge};
use crate::vcpu::fake::Event;

/// A machine that is paused, and a folder for its snapshots.
struct Saved {
    hypervisor: FakeHypervisor,
    machine: Machine,
    spec: Spec,
    folder: TempDir,
}

impl Saved {
    fn new(tracks: bool) -> Self {
        let kernel = kernel();
        let mut config = config(kernel.path(), 1);
        config.machine_config.as_mut().unwrap().track_dirty_pages = Some(tracks);
        let spec = Spec { mte: MteMode::Off, ..spec(config) };
        let hypervisor = FakeHypervisor::new([vec![]]);
        let board = Board::new(&spec, &hypervisor).unwrap();
        let mut vm = Self::with(hypervisor, board, spec);
        // It can be saved when it has started.
        vm.machine.resume().unwrap();
        vm.hypervisor.guest.wait_until_inside(1);
        vm.machine.pause().unwrap();
        vm
    }

    fn with(hypervisor: FakeHypervisor, board: Board, spec: Spec) -> Self {
        let (quiesce, log) = (Quiesce::default(), EventLog::default());
        let machine = Machine::new(board, &spec, Output::nowhere(), quiesce, log).unwrap();
        Self { hypervisor, machine, spec, folder: tempfile::tempdir().unwrap() }
    }

    fn files(&self, name: &str) -> SnapshotFiles {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        SnapshotFiles::in_folder(&folder)
    }

    fn save(&mut self, name: &str, what: SnapshotType) -> Result<(), ControlError> {
        let id = self.save_provisionally(name, what)?;
        self.machine.confirm(id).unwrap();
        Ok(())
    }

    fn save_provisionally(
        &mut self,
        name: &str,
        what: SnapshotType,
    ) -> Result<SnapshotId, ControlError> {
        let files = self.files(name);
        Ok(save(&mut self.machine, &self.spec, &files, what)?)
    }

    fn open(&self, name: &str) -> Pair {
        let SnapshotFiles { state, memory } = self.files(name);
        Pair::open_any(&state, &memory).unwrap()
    }

    fn id(&self, name: &str) -> SnapshotId {
        self.open(name).state.id
    }

    fn kind(&self, name: &str) -> Kind {
        self.open(name).state.manifest.kind
    }

    fn write(&self, page: u64, byte: u8) {
        let at = RAM_BASE.0 + page * rustix::param::page_size() as u64;
        self.machine.ram().write_slice(&[byte; 100], GuestAddress(at)).unwrap();
    }

    /// Whether a full snapshot has memory as it is.
    fn is_in(&self, name: &str) -> bool {
        let pair = self.open(name);
        let about = pair.memory.about();
        let memory = FakeMemory::new(about.chunks(), about.page_size, about.tagged);
        load_memory(&memory, &pair.memory, &mut |_| {}).unwrap();
        let mut data = vec![0; about.size.get() as usize];
        self.machine.ram().read_slice(&mut data, RAM_BASE).unwrap();
        data == memory.data()
    }

    fn merge(&self, base: &str, diffs: &[&str], into: &str) {
        let files = self.files(into);
        let diffs: Vec<_> = diffs.iter().map(|diff| self.open(diff)).collect();
        merge(&self.open(base), &diffs, &files.state, &files.memory, &mut |_| {}).unwrap();
    }
}

#[test]
fn a_diff_needs_tracking_and_a_snapshot_before_it() {
    let refused = |vm: &mut Saved| match vm.save("diff", SnapshotType::Diff) {
        Err(ControlError::Refused(text)) => text,
        other => panic!("{other:?}"),
    };
    let mut untracked = Saved::new(false);
    untracked.save("full", SnapshotType::Full).unwrap();
    assert!(refused(&mut untracked).contains("--track-dirty-pages"));
    let events = untracked.hypervisor.guest.events();
    assert!(!events.contains(&Event::Note("writes logged")), "{events:?}");

    let mut tracked = Saved::new(true);
    assert!(refused(&mut tracked).contains("make a Full one first"));
    // Before there is a snapshot to build on nothing is tracked.
    let events = tracked.hypervisor.guest.events();
    assert!(!events.contains(&Event::Note("writes logged")), "{events:?}");
    tracked.save("full", SnapshotType::Full).unwrap();
    tracked.save("diff", SnapshotType::Diff).unwrap();
}

#[test]
fn diffs_have_what_was_written_since_and_build_on_each_other() {
    let mut vm = Saved::new(true);
    vm.write(7, 1);
    vm.save("full", SnapshotType::Full).unwrap();
    vm.write(7, 2);
    vm.save("one", SnapshotType::Diff).unwrap();
    vm.write(300, 3);
    vm.save("two", SnapshotType::Diff).unwrap();

    assert_eq!(vm.kind("one"), Kind::Diff { base: vm.id("full") });
    assert_eq!(vm.kind("two"), Kind::Diff { base: vm.id("one") });
    // Memory slots are set once.
    let events = vm.hypervisor.guest.events();
    let count = |note| events.iter().filter(|event| **event == Event::Note(note)).count();
    assert_eq!((count("writes logged"), count("log collected")), (1, 3));
    let length = vm.files("two").memory.metadata().unwrap().len();
    assert!(length < 4 * rustix::param::page_size() as u64);
    vm.merge("full", &["one", "two"], "merged");
    assert!(vm.is_in("merged"));
    // A full one begins again.
    vm.save("again", SnapshotType::Full).unwrap();
    vm.write(9, 4);
    vm.save("three", SnapshotType::Diff).unwrap();
    vm.merge("again", &["three"], "merged");
    assert!(vm.is_in("merged"));
}

#[test]
fn what_was_not_saved_is_in_the_next_diff() {
    let mut vm = Saved::new(true);
    vm.save("full", SnapshotType::Full).unwrap();
    vm.write(5, 1);
    // It is found when both files are written.
    let wrong = Spec { memory: Bytes::mib(128), ..vm.spec.clone() };
    for what in [SnapshotType::Diff, SnapshotType::Full] {
        let files = vm.files("failed");
        assert!(save(&mut vm.machine, &wrong, &files, what).is_err());
        assert!(!files.state.exists() && !files.memory.exists());
    }
    vm.write(6, 2);

    vm.save("diff", SnapshotType::Diff).unwrap();

    assert_eq!(vm.kind("diff"), Kind::Diff { base: vm.id("full") });
    vm.merge("full", &["diff"], "merged");
    assert!(vm.is_in("merged"));
}

#[test]
fn what_is_not_confirmed_is_in_the_next_diff_and_that_builds_on_what_is() {
    for (first, second) in [
        (SnapshotType::Diff, SnapshotType::Diff),
        (SnapshotType::Diff, SnapshotType::Full),
        (SnapshotType::Full, SnapshotType::Diff),
    ] {
        let mut vm = Saved::new(true);
        vm.save("full", SnapshotType::Full).unwrap();
        vm.write(5, 1);
        let lost = vm.save_provisionally("lost", first).unwrap();
        vm.write(6, 2);
        let lost_too = vm.save_provisionally("lost too", second).unwrap();
        vm.write(300, 3);

        assert_eq!(vm.machine.confirm(lost), Err(NotProvisional));
        vm.save("diff", SnapshotType::Diff).unwrap();

        assert_eq!(vm.kind("diff"), Kind::Diff { base: vm.id("full") });
        vm.merge("full", &["diff"], "merged");
        assert!(vm.is_in("merged"));
        assert_eq!(vm.machine.confirm(lost_too), Err(NotProvisional));
        // One that is confirmed late is as good.
        vm.write(7, 4);
        let late = vm.save_provisionally("late", SnapshotType::Diff).unwrap();
        vm.write(8, 5);
        vm.machine.confirm(late).unwrap();
        assert_eq!(vm.machine.confirm(late), Err(NotProvisional));
        vm.save("last", SnapshotType::Diff).unwrap();
        assert_eq!(vm.kind("last"), Kind::Diff { base: vm.id("late") });
        vm.merge("full", &["diff", "late", "last"], "merged");
        assert!(vm.is_in("merged"));
    }
}

#[test]
fn the_first_snapshot_is_no_base_before_it_is_confirmed() {
    let mut vm = Saved::new(true);
    let first = vm.save_provisionally("full", SnapshotType::Full).unwrap();
    assert_eq!(vm.machine.base(), Err(NoBase::NeverSaved));
    vm.write(5, 1);
    vm.machine.confirm(first).unwrap();

    vm.save("diff", SnapshotType::Diff).unwrap();

    vm.merge("full", &["diff"], "merged");
    assert!(vm.is_in("merged"));
    // Nothing is tracked, and nothing to be confirmed.
    let mut untracked = Saved::new(false);
    untracked.save("full", SnapshotType::Full).unwrap();
}

#[test]
fn a_restored_machine_has_diffs_on_what_it_was_restored_from() {
    let mut first = Saved::new(true);
    first.write(5, 1);
    first.save("full", SnapshotType::Full).unwrap();
    let request = |tracks| RestoreRequest {
        files: first.files("full"),
        memory: RestoreMemory::Eager,
        resume: false,
        changes: RestoreChanges { track_dirty_pages: tracks, ..RestoreChanges::default() },
    };
    let restored = |tracks| {
        let (spec, restore) = prepare(request(tracks), CommandLineOnly::default()).unwrap();
        let hypervisor = FakeHypervisor::new([vec![]]);
        let board = board(&spec, &hypervisor, restore).unwrap();
        Saved::with(hypervisor, board, spec)
    };
    let bases = [true, false].map(|tracks| restored(tracks).machine.base());
    assert_eq!(bases, [Ok(first.id("full")), Err(NoBase::NotTracked)]);
    let mut vm = restored(true);
    vm.write(2, 9);

    vm.save("diff", SnapshotType::Diff).unwrap();

    let diff = vm.open("diff");
    assert_eq!(diff.state.manifest.kind, Kind::Diff { base: first.id("full") });
    let chunks: BTreeSet<_> = diff.memory.chunks().collect();
    assert_eq!(chunks, [0].into());
    let files = vm.files("merged");
    merge(&first.open("full"), &[diff], &files.state, &files.memory, &mut |_| {}).unwrap();
    assert!(vm.is_in("merged"));
}
