//! A pool over a supply that fails, for tests and for fuzzing.
#![allow(clippy::unwrap_used)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "a target needs a part of it"))]

pub(crate) mod examine;
pub(crate) mod fake;
pub(crate) mod fuzz;
pub(crate) mod model;

use std::sync::Arc;

use arch::mte::geometry::Geometry;
use arch::units::Bytes;
use fake::{Fake, Shared};

use super::{LeaseId, LeaseTerms, Pool};

/// A pool, and what is behind it.
pub(crate) struct Bench {
    pub(crate) pool: Arc<Pool>,
    pub(crate) fake: Arc<Fake>,
    pub(crate) geometry: Geometry,
}

impl Bench {
    /// A pool of so many chunks whose supply is instant or not.
    pub(crate) fn new(page: Bytes, block: Bytes, chunks: u32, instant: bool) -> Self {
        let geometry = Geometry::new(page, block).unwrap();
        let fake = Fake::new(instant);
        let capacity = Bytes::kib(64 * u64::from(chunks));
        let pool = Pool::new(geometry, capacity, Box::new(Shared(Arc::clone(&fake)))).unwrap();
        Self { pool: Arc::new(pool), fake, geometry }
    }

    /// A pool where each block is a page of 4 KiB.
    pub(crate) fn small(chunks: u32, instant: bool) -> Self {
        Self::new(Bytes::kib(4), Bytes::kib(4), chunks, instant)
    }

    pub(crate) fn lease(&self) -> LeaseId {
        self.pool.open_lease(terms(0, 1 << 20)).unwrap()
    }

    pub(crate) fn examine(&self) -> examine::Books {
        examine::examine(&self.pool, &self.geometry, &self.fake)
    }
}

/// Terms of so many chunks.
pub(crate) fn terms(min: u32, max: u32) -> LeaseTerms {
    let size = |chunks| Bytes::kib(64 * u64::from(chunks));
    LeaseTerms { name: "vm".to_owned(), min: size(min), max: size(max) }
}
