#![allow(clippy::unwrap_used)]

mod adopting;
mod examine;
mod fairness;
mod fake;
mod histories;
mod interleavings;
mod lending;
mod model;
mod requests;

use std::sync::Arc;

use arch::mte::geometry::Geometry;
use arch::units::Bytes;
use examine::{books, examine};
use fake::{Fake, Shared};

use super::counters::Counters;
use super::pressure::CanGive;
use super::requests::Order;
use super::status::{BlocksReport, ChunksReport};
use super::*;

/// A pool, and what is behind it.
struct Bench {
    pool: Arc<Pool>,
    fake: Arc<Fake>,
    geometry: Geometry,
}

impl Bench {
    /// A pool of so many chunks whose supply is instant or not.
    fn new(page: Bytes, block: Bytes, chunks: u32, instant: bool) -> Self {
        let geometry = Geometry::new(page, block).unwrap();
        let fake = Fake::new(instant);
        let capacity = Bytes::kib(64 * u64::from(chunks));
        let pool = Pool::new(geometry, capacity, Box::new(Shared(Arc::clone(&fake)))).unwrap();
        Self { pool: Arc::new(pool), fake, geometry }
    }

    /// A pool where each block is a page of 4 KiB.
    fn small(chunks: u32, instant: bool) -> Self {
        Self::new(Bytes::kib(4), Bytes::kib(4), chunks, instant)
    }

    fn lease(&self) -> LeaseId {
        self.pool.open_lease(terms(0, 1 << 20)).unwrap()
    }

    fn examine(&self) -> examine::Books {
        examine(&self.pool, &self.geometry, &self.fake)
    }
}

/// Terms of so many chunks.
fn terms(min: u32, max: u32) -> LeaseTerms {
    let size = |chunks| Bytes::kib(64 * u64::from(chunks));
    LeaseTerms { name: "vm".to_owned(), min: size(min), max: size(max) }
}

fn numbers(slots: &[SlotIndex]) -> Vec<u32> {
    slots.iter().map(|slot| slot.0).collect()
}
