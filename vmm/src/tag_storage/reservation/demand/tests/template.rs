//! Memory that is shared with a template: it has contents without a touch, and so its tag storage from the start.

use super::huge::is_caught_and_huge;
use super::*;
use crate::memory::{Attributes, TemplateFile, TemplatePart};

const CHUNKS: u64 = 8;

/// A guest of eight chunks. The template has two of them, and the second half of a third.
fn guest(capacity: u64) -> (Guest, Vec<ChunkIndex>) {
    let size = Bytes::new(CHUNKS * CHUNK.get());
    let attributes = Attributes { huge_pages: true, ..Attributes::default() };
    let template = GuestRam::of_template(size, attributes).unwrap();
    for (chunk, page) in [(2, 0), (3, 511), (5, 300)] {
        template.write_obj(0x40 + chunk as u8, at(chunk, page)).unwrap();
    }
    let file = TemplateFile::new(template.into_template().unwrap(), size).unwrap();
    let guest = Guest::new(ram_of(2 * CHUNKS, Backing::Anonymous, true), capacity);
    let part = |start: u64, end: u64| TemplatePart {
        at: start * CHUNK.get() / 2..end * CHUNK.get() / 2,
        offset: start * CHUNK.get() / 2,
    };
    guest.ram.share(&file, &[part(4, 8), part(11, 12)]).unwrap();
    let shared = |chunk: &ChunkIndex| guest.demand.shared.faults.has_template_in(*chunk);
    let shared = each(&guest.demand.shared.all()).filter(shared).collect();
    (guest, shared)
}

#[test]
fn what_is_shared_has_tag_storage_from_the_start_and_what_is_not_when_it_is_touched() {
    if !may_catch_faults() {
        return;
    }
    let (guest, shared) = guest(5);
    assert_eq!(shared, [2, 3, 5].map(ChunkIndex));
    for chunk in [0, 1, 4, 6, 7] {
        assert_eq!(is_caught_and_huge(&guest, chunk), (true, false), "{chunk}");
    }

    guest.demand.reserve_now(&shared).unwrap();

    assert_eq!((guest.live(), guest.touches()), (3, 0));
    let read = |chunk, page| guest.ram.read_obj::<u8>(at(chunk, page)).unwrap();
    assert_eq!([read(2, 0), read(3, 511), read(5, 300), read(5, 0)], [0x42, 0x43, 0x45, 0]);
    guest.ram.write_obj(1u8, at(2, 7)).unwrap();
    guest.ram.write_obj(1u8, at(5, 1)).unwrap();
    assert_eq!((guest.live(), guest.touches()), (3, 0));
    guest.ram.write_obj(1u8, at(4, 0)).unwrap();
    assert_eq!((guest.live(), guest.touches()), (4, 1));
}

#[test]
fn what_is_shared_and_given_back_is_as_any_other_memory() {
    if !may_catch_faults() {
        return;
    }
    let (guest, shared) = guest(4);
    guest.demand.reserve_now(&shared).unwrap();
    guest.ram.write_obj(1u8, at(2, 7)).unwrap();
    let mut reclaimer = guest.reclaimer();

    // Whole, and in pieces.
    for (first, count) in [(1024, 512), (1536, 100), (1636, 412), (2560, 512)] {
        let done = reclaimer.discard(pages(0, first, count));
        assert_eq!((done.discarded, done.failed), (count * PAGE, 0));
    }

    assert_eq!(guest.live(), 0);
    for round in 1..3 {
        for chunk in [2, 3, 5] {
            assert_eq!(guest.ram.read_obj::<u8>(at(chunk, 511)).unwrap(), 0);
            guest.ram.write_obj(1u8, at(chunk, 511)).unwrap();
        }
        assert_eq!((guest.live(), guest.touches()), (3, 3 * round));
        reclaimer.discard(pages(2, 0, 4 * 512));
        assert_eq!(guest.live(), 0);
    }
}

#[test]
fn what_is_shared_and_does_not_fit_is_refused() {
    if !may_catch_faults() {
        return;
    }
    let (guest, shared) = guest(2);

    let refused = guest.demand.reserve_now(&shared);

    assert!(matches!(refused, Err(PoolClientError::Pool(_))), "{refused:?}");
    assert_eq!(guest.live(), 0);
}
