//! Guest memory with tags on any machine, and what goes into it.
#![allow(clippy::unwrap_used, dead_code)]

use std::cell::RefCell;
use std::io;

use arch::layout::{CHUNK, RAM_BASE};
use arch::mte::granule::Tag;
use arch::regs::RegId;
use arch::units::Bytes;
#[cfg(test)]
use proptest::prelude::*;
use serde_json::json;
use vm_memory::{Bytes as _, GuestAddress, VolatileSlice};

use super::SnapshotId;
#[cfg(test)]
use super::memory_file::{About, MemoryReader, pages_per_chunk, save_memory};
use super::memory_file::{GuestPages, MemorySink, MemoryView, PageSet};
use super::state_file::{CpuFeatures, DeviceState, DeviceStates, Kind, Manifest, State};
use crate::hypervisor::state::{
    ClockState, GicRegister, GicState, SError, SavedRegisters, VcpuState,
};
use crate::memory::{Attributes, GuestRam};

/// Guest memory whose tags are kept beside it.
#[derive(Debug)]
pub(crate) struct FakeMemory {
    ram: GuestRam,
    page_size: Bytes,
    tags: Option<RefCell<Vec<u8>>>,
    pub(crate) present: Vec<PageSet>,
    pub(crate) unchanged: Vec<PageSet>,
}

impl FakeMemory {
    pub(crate) fn new(chunks: u64, page_size: Bytes, tagged: bool) -> Self {
        let size = chunks * CHUNK.get();
        Self {
            ram: GuestRam::new(Bytes::new(size), Attributes::default()).unwrap(),
            page_size,
            tags: tagged.then(|| RefCell::new(vec![0; (size / 32) as usize])),
            present: vec![PageSet::EMPTY; chunks as usize],
            unchanged: vec![PageSet::EMPTY; chunks as usize],
        }
    }

    /// As [`new`](Self::new), with contents.
    pub(crate) fn with(pages: &[Vec<Page>], page_size: Bytes, tagged: bool) -> Self {
        let mut memory = Self::new(pages.len() as u64, page_size, tagged);
        for (chunk, pages) in pages.iter().enumerate() {
            pages.iter().enumerate().for_each(|(page, what)| memory.put(chunk, page, what));
        }
        memory
    }

    fn put(&mut self, chunk: usize, page: usize, what: &Page) {
        if *what == Page::Absent {
            return;
        }
        self.present[chunk].insert(page);
        let offset = self.offset(chunk, page);
        let size = self.page_size.get() as usize;
        self.write(offset, &what.data(size));
        if let Some(tags) = &self.tags {
            let (start, tags_of_page) = (offset as usize / 32, what.tags(size / 32));
            tags.borrow_mut()[start..start + size / 32].copy_from_slice(&tags_of_page);
        }
    }

    pub(crate) fn offset(&self, chunk: usize, page: usize) -> u64 {
        chunk as u64 * CHUNK.get() + page as u64 * self.page_size.get()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(RAM_BASE.0 + offset)).unwrap();
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        let mut data = vec![0; self.size().get() as usize];
        self.ram.read_slice(&mut data, RAM_BASE).unwrap();
        data
    }

    pub(crate) fn tags(&self) -> Vec<u8> {
        self.tags.as_ref().map_or_else(Vec::new, |tags| tags.borrow().clone())
    }

    /// Whether both have the same data and tags.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.data() == other.data() && self.tags() == other.tags()
    }
}

/// The memory of a guest that has touched none of it.
#[cfg(test)]
pub(crate) fn untouched(size: Bytes, tagged: bool) -> MemoryReader {
    let page = Bytes::new(rustix::param::page_size() as u64);
    let memory = FakeMemory::new(size.get() / CHUNK.get(), page, tagged);
    let about = About::of(&memory, SnapshotId::random().unwrap(), None);
    let file = tempfile::NamedTempFile::new().unwrap();
    save_memory(&memory, &about, file.as_file(), &mut |_| {}).unwrap();
    MemoryReader::open(file.path()).unwrap()
}

impl GuestPages for FakeMemory {
    fn size(&self) -> Bytes {
        self.ram.range().size
    }

    fn page_size(&self) -> Bytes {
        self.page_size
    }

    fn has_tags(&self) -> bool {
        self.tags.is_some()
    }

    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
        self.ram.unmarked(offset, length).map_err(io::Error::other)
    }
}

impl MemoryView for FakeMemory {
    fn present(&self, chunk: u64) -> io::Result<PageSet> {
        Ok(self.present[chunk as usize])
    }

    fn unchanged(&self, chunk: u64) -> io::Result<PageSet> {
        Ok(self.unchanged[chunk as usize])
    }

    fn read_tags(&self, offset: u64, packed: &mut [u8]) -> io::Result<()> {
        let start = offset as usize / 32;
        let tags = self.tags.as_ref().unwrap().borrow();
        packed.copy_from_slice(&tags[start..start + packed.len()]);
        Ok(())
    }
}

impl MemorySink for FakeMemory {
    fn write_tags(&self, offset: u64, packed: &[u8]) -> io::Result<()> {
        let start = offset as usize / 32;
        let mut tags = self.tags.as_ref().unwrap().borrow_mut();
        tags[start..start + packed.len()].copy_from_slice(packed);
        Ok(())
    }

    fn fill_tags(&self, offset: u64, length: u64, tag: Tag) -> io::Result<()> {
        assert_ne!(tag, Tag::ZERO);
        self.write_tags(offset, &vec![tag.get() * 0x11; length as usize / 32])
    }
}

/// What a page is filled with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Page {
    /// Nothing, and it is not present.
    Absent,
    /// Data of a kind and tags of a kind.
    Present(Filling, Filling),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Filling {
    Zero,
    /// Only the last byte is not zero.
    Last(u8),
    One(u8),
    /// Pieces of this length, less one, in halves of a byte.
    Runs(u8, u16),
    Random(u64),
}

impl Filling {
    fn bytes(self, length: usize) -> Vec<u8> {
        match self {
            Self::Zero => vec![0; length],
            Self::Last(byte) => {
                let mut bytes = vec![0; length];
                bytes[length - 1] = byte;
                bytes
            }
            Self::One(byte) => vec![byte; length],
            Self::Runs(byte, run) => {
                let half = |at: usize| byte.wrapping_add((at / (usize::from(run) + 1)) as u8) & 0xf;
                (0..length).map(|at| half(2 * at) | half(2 * at + 1) << 4).collect()
            }
            Self::Random(seed) => {
                let mut state = seed | 1;
                let mut next = || {
                    // An xorshift generator.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                };
                (0..length).map(|_| next()).collect()
            }
        }
    }
}

impl Page {
    fn data(&self, length: usize) -> Vec<u8> {
        match self {
            Self::Absent => vec![0; length],
            Self::Present(data, _) => data.bytes(length),
        }
    }

    fn tags(&self, length: usize) -> Vec<u8> {
        match self {
            Self::Present(_, tags) => tags.bytes(length),
            Self::Absent => vec![0; length],
        }
    }
}

#[cfg(test)]
fn filling() -> impl Strategy<Value = Filling> {
    prop_oneof![
        2 => Just(Filling::Zero),
        1 => (1u8..).prop_map(Filling::Last),
        2 => (1u8..16).prop_map(|tag| Filling::One(tag * 0x11)),
        1 => any::<u8>().prop_map(Filling::One),
        2 => (any::<u8>(), 0u16..400).prop_map(|(byte, run)| Filling::Runs(byte, run)),
        1 => any::<u64>().prop_map(Filling::Random),
    ]
}

#[cfg(test)]
pub(crate) fn page() -> impl Strategy<Value = Page> {
    prop_oneof![
        2 => Just(Page::Absent),
        5 => (filling(), filling()).prop_map(|(data, tags)| Page::Present(data, tags)),
    ]
}

/// All pages of a chunk, in pieces that are the same.
#[cfg(test)]
pub(crate) fn chunk(pages: usize) -> impl Strategy<Value = Vec<Page>> {
    let pieces = prop::collection::vec((page(), 1usize..=pages.min(40)), 0..12);
    pieces.prop_map(move |pieces| {
        let each = pieces.into_iter().flat_map(|(page, count)| std::iter::repeat_n(page, count));
        each.chain(std::iter::repeat(Page::Absent)).take(pages).collect()
    })
}

/// The pages of a small guest's memory, and their size.
#[cfg(test)]
pub(crate) fn memory() -> impl Strategy<Value = (Vec<Vec<Page>>, Bytes)> {
    let sizes = prop_oneof![Just(Bytes::kib(4)), Just(Bytes::kib(16)), Just(Bytes::kib(64)),];
    sizes.prop_flat_map(|size| {
        let chunks = prop::collection::vec(chunk(pages_per_chunk(size)), 1..4);
        (chunks, Just(size))
    })
}

/// A state that is right.
pub(crate) fn state(id: SnapshotId, memory: &impl GuestPages) -> State {
    let core = 0x6030_0000_0010_0000;
    let mut registers = SavedRegisters::default();
    (0..4).for_each(|n| registers.push(RegId::new(core + 2 * n)).fill(n as u8));
    let vcpu = VcpuState {
        registers,
        mp_state: 0,
        serror: Some(SError { esr: Some(7) }),
        sve_lengths: Some([3, 0, 0, 0, 0, 0, 0, 1]),
    };
    let mut second = VcpuState { mp_state: 5, serror: None, ..vcpu.clone() };
    second.registers.push(RegId::new(0x6080_0000_0015_0000)).fill(9);
    State {
        id,
        manifest: Manifest {
            kind: Kind::Full,
            page_size: memory.page_size().get(),
            gic_version: 3,
            counter_frequency: 24_000_000,
            mte: memory.has_tags(),
            cpu_features: CpuFeatures { sve: true, pauth: true, pmu: false },
            memory_size: memory.size().get(),
            guest_page_size: Some(4096),
            config: json!({"memory": "64M"}),
            vmm_version: "1.2.3".to_owned(),
            host_kernel: "6.12.0".to_owned(),
            saved_at: 1_700_000_000,
        },
        vcpus: vec![vcpu, second],
        gic: GicState {
            version: 3,
            registers: vec![
                GicRegister { group: 1, attribute: 8, value: 0x43b },
                GicRegister { group: 6, attribute: 1 << 32 | 0xc230, value: u64::MAX },
            ],
        },
        clock: ClockState { counter: 12345, frequency: 24_000_000, realtime_ns: 1 << 60 },
        devices: DeviceStates::from([(
            "block0".to_owned(),
            DeviceState::encode(&[3u16, 500]).unwrap(),
        )]),
    }
}
