//! The commands that work in a guest, end to end: `tesseractl`, a vsock socket played by a thread, and the
//! real agent on this machine.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod copy;
mod exec;
mod harness;
mod proxy;
mod reach;
mod tty;
