//! The interrupt controller that guests see: GICv3, or GICv2 where the host has no other.
//!
//! # References
//! - Linux `Documentation/devicetree/bindings/interrupt-controller/arm,gic*.yaml`
//! - Linux `Documentation/virt/kvm/devices/arm-vgic*.rst`

use std::fmt;

use vm_memory::GuestAddress;

use crate::irq::Spi;
use crate::layout;
use crate::range::MemoryRange;
use crate::units::Bytes;

/// Two 64 KiB frames a vCPU (KVM_VGIC_V3_REDIST_SIZE).
const REDISTRIBUTOR: Bytes = Bytes::kib(128);
/// KVM_VGIC_V2_DIST_SIZE.
const V2_DISTRIBUTOR: Bytes = Bytes::kib(4);

/// How many interrupts KVM must provide for SPIs 0 to `last` (KVM_DEV_ARM_VGIC_GRP_NR_IRQS):
/// private ones included, a multiple of 32 from 64 to 1024.
pub const fn interrupt_count(last: Spi) -> u32 {
    // Before the first SPI there are 32 private ones.
    (last.intid() + 1).next_multiple_of(32)
}

/// An interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv3, with one redistributor a vCPU.
    V3 {
        /// How many vCPUs: 1 to [`Gic::max_cpus`].
        cpus: u32,
    },
    /// GICv2.
    V2,
}

impl Gic {
    /// The most vCPUs: 8 for GICv2, whose target masks have 8 bits; for GICv3 what the map of
    /// [`layout`] has room for, which is also the most that KVM creates, 512.
    pub const fn max_cpus(&self) -> u32 {
        match self {
            Gic::V3 { .. } => (layout::GIC_REDISTRIBUTORS.size.get() / REDISTRIBUTOR.get()) as u32,
            Gic::V2 => 8,
        }
    }

    /// The distributor: 64 KiB for GICv3, 4 KiB for GICv2.
    pub const fn distributor(&self) -> MemoryRange {
        let frame = layout::GIC_DISTRIBUTOR;
        match self {
            Gic::V3 { .. } => frame,
            Gic::V2 => MemoryRange::new(frame.base, V2_DISTRIBUTOR),
        }
    }

    /// The one region with the redistributors of all vCPUs, 128 KiB each; GICv3 only. A number of
    /// vCPUs beyond [`Gic::max_cpus`] counts as that.
    pub fn redistributors(&self) -> Option<MemoryRange> {
        let Gic::V3 { cpus } = *self else { return None };
        let cpus = cpus.min(self.max_cpus());
        let base: GuestAddress = layout::GIC_REDISTRIBUTORS.base;
        Some(MemoryRange::new(base, Bytes::new(u64::from(cpus) * REDISTRIBUTOR.get())))
    }

    /// The CPU interface; GICv2 only (GICv3 has system registers).
    pub const fn cpu_interface(&self) -> Option<MemoryRange> {
        match self {
            Gic::V3 { .. } => None,
            Gic::V2 => Some(layout::GIC_CPU_INTERFACE),
        }
    }

    /// `compatible` of the device tree node.
    pub const fn compatible(&self) -> &'static str {
        match self {
            Gic::V3 { .. } => "arm,gic-v3",
            Gic::V2 => "arm,cortex-a15-gic",
        }
    }

    /// The CPU mask in the third cell of a PPI (bits 8 to 15) for `cpus` vCPUs: GICv2 only, zero
    /// for GICv3, whose binding has none.
    pub fn ppi_cpu_mask(&self, cpus: u32) -> u32 {
        match self {
            Gic::V3 { .. } => 0,
            Gic::V2 => ((1 << cpus.min(self.max_cpus())) - 1) << 8,
        }
    }
}

impl fmt::Display for Gic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gic::V3 { .. } => "GICv3",
            Gic::V2 => "GICv2",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn v3_has_room_for_512_vcpus_and_nothing_else_in_its_frames() {
        let gic = Gic::V3 { cpus: 512 };

        let frames = [Some(gic.distributor()), gic.redistributors()];

        assert_eq!(gic.max_cpus(), 512);
        assert_eq!(frames[1], Some(layout::GIC_REDISTRIBUTORS));
        assert_eq!(gic.cpu_interface(), None);
        assert_eq!(gic.distributor().size, Bytes::kib(64));
    }

    #[test]
    fn v2_has_a_cpu_interface_and_no_redistributors() {
        assert_eq!(Gic::V2.max_cpus(), 8);
        assert_eq!(Gic::V2.redistributors(), None);
        assert_eq!(Gic::V2.cpu_interface(), Some(layout::GIC_CPU_INTERFACE));
        assert_eq!(Gic::V2.distributor().size, Bytes::kib(4));
    }

    #[test]
    fn the_mask_names_every_vcpu_of_a_gicv2() {
        assert_eq!(Gic::V2.ppi_cpu_mask(1), 0x100);
        assert_eq!(Gic::V2.ppi_cpu_mask(4), 0xf00);
        assert_eq!(Gic::V2.ppi_cpu_mask(8), 0xff00);
        assert_eq!(Gic::V2.ppi_cpu_mask(u32::MAX), 0xff00);
        assert_eq!(Gic::V3 { cpus: 4 }.ppi_cpu_mask(4), 0);
    }

    #[test]
    fn interrupt_counts_suit_kvm() {
        assert_eq!(interrupt_count(Spi::fixed::<0>()), 64);
        assert_eq!(interrupt_count(Spi::fixed::<31>()), 64);
        assert_eq!(interrupt_count(Spi::fixed::<32>()), 96);
        assert_eq!(interrupt_count(Spi::fixed::<{ Spi::MAX }>()), 1024);
    }

    #[test]
    fn names_are_those_people_use() {
        assert_eq!(Gic::V3 { cpus: 1 }.to_string(), "GICv3");
        assert_eq!(Gic::V2.to_string(), "GICv2");
    }

    proptest! {
        #[test]
        fn spis_stay_in_the_architected_range(number: u32) {
            match Spi::new(number) {
                Some(spi) => {
                    prop_assert_eq!(spi.number(), number);
                    prop_assert!((32..=1019).contains(&spi.intid()));
                    let count = interrupt_count(spi);
                    prop_assert!(count > spi.intid() && count.is_multiple_of(32));
                    prop_assert!((64..=1024).contains(&count));
                }
                None => prop_assert!(number > Spi::MAX),
            }
        }

        #[test]
        fn redistributors_never_leave_their_window(cpus: u32) {
            let region = Gic::V3 { cpus }.redistributors();
            let size = u64::from(cpus.min(512)) * 0x2_0000;
            prop_assert!(region.is_some_and(|r| layout::GIC_REDISTRIBUTORS.encloses(&r)));
            prop_assert!(region.is_some_and(|r| r.size.get() == size));
        }
    }
}
