#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::path::PathBuf;

use arch::layout::{CHUNK, RAM_BASE};
use arch::range::MemoryRange;
use arch::units::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress, VolatileSlice};

use crate::machine::PausedMemory;
use crate::memory::{Attributes, GuestRam};
use crate::snapshot::memory_file::{About, GuestPages, Output};
use crate::snapshot::testing::state;
use crate::snapshot::{
    Kind, MEMORY, MemoryView, NewPair, PageSet, Pair, STATE, SnapshotId, merge, save_memory,
};

const CHUNKS: u64 = 2;

fn page() -> usize {
    rustix::param::page_size()
}

fn pages() -> usize {
    (CHUNKS * CHUNK.get()) as usize / page()
}

/// A view of memory with tags that are kept beside it, two a byte: the machine that runs this may have none.
struct Tagged<'a> {
    view: &'a dyn MemoryView,
    tags: &'a RefCell<Vec<u8>>,
}

impl GuestPages for Tagged<'_> {
    fn size(&self) -> Bytes {
        self.view.size()
    }

    fn page_size(&self) -> Bytes {
        self.view.page_size()
    }

    fn has_tags(&self) -> bool {
        true
    }

    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
        self.view.pages(offset, length)
    }
}

impl MemoryView for Tagged<'_> {
    fn present(&self, chunk: u64) -> io::Result<PageSet> {
        self.view.present(chunk)
    }

    fn unchanged(&self, chunk: u64) -> io::Result<PageSet> {
        self.view.unchanged(chunk)
    }

    fn read_tags(&self, offset: u64, packed: &mut [u8]) -> io::Result<()> {
        let start = offset as usize / 32;
        packed.copy_from_slice(&self.tags.borrow()[start..start + packed.len()]);
        Ok(())
    }
}

/// A disk that becomes full.
struct Full(Cell<u32>);

impl Full {
    fn take(&self) -> io::Result<()> {
        let left = self.0.get().checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        self.0.set(left);
        Ok(())
    }
}

impl Output for Full {
    fn write(&self, _: &[u8], _: u64) -> io::Result<()> {
        self.take()
    }

    fn write_pages(&self, _: &mut [VolatileSlice<'_>], _: u64) -> io::Result<()> {
        self.take()
    }
}

/// What happens to a VM.
#[derive(Clone, Debug)]
enum Step {
    /// A vCPU stores data to a page, or a tag, or both.
    Store {
        page: usize,
        data: Option<u8>,
        tag: Option<u8>,
    },
    /// A device does.
    Device {
        page: usize,
        length: usize,
        byte: u8,
    },
    Read {
        page: usize,
    },
    Discard {
        first: usize,
        count: usize,
    },
    Save {
        diff: bool,
        fails_after: Option<u32>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    // Few pages, so that they meet.
    let some =
        || prop_oneof![0usize..12, 500usize..530, 1010usize..1024].prop_map(|page| page % pages());
    prop_oneof![
        4 => (some(), any::<Option<u8>>(), prop::option::of(0u8..16))
            .prop_map(|(page, data, tag)| Step::Store { page, data, tag }),
        3 => (some(), 1usize..9000, any::<u8>())
            .prop_map(|(page, length, byte)| Step::Device { page, length, byte }),
        1 => some().prop_map(|page| Step::Read { page }),
        2 => (some(), 1usize..20).prop_map(|(first, count)| Step::Discard { first, count }),
        3 => (any::<bool>(), prop::option::of(0u32..4))
            .prop_map(|(diff, fails_after)| Step::Save { diff, fails_after }),
    ]
}

/// A VM's memory and its snapshots.
struct Vm {
    ram: GuestRam,
    tags: RefCell<Vec<u8>>,
    folder: TempDir,
    /// A full snapshot and the diffs after it.
    chain: Vec<SnapshotId>,
}

impl Vm {
    fn new() -> Self {
        let size = Bytes::new(CHUNKS * CHUNK.get());
        let ram = GuestRam::new(size, Attributes::default()).unwrap();
        let tags = RefCell::new(vec![0; size.get() as usize / 32]);
        Self { ram, tags, folder: tempfile::tempdir().unwrap(), chain: Vec::new() }
    }

    /// The log of the hypervisor has this page.
    fn log(&self, page: usize) {
        self.ram.add_changes(page, &[1]);
    }

    fn set_tags(&self, first: usize, count: usize, tag: u8) {
        let bytes = page() / 32;
        self.tags.borrow_mut()[first * bytes..(first + count) * bytes].fill(tag * 0x11);
    }

    fn perform(&mut self, step: &Step) {
        let at = |page: usize| GuestAddress(RAM_BASE.0 + (page * self::page()) as u64);
        match *step {
            Step::Store { page, data, tag } => {
                let slice = self.ram.unmarked((page * self::page()) as u64, self::page()).unwrap();
                if let Some(byte) = data {
                    slice.write_obj(byte, 9).unwrap();
                    self.log(page);
                }
                if let Some(tag) = tag {
                    // The page is there then, as it is after a store of a tag alone.
                    slice.write_obj(slice.read_obj::<u8>(0).unwrap(), 0).unwrap();
                    self.set_tags(page, 1, tag);
                    self.log(page);
                }
            }
            Step::Device { page, length, byte } => {
                let length = length.min((pages() - page) * self::page());
                self.ram.write_slice(&vec![byte; length], at(page)).unwrap();
            }
            Step::Read { page } => drop(self.ram.read_obj::<u8>(at(page)).unwrap()),
            Step::Discard { first, count } => {
                let count = count.min(pages() - first);
                let size = Bytes::new((count * page()) as u64);
                self.ram.discard(MemoryRange::new(at(first), size)).unwrap();
                self.set_tags(first, count, 0);
            }
            Step::Save { diff, fails_after } => self.save(diff, fails_after),
        }
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        (folder.join(STATE), folder.join(MEMORY))
    }

    fn open(&self, name: &str) -> Pair {
        let (state, memory) = self.paths(name);
        Pair::open_any(&state, &memory).unwrap()
    }

    fn save(&mut self, diff: bool, fails_after: Option<u32>) {
        let base = self.chain.last().copied().filter(|_| diff);
        self.ram.track_changes();
        let changes = self.ram.take_changes().unwrap();
        let contents = PausedMemory::new(&self.ram).unwrap();
        let contents = contents.since(Some(&changes).filter(|_| base.is_some()));
        let view = Tagged { view: &contents, tags: &self.tags };
        if let Some(writes) = fails_after {
            let about = About::of(&view, SnapshotId::random().unwrap(), base);
            // With few changes it does not need as many writes; it fails later then.
            let _ = save_memory(&view, &about, &Full(Cell::new(writes)), &mut |_| {});
            return;
        }
        let name = self.chain.len().to_string();
        let name = if base.is_some() { name } else { "0".to_owned() };
        let (state_path, memory_path) = self.paths(&name);
        let mut pair = NewPair::create(&state_path, &memory_path).unwrap();
        pair.save_memory(&view, base, &mut |_| {}).unwrap();
        let id = pair.id();
        let mut state = state(id, &view);
        state.manifest.kind = base.map_or(Kind::Full, |base| Kind::Diff { base });
        pair.commit(&state).unwrap();
        changes.saved();
        if base.is_none() {
            self.chain.clear();
        }
        self.chain.push(id);
    }

    /// Whether what the snapshots become together is a full snapshot of memory as it is.
    fn is_whole(&self) -> bool {
        let contents = PausedMemory::new(&self.ram).unwrap();
        let view = Tagged { view: &contents, tags: &self.tags };
        let id = *self.chain.last().unwrap();
        let full = self.folder.path().join("full");
        save_memory(&view, &About::of(&view, id, None), &File::create(&full).unwrap(), &mut |_| {})
            .unwrap();
        let (state, memory) = self.paths("merged");
        let diffs: Vec<_> = (1..self.chain.len()).map(|at| self.open(&at.to_string())).collect();
        merge(&self.open("0"), &diffs, &state, &memory, &mut |_| {}).unwrap();
        std::fs::read(full).unwrap() == std::fs::read(memory).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_and_its_diffs_are_a_full_snapshot(
        before in prop::collection::vec(step(), 0..10),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let mut vm = Vm::new();
        before.iter().for_each(|step| vm.perform(step));
        vm.save(false, None);
        after.iter().for_each(|step| vm.perform(step));
        vm.save(true, None);
        prop_assert!(vm.is_whole());
    }
}

#[test]
fn nothing_changed_is_nothing_saved() {
    let mut vm = Vm::new();
    vm.perform(&Step::Device { page: 3, length: 9000, byte: 7 });
    vm.save(false, None);
    vm.perform(&Step::Read { page: 4 });

    vm.save(true, None);

    assert_eq!(vm.paths("1").1.metadata().unwrap().len(), 128);
    assert!(vm.is_whole());
}
