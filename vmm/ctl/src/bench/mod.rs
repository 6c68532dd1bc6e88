//! Figures of benches: what one is, files of them, the report that is made of them, and what has moved between two.
//!
//! docs/benchmarks.md describes the files and how to read a report.

mod aims;
mod chart;
mod compare;
mod figure;
mod file;
mod html;
mod markdown;
mod merge;
pub mod model;
mod number;
mod page;
#[cfg(test)]
mod samples;
mod table;

pub use aims::{Outcome, Verdict, verdicts};
pub use compare::{Change, Comparison, compare};
pub use figure::{
    Aim, BEST_PEER, Better, Bound, Figure, Host, Invalid, MAX_SAMPLES, MAX_TEXT, Method, OWN,
    Reference, Setting, Vmm,
};
pub use file::{Error, MAX_BYTES, MAX_FIGURES, MAX_NOTES, Report, SCHEMA, check_note, line, read};
pub use merge::{MergeError, merge};
pub use page::write;
