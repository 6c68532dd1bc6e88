//! Facts of the aarch64 machine that Tessera shows to its guests.
//!
//! Everything here is pure: numbers, formats and the arithmetic between them. Nothing opens a file,
//! issues an ioctl or needs an arm64 host, so all of it is tested on any machine. The crate knows
//! neither the device models nor KVM; the VMM joins them.
//!
//! | module | content |
//! |---|---|
//! | [`units`] | [`Bytes`](units::Bytes), the unit of every size |
//! | [`layout`] | the guest-physical map, and where kernel, initrd and device tree go |
//! | [`image`] | kernel file forms and the arm64 `Image` header |
//! | [`range`] | [`MemoryRange`](range::MemoryRange), a range of addresses |
//! | [`irq`] | interrupt numbers |
//! | [`gic`] | the interrupt controller and its frames |
//! | [`regs`] | register identifiers, [`Mpidr`](regs::Mpidr), exception syndromes |
//! | [`caches`] | the host's caches, and whether they can be described |
//! | [`fdt`] | the device tree blob |
//! | [`mte`] | Memory Tagging Extension: granules and tags |

#![forbid(unsafe_code)]

pub mod caches;
pub mod fdt;
pub mod gic;
pub mod image;
pub mod irq;
pub mod layout;
pub mod mte;
pub mod range;
pub mod regs;
pub mod units;
