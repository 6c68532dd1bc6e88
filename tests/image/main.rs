//! Tests of the Debian image under the real `tessera`, in the lab: `make image-tests`. Each boots it once, and says how
//! long its parts take.
#![allow(clippy::unwrap_used)]

mod boot;
mod commands;
mod debian;
mod files;
mod packages;
mod python;
