//! The interrupt controller that guests see: GICv3, or GICv2 where the host has no other.
//!
//! # References
//! - Arm IHI 0069, *GIC Architecture Specification version 3 and 4*, "INTIDs"
//! - Linux `Documentation/devicetree/bindings/interrupt-controller/arm,gic*.yaml`
//! - Linux `Documentation/virt/kvm/devices/arm-vgic*.rst`

use std::fmt;

use vm_memory::GuestAddress;

use crate::layout::{self, MemoryRange};
use crate::units::Bytes;

/// INTID of the first private peripheral interrupt.
const FIRST_PPI_INTID: u32 = 16;
/// INTID of the first shared peripheral interrupt.
const FIRST_SPI_INTID: u32 = 32;
/// Two 64 KiB frames a vCPU (KVM_VGIC_V3_REDIST_SIZE).
const REDISTRIBUTOR: Bytes = Bytes::kib(128);
/// KVM_VGIC_V2_DIST_SIZE.
const V2_DISTRIBUTOR: Bytes = Bytes::kib(4);

/// The second cell of an interrupt's trigger in the device tree: rising edge
/// (IRQ_TYPE_EDGE_RISING).
pub const TRIGGER_EDGE_RISING: u32 = 1;
/// Level, active high (IRQ_TYPE_LEVEL_HIGH).
pub const TRIGGER_LEVEL_HIGH: u32 = 4;
/// Level, active low (IRQ_TYPE_LEVEL_LOW).
pub const TRIGGER_LEVEL_LOW: u32 = 8;

/// A shared peripheral interrupt, counted from 0 as the device tree and KVM's irqfd count it:
/// 0 to [`Spi::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(u32);

impl Spi {
    /// The last one: INTID 1019.
    pub const MAX: u32 = 987;

    /// The interrupt `number`, or `None` beyond [`Spi::MAX`].
    pub const fn new(number: u32) -> Option<Spi> {
        if number <= Spi::MAX { Some(Spi(number)) } else { None }
    }

    /// The interrupt `NUMBER`, checked when the program is built.
    pub const fn fixed<const NUMBER: u32>() -> Spi {
        const { assert!(NUMBER <= Spi::MAX, "no such SPI") };
        Spi(NUMBER)
    }

    /// Counted from 0: the number in the device tree, and the GSI of KVM's irqfd.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Counted over all interrupts, as the architecture and KVM_IRQ_LINE count: 32 to 1019.
    pub const fn intid(self) -> u32 {
        FIRST_SPI_INTID + self.0
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPI {}", self.0)
    }
}

/// A private peripheral interrupt, counted from 0: each vCPU has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppi(u32);

impl Ppi {
    /// EL3 and secure EL1 physical timer (never fires in a guest).
    pub const TIMER_SECURE: Ppi = Ppi(13);
    /// EL1 physical timer.
    pub const TIMER_PHYSICAL: Ppi = Ppi(14);
    /// EL1 virtual timer, the one Linux uses.
    pub const TIMER_VIRTUAL: Ppi = Ppi(11);
    /// EL2 physical timer.
    pub const TIMER_HYPERVISOR: Ppi = Ppi(10);

    /// Counted from 0, 0 to 15: the number in the device tree.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Counted over all interrupts: 16 to 31.
    pub const fn intid(self) -> u32 {
        FIRST_PPI_INTID + self.0
    }
}

/// The timer interrupts in the order of the `arm,armv8-timer` binding: secure physical, physical,
/// virtual, hypervisor.
pub const TIMER_PPIS: [Ppi; 4] =
    [Ppi::TIMER_SECURE, Ppi::TIMER_PHYSICAL, Ppi::TIMER_VIRTUAL, Ppi::TIMER_HYPERVISOR];

/// How many interrupts KVM must provide for SPIs 0 to `last` (KVM_DEV_ARM_VGIC_GRP_NR_IRQS):
/// private ones included, a multiple of 32 from 64 to 1024.
pub const fn interrupt_count(last: Spi) -> u32 {
    let count = (last.intid() + 1).next_multiple_of(32);
    if count < 64 { 64 } else { count }
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
    fn timer_interrupts_have_their_architected_intids() {
        assert_eq!(TIMER_PPIS.map(Ppi::intid), [29, 30, 27, 26]);
        assert_eq!(TIMER_PPIS.map(Ppi::number), [13, 14, 11, 10]);
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
        assert_eq!(Spi::fixed::<3>().to_string(), "SPI 3");
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
