//! Beyond one machine: the very code of the pool, without KVM, driven by VMs that come, use more and less, and go.
//!
//! | File | Responsibility |
//! |---|---|
//! | `dice` | numbers that a seed decides |
//! | `trace` | the VMs, and on which host each is |
//! | `node` | tag storage that borrowers may live in, and ordinary memory, as numbers |
//! | `host/` | a host: the pool, a node, and what VMs have of both |
//! | `run` | a host with its VMs, from day to day |
//! | `outcome` | what has come of that |
//! | `figures` | what is modelled, and the figures of it |
//! | `saving` | what lending saves, and by which policy most |
//! | `mix` | the host and the VMs of the bench `lending` |
//! | `validation` | what that bench measured, beside the model |
//!
//! One host is modelled at a time: nothing that happens on one changes another, once the VMs have their places.
//! docs/benchmarks.md says what is taken from where.

pub mod dice;
pub mod figures;
pub mod host;
pub mod mix;
pub mod node;
pub mod outcome;
pub mod run;
pub mod saving;
pub mod trace;
pub mod validation;
