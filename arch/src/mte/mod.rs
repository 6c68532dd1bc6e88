//! Memory Tagging Extension.
//!
//! # References
//! Arm DDI 0487, *The Memory Tagging Extension*; ID_AA64PFR1_EL1

pub mod binding;
pub mod codec;
pub mod geometry;
pub mod granule;
