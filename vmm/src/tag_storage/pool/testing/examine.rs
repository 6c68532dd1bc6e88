//! What must hold for a pool at rest, found by counting page by page.

use std::collections::BTreeMap;

use arch::layout::CHUNK;
use arch::mte::geometry::{BlockIndex, Geometry};

use super::fake::Fake;
use crate::tag_storage::pool::counters::Counters;
use crate::tag_storage::pool::slots::Place;
use crate::tag_storage::pool::{BlockState, LeaseId, Pool, SlotIndex};

/// A pool's books, for comparing: blocks with state and references, holders of slots, leases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Books {
    pub blocks: Vec<(BlockState, u32)>,
    pub holders: BTreeMap<SlotIndex, u32>,
    pub leases: Vec<(LeaseId, u32)>,
}

/// The books of a pool at rest.
pub(crate) fn books(pool: &Pool) -> Books {
    let state = pool.lock();
    let blocks = (0..state.blocks.len() as u64)
        .map(|block| state.blocks.get(BlockIndex(block)).unwrap())
        .collect();
    let holders =
        (0..state.slots.len()).map(SlotIndex).filter_map(|slot| match state.slots.place(slot) {
            Some(Place::Held(index)) => Some((slot, index)),
            _ => None,
        });
    let leases = state.leases.iter().map(|lease| (lease.id, lease.held)).collect();
    Books { blocks, holders: holders.collect(), leases }
}

/// How many pages of these slots have their tags in each block, with the series' formula:
/// rounddown((pfn - start) / 32, block_pages).
fn references(geometry: &Geometry, slots: impl Iterator<Item = SlotIndex>) -> Vec<(u64, u64)> {
    let pages = CHUNK.get() / geometry.page().get();
    let block_pages = u64::from(geometry.block_pages());
    let mut count = Vec::new();
    for slot in slots {
        let first = u64::from(slot.0) * pages;
        for page in first..first + pages {
            let tag_page = page / 32;
            let first_of_block = tag_page - tag_page % block_pages;
            let block = (first_of_block / block_pages) as usize;
            if count.len() <= block {
                count.resize(block + 1, 0);
            }
            count[block] += 1;
        }
    }
    (0..).zip(count).filter(|(_, pages)| *pages > 0).collect()
}

/// Checks everything about a pool at rest.
pub(crate) fn examine(pool: &Pool, geometry: &Geometry, fake: &Fake) -> Books {
    let books = books(pool);
    let state = pool.lock();

    // References are live pages, no more than the block has tags for; Reserved means that there are some.
    let live = references(geometry, books.holders.keys().copied());
    let counted: Vec<(u64, u64)> = (0..)
        .zip(&books.blocks)
        .filter(|(_, (_, references))| *references > 0)
        .map(|(block, (_, references))| (block, u64::from(*references)))
        .collect();
    assert_eq!(counted, live);
    for (block, (is, references)) in books.blocks.iter().enumerate() {
        assert!(u64::from(*references) <= 32 * u64::from(geometry.block_pages()), "{block}");
        assert_eq!(*is == BlockState::Reserved, *references > 0, "{block} is {is}");
        let moving = [BlockState::Reserving, BlockState::Releasing, BlockState::Evicting];
        assert!(!moving.contains(is), "{block} is {is}");
    }
    // The pool has taken from the supply just what is reserved: nothing that is lent.
    let reserved = (0..).zip(&books.blocks).filter(|(_, (is, _))| *is == BlockState::Reserved);
    let taken: Vec<u64> = fake.books().taken.iter().copied().collect();
    assert_eq!(taken, reserved.map(|(block, _)| block).collect::<Vec<u64>>());

    // The sums.
    for is in BlockState::ALL {
        let count = books.blocks.iter().filter(|(block, _)| *block == is).count() as u64;
        assert_eq!(state.blocks.total(is), count, "{is}");
    }
    let held = books.holders.len() as u32;
    let of_leases: u32 = books.leases.iter().map(|(_, held)| held).sum();
    let report = state.report();
    assert_eq!((report.chunks.reserved, of_leases), (held, held));
    let chunks = report.chunks;
    assert_eq!(chunks.reserved + chunks.set_aside + chunks.free, chunks.total);
    let set_aside: u32 = state.leases.iter().map(|lease| lease.aside()).sum();
    assert_eq!(chunks.set_aside, set_aside);
    for lease in state.leases.iter() {
        assert_eq!((lease.claimed, lease.moving, lease.closing), (0, 0, false), "{}", lease.id);
        assert!(lease.held <= lease.max);
    }
    let Counters { metadata_reserve_success, metadata_reserve_free, .. } = report.counters;
    assert_eq!(metadata_reserve_success - metadata_reserve_free, u64::from(held));
    assert_eq!((state.settling, state.waiting, state.may_settle()), (0, 0, false));
    state.slots.examine();
    drop(state);
    books
}
