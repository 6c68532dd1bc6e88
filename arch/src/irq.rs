//! Interrupt numbers: as the device tree counts them, as KVM does, and as the architecture does.
//!
//! # References
//! - Arm IHI 0069, *GIC Architecture Specification version 3 and 4*, "INTIDs"
//! - Linux `include/dt-bindings/interrupt-controller/irq.h`

use std::fmt;

/// INTID of the first private peripheral interrupt.
const FIRST_PPI_INTID: u32 = 16;
/// INTID of the first shared peripheral interrupt.
const FIRST_SPI_INTID: u32 = 32;

/// The second cell of an interrupt's trigger in the device tree: rising edge
/// (IRQ_TYPE_EDGE_RISING).
pub(crate) const TRIGGER_EDGE_RISING: u32 = 1;
/// Level, active high (IRQ_TYPE_LEVEL_HIGH).
pub(crate) const TRIGGER_LEVEL_HIGH: u32 = 4;
/// Level, active low (IRQ_TYPE_LEVEL_LOW).
pub(crate) const TRIGGER_LEVEL_LOW: u32 = 8;

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

    /// Overflows of the performance monitors.
    pub const PMU: Ppi = Ppi(7);

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
pub(crate) const TIMER_PPIS: [Ppi; 4] =
    [Ppi::TIMER_SECURE, Ppi::TIMER_PHYSICAL, Ppi::TIMER_VIRTUAL, Ppi::TIMER_HYPERVISOR];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_interrupts_have_their_architected_intids() {
        assert_eq!(TIMER_PPIS.map(Ppi::intid), [29, 30, 27, 26]);
        assert_eq!(TIMER_PPIS.map(Ppi::number), [13, 14, 11, 10]);
    }

    #[test]
    fn names_are_those_people_use() {
        assert_eq!(Spi::fixed::<3>().to_string(), "SPI 3");
    }
}
