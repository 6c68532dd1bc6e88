#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::Attributes;

#[test]
fn touched_memory_is_resident_and_the_rest_is_not() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let attributes = Attributes { backing, ..Attributes::default() };
        let ram = GuestRam::new(Bytes::mib(4), attributes).unwrap();
        let base = ram.range().base;
        let page = backing.page_size();
        assert_eq!(Footprint::of(&ram).unwrap().resident, Bytes::ZERO);

        for index in [0, 3, 4] {
            ram.write_obj(1u8, GuestAddress(base.0 + index * page.get())).unwrap();
        }

        let footprint = Footprint::of(&ram).unwrap();
        assert_eq!(footprint.resident, Bytes::new(3 * page.get()));
        assert_eq!(footprint.huge, Bytes::ZERO);
        // No guest has touched it: no tags are in use, where they can be counted.
        assert!(footprint.tagged.is_err() || footprint.tagged.is_ok_and(|tagged| tagged.is_zero()));
    }
}

const CHUNK: usize = 2 << 20;
const CHUNKS: usize = 512;

/// Memory of which one page of each chunk is present, and how much that is.
fn chunks_with_a_page_each() -> (GuestRam, Bytes) {
    let size = Bytes::new((CHUNKS * CHUNK) as u64);
    let ram = GuestRam::new(size, Attributes::default()).unwrap();
    for chunk in 0..CHUNKS {
        ram.write_obj(1u8, GuestAddress(ram.range().base.0 + (chunk * CHUNK) as u64)).unwrap();
    }
    (ram, Bytes::new(CHUNKS as u64 * Backing::Anonymous.page_size().get()))
}

/// Measures again and again, while the VMAs of guest memory are split and merged all the time, as those of
/// a VM on demand are whose chunks come and go.
fn while_mappings_change(
    ram: &GuestRam,
    times: usize,
    measure: impl Fn() -> Result<Footprint, Error>,
) -> Vec<Result<Footprint, Error>> {
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut apart = true;
            while !done.load(Ordering::Relaxed) {
                for chunk in (0..CHUNKS).step_by(2) {
                    ram.set_apart(chunk * CHUNK..(chunk + 1) * CHUNK, apart);
                }
                apart = !apart;
            }
        });
        let found = (0..times).map(|_| measure()).collect();
        done.store(true, Ordering::Relaxed);
        found
    })
}

#[test]
fn memory_whose_mappings_change_all_the_time_has_a_footprint() {
    let (ram, expected) = chunks_with_a_page_each();
    let probe = Probe::new(&ram);

    for footprint in while_mappings_change(&ram, 200, || probe.measure(&AtomicBool::new(false))) {
        assert_eq!(footprint.unwrap().resident, expected);
    }
}

#[test]
fn a_list_of_mappings_counts_what_a_scan_counts() {
    for (backing, huge_pages) in
        [(Backing::Anonymous, true), (Backing::Anonymous, false), (Backing::Memfd, true)]
    {
        let attributes = Attributes { backing, huge_pages, tags: false };
        let ram = GuestRam::new(Bytes::mib(32), attributes).unwrap();
        let at = |offset: Bytes| GuestAddress(ram.range().base.0 + offset.get());
        for offset in [Bytes::ZERO, Bytes::mib(4), Bytes::kib(4100), Bytes::mib(31)] {
            ram.write_obj(1u8, at(offset)).unwrap();
        }
        // Memory that is only read, which anonymous memory lends from a page of zeroes, huge or not.
        let _: u8 = ram.read_obj(at(Bytes::mib(8))).unwrap();
        let _: u8 = ram.read_obj(at(Bytes::mib(12))).unwrap();
        let mut probe = Probe::new(&ram);
        let never = AtomicBool::new(false);
        if !matches!(probe.source, Source::Scan { .. }) {
            // Before Linux 6.7 there is nothing to compare.
            return;
        }

        let scanned = probe.measure(&never).unwrap();
        probe.source = Source::Smaps(File::open("/proc/self/smaps"));
        let listed = probe.measure(&never).unwrap();

        assert_eq!(scanned.resident, listed.resident, "{backing}, huge pages: {huge_pages}");
        assert_eq!(scanned.huge, listed.huge, "{backing}, huge pages: {huge_pages}");
        assert!(!scanned.resident.is_zero());
    }
}

#[test]
fn a_list_of_mappings_that_change_all_the_time_gives_no_wrong_number() {
    let (ram, expected) = chunks_with_a_page_each();
    let mut probe = Probe::new(&ram);
    probe.source = Source::Smaps(File::open("/proc/self/smaps"));

    let found = while_mappings_change(&ram, 30, || probe.measure(&AtomicBool::new(false)));

    for footprint in found {
        match footprint {
            Ok(footprint) => assert_eq!(footprint.resident, expected),
            Err(error) => assert!(matches!(error, Error::Torn { .. }), "{error}"),
        }
    }
}
