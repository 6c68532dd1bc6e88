#![allow(clippy::unwrap_used)]

use std::thread;

use arch::layout::RAM_BASE;
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::{Attributes, Backing, TemplateFile, TemplatePart};
use crate::tag_storage::reservation::testing::{may_catch_faults, ram, ram_of};

const PAGE: u64 = 4096;

fn at(chunk: u64, page: u64) -> GuestAddress {
    GuestAddress(RAM_BASE.0 + chunk * CHUNK.get() + page * PAGE)
}

fn chunks(start: u64, end: u64) -> Range<ChunkIndex> {
    ChunkIndex(start)..ChunkIndex(end)
}

/// The chunks of the faults that wait to be read.
fn read(faults: &ChunkFaults) -> Vec<ChunkIndex> {
    let mut found = Vec::new();
    faults.read(&mut found).unwrap();
    found.iter().map(|fault| faults.chunk_of(fault).unwrap()).collect()
}

/// Waits for faults.
fn next(faults: &ChunkFaults) -> Vec<ChunkIndex> {
    poll(&mut [PollFd::new(faults, PollFlags::IN)], None).unwrap();
    read(faults)
}

#[test]
fn a_touch_waits_until_its_chunk_is_disarmed_or_filled() {
    if !may_catch_faults() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram_of(8, backing, false);
        let faults = ChunkFaults::new(ram.clone()).unwrap();
        faults.arm(&chunks(1, 4)).unwrap();
        assert_eq!(read(&faults), []);
        ram.write_obj(1u8, at(0, 0)).unwrap();

        thread::scope(|scope| {
            let touch = scope.spawn(|| ram.write_obj(7u8, at(2, 5)).unwrap());
            assert_eq!(next(&faults), [ChunkIndex(2)]);
            assert!(!touch.is_finished());
            faults.wake(&one(ChunkIndex(2))).unwrap();
            // It is still not there.
            assert_eq!(next(&faults), [ChunkIndex(2)]);
            faults.disarm(&one(ChunkIndex(2))).unwrap();
        });
        thread::scope(|scope| {
            scope.spawn(|| ram.write_obj(8u8, at(3, 511)).unwrap());
            assert_eq!(next(&faults), [ChunkIndex(3)]);
            faults.fill(ChunkIndex(3)).unwrap();
        });

        assert_eq!(ram.read_obj::<u8>(at(2, 5)).unwrap(), 7);
        assert_eq!(ram.read_obj::<u8>(at(3, 511)).unwrap(), 8);
        assert_eq!(read(&faults), []);
    }
}

#[test]
fn filling_leaves_the_pages_that_are_there() {
    if !may_catch_faults() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram_of(4, backing, false);
        for page in [0, 7, 8, 511] {
            ram.write_obj(page as u8 | 1, at(1, page)).unwrap();
        }
        let faults = ChunkFaults::new(ram.clone()).unwrap();
        // Not armed: nothing to do.
        faults.fill(ChunkIndex(1)).unwrap();
        faults.arm(&chunks(0, 2)).unwrap();

        faults.fill(ChunkIndex(1)).unwrap();
        faults.fill(ChunkIndex(1)).unwrap();

        for page in 0..512 {
            let expected = if [0, 7, 8, 511].contains(&page) { page as u8 | 1 } else { 0 };
            assert_eq!(ram.read_obj::<u8>(at(1, page)).unwrap(), expected, "page {page}");
        }
        assert_eq!(read(&faults), []);
    }
}

/// The chunk lies in two mappings, and zeroes in the place of pages of the template that no one has touched yet would be
/// taken for what they have.
#[test]
fn filling_a_chunk_that_is_partly_a_template_s_leaves_that_part() {
    if !may_catch_faults() {
        return;
    }
    let attributes = Attributes { huge_pages: true, ..Attributes::default() };
    let template = GuestRam::of_template(Bytes::mib(8), attributes).unwrap();
    for page in 256..512 {
        template.write_obj(0x45u8, at(2, page)).unwrap();
    }
    let file = TemplateFile::new(template.into_template().unwrap(), Bytes::mib(8)).unwrap();
    let ram = ram_of(8, Backing::Anonymous, true);
    let half = 2 * CHUNK.get() + CHUNK.get() / 2;
    let part = TemplatePart { at: half..3 * CHUNK.get(), offset: half };
    ram.share(&file, &[part]).unwrap();
    let faults = ChunkFaults::new(ram.clone()).unwrap();
    faults.arm(&chunks(0, 4)).unwrap();

    thread::scope(|scope| {
        let touch = scope.spawn(|| ram.write_obj(7u8, at(2, 0)).unwrap());
        assert_eq!(next(&faults), [ChunkIndex(2)]);
        faults.fill(ChunkIndex(2)).unwrap();
        while !touch.is_finished() {
            let again = read(&faults);
            if !again.is_empty() {
                faults.disarm(&chunks(0, 4)).unwrap();
            }
            assert_eq!(again, []);
            thread::yield_now();
        }
    });

    let found = |page| ram.read_obj::<u8>(at(2, page)).unwrap();
    assert_eq!([found(0), found(255)], [7, 0]);
    assert!((256..512).all(|page| found(page) == 0x45));
    assert_eq!(read(&faults), []);
}

#[test]
fn arming_and_disarming_twice_is_harmless() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(8);
    let faults = ChunkFaults::new(ram.clone()).unwrap();

    for _ in 0..2 {
        faults.arm(&chunks(0, 3)).unwrap();
        faults.arm(&chunks(1, 2)).unwrap();
        faults.disarm(&chunks(0, 4)).unwrap();
        faults.disarm(&chunks(0, 4)).unwrap();
    }

    ram.write_obj(1u8, at(1, 0)).unwrap();
    assert_eq!(read(&faults), []);
}

#[test]
fn who_waits_goes_on_when_the_descriptor_is_closed() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(4);
    let faults = ChunkFaults::new(ram.clone()).unwrap();
    faults.arm(&chunks(0, 2)).unwrap();

    thread::scope(|scope| {
        scope.spawn(|| ram.write_obj(7u8, at(0, 0)).unwrap());
        assert_eq!(next(&faults), [ChunkIndex(0)]);
        drop(faults);
    });

    assert_eq!(ram.read_obj::<u8>(at(0, 0)).unwrap(), 7);
}

#[test]
fn addresses_outside_of_memory_have_no_chunk() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(4);
    let faults = ChunkFaults::new(ram.clone()).unwrap();
    let chunk = |address| faults.chunk_of(&Fault { address, thread: None });
    let base = ram.host_address();
    let last = base + ram.range().size.get() - 1;

    assert_eq!((chunk(base), chunk(last)), (Some(ChunkIndex(0)), Some(ChunkIndex(1))));
    for address in [0, base - 1, last + 1, u64::MAX] {
        assert_eq!(chunk(address), None);
    }
}

#[test]
fn chunks_outside_of_memory_are_refused() {
    if !may_catch_faults() {
        return;
    }
    let faults = ChunkFaults::new(ram(4)).unwrap();

    for range in [
        chunks(0, 3),
        chunks(2, 2),
        chunks(1, 0),
        chunks(1 << 50, 1 << 51),
        one(ChunkIndex(u64::MAX)),
    ] {
        assert!(faults.arm(&range).is_err(), "{range:?}");
        assert!(faults.disarm(&range).is_err(), "{range:?}");
    }
    assert!(faults.populate(ChunkIndex(2)).is_err());
    assert!(faults.fill(ChunkIndex(u64::MAX)).is_err());
}
