//! The device tree that describes the machine to the guest.
//!
//! # References
//! - Devicetree Specification 0.4
//! - Linux `Documentation/devicetree/bindings/`: `arm/cpus.yaml`, `arm/psci.yaml`,
//!   `timer/arm,arch_timer.yaml`, `interrupt-controller/arm,gic{,-v3}.yaml`, `serial/8250.yaml`,
//!   `rtc/arm,pl031.yaml`, `gpio/pl061-gpio.yaml`, `input/gpio-keys.yaml`, `rng/microsoft,vmgenid.yaml`,
//!   `virtio/mmio.yaml`
//! - Linux `drivers/base/cacheinfo.c` and `arch/arm64/kernel/cacheinfo.c` for the nodes of caches
//! - Linux `Documentation/devicetree/usage-model.rst` (chosen: bootargs, initrd, seeds)

mod caches;

use std::collections::HashSet;
use std::fmt;

use thiserror::Error;
use vm_fdt::FdtWriter;
use vm_memory::Address;

use crate::caches::CacheTopology;
use crate::gic::Gic;
use crate::irq::{
    Ppi, Spi, TIMER_PPIS, TRIGGER_EDGE_RISING, TRIGGER_LEVEL_HIGH, TRIGGER_LEVEL_LOW,
};
use crate::layout::{self, MAX_FDT};
use crate::range::MemoryRange;
use crate::regs::Mpidr;
use crate::units::Bytes;

/// The longest command line that arm64 Linux takes, in bytes without the final NUL:
/// COMMAND_LINE_SIZE - 1 (`arch/arm64/include/uapi/asm/setup.h`).
pub const MAX_COMMAND_LINE: usize = 2047;

/// The line of the GPIO controller that the power key is on, 0 to 7.
pub const POWER_KEY_LINE: u32 = 3;

/// KEY_POWER of `include/uapi/linux/input-event-codes.h`.
const KEY_POWER: u32 = 116;
/// GPIO_ACTIVE_HIGH.
const ACTIVE_HIGH: u32 = 0;
/// The first cell of an interrupt: shared or private.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// 115200 baud times 16, the divisor-latch clock of a PC's serial port.
const SERIAL_CLOCK_HZ: u32 = 1_843_200;
/// The clock that Arm's reference boards give their peripherals; nothing here depends on its rate.
const PERIPHERAL_CLOCK_HZ: u32 = 24_000_000;

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_GPIO: u32 = 3;

/// Why a device tree cannot be made.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There is no CPU.
    #[error("a machine without vCPUs cannot be described: give it at least one (--cpus)")]
    NoCpus,
    /// There are more CPUs than the interrupt controller serves.
    #[error("{cpus} vCPUs are more than the {max} that {gic} serves: give fewer (--cpus)")]
    TooManyCpus {
        /// How many were given.
        cpus: usize,
        /// How many the interrupt controller serves.
        max: u32,
        /// The interrupt controller.
        gic: Gic,
    },
    /// GICv3 was laid out for another number of CPUs.
    #[error(
        "GICv3 has redistributors for {redistributors} vCPUs, but there are {cpus}: lay it out \
         for as many as there are"
    )]
    Redistributors {
        /// For how many CPUs there are redistributors.
        redistributors: u32,
        /// How many CPUs were given.
        cpus: usize,
    },
    /// Two CPUs have the same affinity.
    #[error("two vCPUs have the affinity {0}: give each its own MPIDR_EL1")]
    SameAffinity(Mpidr),
    /// There is no memory.
    #[error("a machine without memory cannot be described: give it some (--memory)")]
    NoMemory,
    /// The command line is longer than [`MAX_COMMAND_LINE`].
    #[error(
        "the kernel command line has {length} bytes, but the kernel takes at most \
         {MAX_COMMAND_LINE}: shorten it (--cmdline)"
    )]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The command line contains a NUL.
    #[error("the kernel command line contains a NUL at byte {offset}: remove it (--cmdline)")]
    CommandLineNul {
        /// Where, in bytes from its start.
        offset: usize,
    },
    /// The result is larger than Linux takes.
    #[error(
        "the device tree has {size}, but Linux takes at most {MAX_FDT}: use fewer vCPUs (--cpus)"
    )]
    TooLarge {
        /// Its size.
        size: Bytes,
    },
    /// The result is larger than the room that was kept for it.
    #[error(
        "the device tree has {size}, but only {room} were kept for it; please report this as a defect"
    )]
    Room {
        /// Its size.
        size: Bytes,
        /// The room.
        room: Bytes,
    },
    /// The writer refused something.
    #[error("the device tree cannot be written; please report this as a defect")]
    Writer(#[from] vm_fdt::Error),
}

/// Randomness for the guest, which has no other source of it this early.
///
/// `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seeds {
    /// For the kernel's random number generator (`rng-seed`).
    pub rng: [u8; 64],
    /// For the kernel's address space layout (`kaslr-seed`); zero means none.
    pub kaslr: u64,
}

impl fmt::Debug for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seeds { .. }")
    }
}

/// A device with one register frame and one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioNode {
    /// The register frame.
    pub range: MemoryRange,
    /// The interrupt.
    pub spi: Spi,
}

/// Everything that the device tree says.
///
/// The length of the blob does not depend on the position of the initrd nor on the seeds.
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    /// The kernel command line: at most [`MAX_COMMAND_LINE`] bytes, without NUL.
    pub command_line: &'a str,
    /// The guest's memory, one node a range.
    pub memory: &'a [MemoryRange],
    /// Where the initrd is.
    pub initrd: Option<MemoryRange>,
    /// MPIDR_EL1 of each vCPU, the boot CPU first.
    pub cpus: &'a [Mpidr],
    /// The caches of each vCPU, if they are known and agree with CLIDR_EL1
    /// ([`CacheTopology::check`]).
    pub caches: Option<&'a CacheTopology>,
    /// Whether the vCPUs have a PMU (PMUv3), with [`Ppi::PMU`] for its overflows.
    pub pmu: bool,
    /// The interrupt controller.
    pub gic: &'a Gic,
    /// The serial port, ns16550a.
    pub serial: MmioNode,
    /// The real-time clock, PL031, whose interrupt is its alarm.
    pub rtc: MmioNode,
    /// The GPIO controller, PL061, whose line [`POWER_KEY_LINE`] is the power key.
    pub gpio: MmioNode,
    /// The virtio-mmio devices, in the order in which the guest numbers them.
    pub virtio: &'a [MmioNode],
    /// Randomness.
    pub seeds: Seeds,
}

/// Room for everything but what the functions below count, the longest command line included.
const ROOM_FIXED: u64 = (4 << 10) + MAX_COMMAND_LINE as u64;
/// Room for the node of one vCPU without caches.
const ROOM_CPU: u64 = 128;
/// Room for what one vCPU says of one level of caches.
const ROOM_CACHE: u64 = 192;
/// Room for the node of one virtio device.
const ROOM_VIRTIO: u64 = 144;

/// At least what the tree of a machine with `cpus` vCPUs takes, with any command line and any number of
/// virtio devices. Files are placed in guest memory before the tree is written, which says where they are.
///
/// It is counted and not measured on a tree, which would be a large part of the start-up; tests hold it to
/// the largest trees.
pub fn room(cpus: u32, caches: Option<&CacheTopology>) -> Bytes {
    let levels = caches.map_or(0, |caches| caches.levels().len()) as u64;
    let cpu = ROOM_CPU + levels * ROOM_CACHE;
    let devices = u64::from(layout::MAX_VIRTIO_DEVICES) * ROOM_VIRTIO;
    Bytes::new(ROOM_FIXED + devices + u64::from(cpus) * cpu)
}

impl Tree<'_> {
    /// Writes the flattened device tree.
    ///
    /// # Errors
    /// When the parts contradict each other or exceed what Linux takes.
    pub fn build(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "Tessera")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
        self.chosen(&mut fdt)?;
        self.memory(&mut fdt)?;
        self.cpus(&mut fdt)?;
        hypervisor(&mut fdt)?;
        psci(&mut fdt)?;
        self.timer(&mut fdt)?;
        self.pmu(&mut fdt)?;
        self.gic(&mut fdt)?;
        clock(&mut fdt)?;
        self.serial(&mut fdt)?;
        self.rtc(&mut fdt)?;
        self.gpio(&mut fdt)?;
        power_key(&mut fdt)?;
        generation(&mut fdt)?;
        self.virtio(&mut fdt)?;
        fdt.end_node(root)?;
        let blob = fdt.finish()?;
        let size = Bytes::new(blob.len() as u64);
        if size > MAX_FDT { Err(Error::TooLarge { size }) } else { Ok(blob) }
    }

    fn check(&self) -> Result<(), Error> {
        let cpus = self.cpus.len();
        let max = self.gic.max_cpus();
        if cpus == 0 {
            return Err(Error::NoCpus);
        }
        if cpus > max as usize {
            return Err(Error::TooManyCpus { cpus, max, gic: *self.gic });
        }
        if let Gic::V3 { cpus: redistributors } = *self.gic
            && redistributors as usize != cpus
        {
            return Err(Error::Redistributors { redistributors, cpus });
        }
        let mut seen = HashSet::new();
        if let Some(cpu) = self.cpus.iter().find(|cpu| !seen.insert(cpu.affinity())) {
            return Err(Error::SameAffinity(*cpu));
        }
        if self.memory.iter().all(|range| range.size.is_zero()) {
            return Err(Error::NoMemory);
        }
        if let Some(offset) = self.command_line.bytes().position(|byte| byte == 0) {
            return Err(Error::CommandLineNul { offset });
        }
        match self.command_line.len() {
            length if length > MAX_COMMAND_LINE => Err(Error::CommandLineTooLong { length }),
            _ => Ok(()),
        }
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.command_line)?;
        fdt.property_string("stdout-path", &format!("/{}", name("serial", self.serial.range)))?;
        if let Some(initrd) = self.initrd {
            fdt.property_u64("linux,initrd-start", initrd.base.raw_value())?;
            fdt.property_u64("linux,initrd-end", initrd.end().raw_value())?;
        }
        fdt.property("rng-seed", &self.seeds.rng)?;
        fdt.property_u64("kaslr-seed", self.seeds.kaslr)?;
        Ok(fdt.end_node(node)?)
    }

    fn memory(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        for range in self.memory.iter().filter(|range| !range.size.is_zero()) {
            let node = fdt.begin_node(&name("memory", *range))?;
            fdt.property_string("device_type", "memory")?;
            reg(fdt, &[*range])?;
            fdt.end_node(node)?;
        }
        Ok(())
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for (index, cpu) in (0..).zip(self.cpus) {
            let node = fdt.begin_node(&format!("cpu@{:x}", cpu.affinity()))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u64("reg", cpu.affinity())?;
            if let Some(caches) = self.caches {
                caches::of_cpu(fdt, index, caches)?;
            }
            fdt.end_node(node)?;
        }
        if let Some(caches) = self.caches {
            caches::shared(fdt, caches)?;
        }
        Ok(fdt.end_node(cpus)?)
    }

    fn timer(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let trigger = TRIGGER_LEVEL_LOW | self.gic.ppi_cpu_mask(self.cpus.len() as u32);
        let interrupts = TIMER_PPIS.map(|ppi| [PRIVATE, ppi.number(), trigger]);
        let node = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
        fdt.property_null("always-on")?;
        Ok(fdt.end_node(node)?)
    }

    /// KVM drives the overflow interrupt as a level that is high (`kvm_pmu_update_state`).
    fn pmu(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        if !self.pmu {
            return Ok(());
        }
        let trigger = TRIGGER_LEVEL_HIGH | self.gic.ppi_cpu_mask(self.cpus.len() as u32);
        let node = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &[PRIVATE, Ppi::PMU.number(), trigger])?;
        Ok(fdt.end_node(node)?)
    }

    fn gic(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let distributor = self.gic.distributor();
        let rest = self.gic.redistributors().or(self.gic.cpu_interface());
        let frames: Vec<_> = [distributor].into_iter().chain(rest).collect();
        let node = fdt.begin_node(&name("interrupt-controller", distributor))?;
        fdt.property_string("compatible", self.gic.compatible())?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_null("ranges")?;
        reg(fdt, &frames)?;
        if self.gic.redistributors().is_some() {
            fdt.property_u32("#redistributor-regions", 1)?;
        }
        fdt.property_phandle(PHANDLE_GIC)?;
        Ok(fdt.end_node(node)?)
    }

    fn serial(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node(&name("serial", self.serial.range))?;
        fdt.property_string("compatible", "ns16550a")?;
        reg(fdt, &[self.serial.range])?;
        fdt.property_u32("clock-frequency", SERIAL_CLOCK_HZ)?;
        interrupt(fdt, self.serial.spi)?;
        Ok(fdt.end_node(node)?)
    }

    fn rtc(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node(&name("rtc", self.rtc.range))?;
        primecell(fdt, "arm,pl031")?;
        reg(fdt, &[self.rtc.range])?;
        // The alarm is a level: it stays until the guest clears it.
        let interrupt = [SHARED, self.rtc.spi.number(), TRIGGER_LEVEL_HIGH];
        fdt.property_array_u32("interrupts", &interrupt)?;
        Ok(fdt.end_node(node)?)
    }

    fn gpio(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node(&name("gpio", self.gpio.range))?;
        primecell(fdt, "arm,pl061")?;
        reg(fdt, &[self.gpio.range])?;
        interrupt(fdt, self.gpio.spi)?;
        fdt.property_null("gpio-controller")?;
        fdt.property_u32("#gpio-cells", 2)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 2)?;
        fdt.property_phandle(PHANDLE_GPIO)?;
        Ok(fdt.end_node(node)?)
    }

    fn virtio(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        for device in self.virtio {
            let node = fdt.begin_node(&name("virtio_mmio", device.range))?;
            fdt.property_string("compatible", "virtio,mmio")?;
            reg(fdt, &[device.range])?;
            interrupt(fdt, device.spi)?;
            // The VMM reaches guest memory through the same caches as the guest.
            fdt.property_null("dma-coherent")?;
            fdt.end_node(node)?;
        }
        Ok(())
    }
}

/// By this systemd and others find that they run under KVM (`detect_vm_device_tree` in systemd's
/// `src/basic/virt.c`).
fn hypervisor(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("hypervisor")?;
    fdt.property_string("compatible", "linux,kvm")?;
    Ok(fdt.end_node(node)?)
}

fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    strings(fdt, "compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
    fdt.property_string("method", "hvc")?;
    Ok(fdt.end_node(node)?)
}

/// The clock that the drivers of Arm's PrimeCell devices insist on.
fn clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", PERIPHERAL_CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    Ok(fdt.end_node(node)?)
}

fn power_key(fdt: &mut FdtWriter) -> Result<(), Error> {
    let keys = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    let key = fdt.begin_node("poweroff")?;
    fdt.property_string("label", "poweroff")?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    fdt.property_array_u32("gpios", &[PHANDLE_GPIO, POWER_KEY_LINE, ACTIVE_HIGH])?;
    fdt.end_node(key)?;
    Ok(fdt.end_node(keys)?)
}

/// Node name with unit address (Devicetree Specification 2.2.1.1).
fn name(generic: &str, range: MemoryRange) -> String {
    format!("{generic}@{:x}", range.base.raw_value())
}

fn reg(fdt: &mut FdtWriter, ranges: &[MemoryRange]) -> Result<(), Error> {
    let cells: Vec<u64> =
        ranges.iter().flat_map(|range| [range.base.raw_value(), range.size.get()]).collect();
    Ok(fdt.property_array_u64("reg", &cells)?)
}

/// Rising edge: the VMM's interrupt lines are events, not levels.
fn interrupt(fdt: &mut FdtWriter, spi: Spi) -> Result<(), Error> {
    Ok(fdt.property_array_u32("interrupts", &[SHARED, spi.number(), TRIGGER_EDGE_RISING])?)
}

fn primecell(fdt: &mut FdtWriter, compatible: &str) -> Result<(), Error> {
    strings(fdt, "compatible", &[compatible, "arm,primecell"])?;
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    Ok(fdt.property_string("clock-names", "apb_pclk")?)
}

/// 16 bytes, whatever the memory around them.
fn generation(fdt: &mut FdtWriter) -> Result<(), Error> {
    let id = MemoryRange::new(layout::GENERATION.base, Bytes::new(16));
    let node = fdt.begin_node(&name("rng", id))?;
    fdt.property_string("compatible", "microsoft,vmgenid")?;
    reg(fdt, &[id])?;
    interrupt(fdt, layout::GENERATION_SPI)?;
    Ok(fdt.end_node(node)?)
}

fn strings(fdt: &mut FdtWriter, name: &str, values: &[&str]) -> Result<(), Error> {
    let values = values.iter().map(|value| value.to_string()).collect();
    Ok(fdt.property_string_list(name, values)?)
}

#[cfg(test)]
mod tests;
