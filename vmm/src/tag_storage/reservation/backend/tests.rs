#![allow(clippy::unwrap_used)]

use arch::mte::geometry::Geometry;
use arch::units::Bytes;

use super::*;
use crate::tag_storage::pool::LeaseTerms;
use crate::tag_storage::supply::Ledger;

/// A pool of ten chunks, and a hold on it.
fn embedded() -> (Arc<Pool>, Embedded) {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let pool = Arc::new(Pool::new(geometry, Bytes::kib(640), Box::new(Ledger)).unwrap());
    let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
    let lease = pool.open_lease(terms).unwrap();
    (Arc::clone(&pool), Embedded::new(pool, lease))
}

fn chunks(count: u64) -> Vec<ChunkIndex> {
    (0..count).map(ChunkIndex).collect()
}

#[test]
fn slots_come_from_the_pool_and_go_back_to_it() {
    let (pool, hold) = embedded();

    hold.reserve(&chunks(3), 3).unwrap();
    hold.reserve(&[ChunkIndex(7)], 1).unwrap();
    assert_eq!(pool.snapshot().chunks.reserved, 4);
    hold.free(&[ChunkIndex(1), ChunkIndex(7), ChunkIndex(5)]);
    hold.free(&[ChunkIndex(1)]);
    assert_eq!(pool.snapshot().chunks.reserved, 2);
}

#[test]
fn all_are_reserved_or_none() {
    let (pool, hold) = embedded();

    for count in [11, 1 << 20] {
        assert!(hold.reserve(&chunks(count), count as usize).is_err(), "{count}");
        assert_eq!(pool.snapshot().chunks.reserved, 0);
    }
    assert_eq!(hold.reserve(&chunks(10), 10).unwrap(), 10);
    assert!(hold.reserve(&[ChunkIndex(10)], 1).is_err());
}

#[test]
fn the_first_have_theirs_where_there_is_not_enough_for_all() {
    let (pool, hold) = embedded();

    assert_eq!(hold.reserve(&chunks(11), 2).unwrap(), 2);
    assert_eq!(pool.snapshot().chunks.reserved, 2);
    hold.free(&[ChunkIndex(2), ChunkIndex(10)]);
    assert_eq!(pool.snapshot().chunks.reserved, 2);
    hold.free(&[ChunkIndex(0), ChunkIndex(1)]);

    assert_eq!(hold.reserve(&chunks(10), 2).unwrap(), 10);
    let report = pool.snapshot();
    assert_eq!((report.chunks.reserved, report.counters.metadata_reserve_fail), (10, 0));
}

#[test]
fn what_is_held_is_free_when_the_hold_goes() {
    let (pool, hold) = embedded();
    hold.reserve(&chunks(4), 4).unwrap();

    drop(hold);

    let report = pool.snapshot();
    assert_eq!((report.chunks.reserved, report.leases.len()), (0, 0));
}
