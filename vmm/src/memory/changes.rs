//! Which pages of guest memory have changed since they were last saved.
//!
//! The hypervisor logs the pages that vCPUs store to, data or tags. That log is added to what this process changes
//! itself: what it writes, which the slices of guest memory mark, and what it discards.

use std::num::NonZeroUsize;

use vm_memory::bitmap::AtomicBitmap;

use super::ram::GuestRam;

/// So many pages are in a word of a log, the first in the lowest bit.
const PAGES_PER_WORD: usize = u64::BITS as usize;

/// A bit for each page of the host's size.
pub(super) fn bitmap(length: usize) -> AtomicBitmap {
    let page = NonZeroUsize::new(rustix::param::page_size()).unwrap_or(NonZeroUsize::MIN);
    AtomicBitmap::new(length, page)
}

/// Sets the bits of a log whose first one is that of this page.
pub(super) fn add(bitmap: &AtomicBitmap, first: usize, log: &[u64]) {
    for (word, mut bits) in log.iter().copied().enumerate().filter(|(_, bits)| *bits != 0) {
        while bits != 0 {
            bitmap.set_bit(first + word * PAGES_PER_WORD + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}

/// The changes that a snapshot is to have. Dropped before they [are saved](Self::saved), they are changes again.
#[derive(Debug)]
pub(crate) struct Changes {
    ram: GuestRam,
    log: Vec<u64>,
}

impl Changes {
    pub(super) fn new(ram: GuestRam, log: Vec<u64>) -> Self {
        Self { ram, log }
    }

    /// A bit for each page, from the start of memory on, the first in the lowest bit of the first word.
    pub(crate) fn log(&self) -> &[u64] {
        &self.log
    }

    /// They are in a snapshot, for good.
    pub(crate) fn saved(mut self) {
        self.log.clear();
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.ram.add_changes(0, &self.log);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use arch::layout::RAM_BASE;
    use arch::range::MemoryRange;
    use arch::units::Bytes;
    use proptest::prelude::*;
    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::memory::Attributes;
    use crate::sys::vectored::{preadv, readv, readv_then};

    const SIZE: Bytes = Bytes::mib(2);

    fn tracked() -> GuestRam {
        let ram = GuestRam::new(SIZE, Attributes::default()).unwrap();
        ram.track_changes();
        ram
    }

    fn page() -> u64 {
        rustix::param::page_size() as u64
    }

    fn at(offset: u64) -> GuestAddress {
        GuestAddress(RAM_BASE.0 + offset)
    }

    fn pages(log: &[u64]) -> BTreeSet<u64> {
        let pages = |(word, bits): (usize, &u64)| {
            let (word, bits) = (word as u64 * 64, *bits);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word + bit)
        };
        log.iter().enumerate().flat_map(pages).collect()
    }

    /// The pages that have changed since the last call.
    fn taken(ram: &GuestRam) -> BTreeSet<u64> {
        let changes = ram.take_changes().unwrap();
        let pages = pages(changes.log());
        changes.saved();
        pages
    }

    #[test]
    fn memory_that_is_not_tracked_has_no_changes() {
        let ram = GuestRam::new(SIZE, Attributes::default()).unwrap();
        ram.write_obj(1u8, at(0)).unwrap();
        assert!(ram.take_changes().is_none());
        // Nor has it any of before.
        ram.track_changes();
        assert!(taken(&ram).is_empty());
    }

    #[test]
    fn each_way_to_write_is_a_change() {
        let ram = tracked();
        let memory = &*ram;
        let slice = |offset, length| memory.get_slice(at(offset), length).unwrap();
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(SIZE.get()).unwrap();
            file
        };
        let page = page();
        let size = page as usize;
        type Write<'a> = (&'a str, Box<dyn Fn() + 'a>, BTreeSet<u64>);
        let ways: Vec<Write<'_>> = vec![
            ("write_obj", Box::new(|| ram.write_obj(1u64, at(page - 4)).unwrap()), [0, 1].into()),
            (
                "write_slice",
                Box::new(|| ram.write_slice(&[1; 9], at(9 * page)).unwrap()),
                [9].into(),
            ),
            (
                "store",
                Box::new(|| {
                    ram.store(1u16, at(3 * page), std::sync::atomic::Ordering::Relaxed).unwrap()
                }),
                [3].into(),
            ),
            (
                "copy_from",
                Box::new(|| slice(page, 2 * size).offset(size).unwrap().copy_from(&[1u8; 5])),
                [2].into(),
            ),
            (
                "preadv",
                Box::new(|| {
                    preadv(file(), &[slice(0, size), slice(7 * page, 2 * size)], 0).unwrap();
                }),
                [0, 7, 8].into(),
            ),
            (
                "readv",
                Box::new(|| {
                    // It has less than there is room for.
                    let short = file();
                    short.set_len(page + 1).unwrap();
                    readv(short, &[slice(0, size), slice(7 * page, 2 * size)]).unwrap();
                }),
                [0, 7].into(),
            ),
            (
                "readv_then",
                Box::new(|| {
                    readv_then(file(), &[slice(5 * page, size)], &mut [0; 10]).unwrap();
                }),
                [5].into(),
            ),
            (
                "discard",
                Box::new(|| {
                    ram.discard(MemoryRange::new(at(4 * page), Bytes::new(3 * page))).unwrap();
                }),
                [4, 5, 6].into(),
            ),
        ];
        for (name, write, expected) in ways {
            write();
            assert_eq!(taken(&ram), expected, "{name}");
            assert!(taken(&ram).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_failed_read_may_have_written() {
        let ram = tracked();
        let slice = || ram.get_slice(at(0), 2 * page() as usize).unwrap();
        let folder = std::fs::File::open("/").unwrap();
        readv(&folder, &[slice()]).unwrap_err();
        assert_eq!(taken(&ram), [0, 1].into());

        // One that would have waited has not.
        let (empty, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        empty.set_nonblocking(true).unwrap();
        readv(&empty, &[slice()]).unwrap_err();
        assert!(taken(&ram).is_empty());
    }

    #[test]
    fn what_is_read_is_no_change() {
        let ram = tracked();
        let _: u64 = ram.read_obj(at(8)).unwrap();
        let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
        crate::sys::vectored::writev(null, &[ram.get_slice(at(0), 99).unwrap()]).unwrap();
        assert!(taken(&ram).is_empty());
    }

    proptest! {
        #[test]
        fn changes_that_are_not_saved_are_changes_again(
            first in prop::collection::vec(any::<u64>(), 0..4),
            second in prop::collection::vec(any::<u64>(), 0..4),
            between in prop::collection::btree_set(0u64..128, 0..9),
            from in 0usize..70,
        ) {
            let ram = tracked();
            let last = SIZE.get() / page();
            ram.add_changes(0, &first);
            let changes = ram.take_changes().unwrap();
            for at_page in between.iter().filter(|page| **page < last) {
                ram.write_obj(1u8, at(at_page * page())).unwrap();
            }
            drop(changes);
            ram.add_changes(from, &second);

            let mut expected = pages(&first);
            expected.extend(pages(&second).iter().map(|page| page + from as u64));
            expected.extend(between);
            expected.retain(|page| *page < last);
            prop_assert_eq!(taken(&ram), expected);
            prop_assert!(taken(&ram).is_empty());
        }
    }
}
