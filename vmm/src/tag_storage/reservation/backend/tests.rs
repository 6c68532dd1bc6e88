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

#[test]
fn slots_come_from_the_pool_and_go_back_to_it() {
    let (pool, hold) = embedded();

    let slots = hold.reserve(3).unwrap();
    assert_eq!((slots.len(), pool.snapshot().chunks.reserved), (3, 3));
    hold.free(slots[1]);
    hold.free(slots[1]);
    assert_eq!(pool.snapshot().chunks.reserved, 2);
}

#[test]
fn all_are_reserved_or_none() {
    let (pool, hold) = embedded();

    for chunks in [11, u64::from(u32::MAX), u64::MAX] {
        assert!(hold.reserve(chunks).is_err(), "{chunks}");
        assert_eq!(pool.snapshot().chunks.reserved, 0);
    }
    assert_eq!(hold.reserve(10).unwrap().len(), 10);
}

#[test]
fn what_is_held_is_free_when_the_hold_goes() {
    let (pool, hold) = embedded();
    hold.reserve(4).unwrap();

    drop(hold);

    let report = pool.snapshot();
    assert_eq!((report.chunks.reserved, report.leases.len()), (0, 0));
}
