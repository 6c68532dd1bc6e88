//! What the tests of `make test` do a few times, often: `make soak`. It takes the better part of an hour on two
//! processors.
#![allow(clippy::unwrap_used)]

mod snapshots;
mod tag_storage;
