//! Figures of whole guests, in instructions of the nested host: `make bench`. They take minutes, and no other
//! test waits for them.
#![allow(clippy::unwrap_used)]

mod auto_balloon;
mod density;
mod devices;
mod huge_pages;
mod huge_sizes;
mod inflation;
mod lending;
mod overhead;
mod peer;
mod reporting;
mod reporting_units;
mod snapshots;
mod stall;
mod start;
mod tag_storage;
