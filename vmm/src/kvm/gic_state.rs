//! The state of the interrupt controller, saved and restored.
//!
//! # References
//! Linux Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst; Arm IHI 0069, *GIC Architecture
//! Specification, v3 and v4*; Arm IHI 0048, *v2*
#![allow(unsafe_code)]

use arch::gic::Gic;
use arch::regs::Mpidr;
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_REGS, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;

use super::vm::CreatedGic;
use super::{Error, call};
use crate::hypervisor::state::{GicRegister, GicState};

const DISTRIBUTOR: u32 = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
const REDISTRIBUTOR: u32 = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
const CPU_V2: u32 = KVM_DEV_ARM_VGIC_GRP_CPU_REGS;
const CPU_V3: u32 = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
const LEVELS: u32 = KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO;

/// The interrupts of each CPU alone: SGIs and PPIs.
const PRIVATE: u32 = 32;

// Offsets of distributor and, from IGROUPR on, of the second frame of a redistributor.
const CTLR: u64 = 0x0000;
const IIDR: u64 = 0x0008;
const IGROUPR: u64 = 0x0080;
const ISENABLER: u64 = 0x0100;
const ICENABLER: u64 = 0x0180;
const ISPENDR: u64 = 0x0200;
const ISACTIVER: u64 = 0x0300;
const IPRIORITYR: u64 = 0x0400;
const ITARGETSR: u64 = 0x0800;
const ICFGR: u64 = 0x0c00;
const SPENDSGIR: u64 = 0x0f20;
const IROUTER: u64 = 0x6000;
/// The second frame of a redistributor: SGIs and PPIs.
const SGI_FRAME: u64 = 0x1_0000;

/// The SGIs in a word of bits.
const SGIS: u64 = 0xffff;

/// A register, and how it is restored.
#[derive(Clone, Copy)]
struct Entry {
    group: u32,
    attribute: u64,
    /// Zero is what it has after a reset, or a zero changes nothing in it.
    zero_is_default: bool,
}

impl Entry {
    /// Whether it is the first word of this register, for the interrupts of one CPU alone.
    fn is_private(&self, register: u64) -> bool {
        let offset = self.attribute & u64::from(u32::MAX);
        match self.group {
            REDISTRIBUTOR => offset == SGI_FRAME | register,
            DISTRIBUTOR => offset == register,
            _ => false,
        }
    }
}

/// The state of an interrupt controller whose vCPUs are out of the guest.
pub(super) fn save(gic: &CreatedGic) -> Result<GicState, Error> {
    let registers = entries(gic)?.into_iter().map(|entry| {
        let Entry { group, attribute, .. } = entry;
        Ok(GicRegister { group, attribute, value: read(&gic.device, group, attribute)? })
    });
    Ok(GicState {
        version: version(&gic.kind),
        registers: registers.collect::<Result<_, Error>>()?,
    })
}

/// Gives a new interrupt controller a state, after the registers of its vCPUs.
pub(super) fn restore(gic: &CreatedGic, state: &GicState) -> Result<(), Error> {
    let (device, here) = (&gic.device, version(&gic.kind));
    if state.version != here {
        return Err(Error::SavedGic { saved: state.version, here });
    }
    let entries = entries(gic)?;
    let named = |(entry, saved): (&Entry, &GicRegister)| {
        (entry.group, entry.attribute) == (saved.group, saved.attribute)
    };
    if entries.len() != state.registers.len() || !entries.iter().zip(&state.registers).all(named) {
        return Err(Error::SavedGicRegisters);
    }
    for (entry, saved) in entries.iter().zip(&state.registers) {
        if entry.is_private(ISENABLER) {
            // A bit that is written only enables, and SGIs are enabled from the start.
            let attribute = entry.attribute - ISENABLER + ICENABLER;
            write(device, &GicRegister { attribute, value: u32::MAX.into(), ..*saved })?;
        }
        let mut saved = saved.clone();
        if state.version == 2 && entry.is_private(ISPENDR) {
            // Written here, an SGI comes from its own CPU: GICD_SPENDSGIR has where it comes from.
            saved.value &= !SGIS;
        }
        if saved.value != 0 || !entry.zero_is_default {
            write(device, &saved)?;
        }
    }
    Ok(())
}

fn version(gic: &Gic) -> u8 {
    match gic {
        Gic::V3 { .. } => 3,
        Gic::V2 => 2,
    }
}

/// All registers, in the order in which they are to be written.
fn entries(gic: &CreatedGic) -> Result<Vec<Entry>, Error> {
    match gic.kind {
        Gic::V3 { .. } => v3(gic),
        Gic::V2 => Ok(v2(gic.cpus.len() as u64, gic.interrupts)),
    }
}

fn v3(gic: &CreatedGic) -> Result<Vec<Entry>, Error> {
    let CreatedGic { device, interrupts, cpus, .. } = gic;
    let shared = PRIVATE..*interrupts;
    let mut list = List::default();
    // The revision first: it says what the other registers mean.
    list.always(DISTRIBUTOR, IIDR);
    list.always(DISTRIBUTOR, CTLR);
    for cpu in cpus {
        let at = v3_cpu(*cpu);
        list.banks(REDISTRIBUTOR, at | SGI_FRAME, 0..PRIVATE);
        list.unless_zero(LEVELS, at);
    }
    for spi in shared.clone() {
        // Two halves: an attribute of the distributor has 32 bits.
        let route = IROUTER + 8 * u64::from(spi);
        list.unless_zero(DISTRIBUTOR, route);
        list.unless_zero(DISTRIBUTOR, route + 4);
    }
    list.banks(DISTRIBUTOR, 0, shared.clone());
    for first in shared.step_by(32) {
        list.unless_zero(LEVELS, first.into());
    }
    for cpu in cpus {
        let at = v3_cpu(*cpu);
        let control = read(device, CPU_V3, at | ICC_CTLR)?;
        for register in [ICC_SRE, ICC_CTLR, ICC_IGRPEN0, ICC_IGRPEN1, ICC_PMR, ICC_BPR0, ICC_BPR1] {
            list.always(CPU_V3, at | register);
        }
        for index in 0..active_priorities(control) {
            list.always(CPU_V3, at | (ICC_AP0R0 + index));
            list.always(CPU_V3, at | (ICC_AP1R0 + index));
        }
    }
    Ok(list.0)
}

/// The system registers of the CPU interface, each op0, op1, CRn, CRm and op2 as in an MRS.
const ICC_PMR: u64 = icc(4, 6, 0);
const ICC_BPR0: u64 = icc(12, 8, 3);
const ICC_AP0R0: u64 = icc(12, 8, 4);
const ICC_AP1R0: u64 = icc(12, 9, 0);
const ICC_BPR1: u64 = icc(12, 12, 3);
const ICC_CTLR: u64 = icc(12, 12, 4);
const ICC_SRE: u64 = icc(12, 12, 5);
const ICC_IGRPEN0: u64 = icc(12, 12, 6);
const ICC_IGRPEN1: u64 = icc(12, 12, 7);

const fn icc(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// How many registers of active priorities of each group there are, by ICC_CTLR_EL1.PRIbits.
fn active_priorities(control: u64) -> u64 {
    match control >> 8 & 0b111 {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    }
}

/// The CPU as an attribute of GICv3 has it: Aff3 to Aff0 in bits 63 to 32.
fn v3_cpu(cpu: Mpidr) -> u64 {
    let affinity = cpu.affinity();
    (affinity >> 32 << 24 | affinity & 0xff_ffff) << 32
}

fn v2(cpus: u64, interrupts: u32) -> Vec<Entry> {
    let mut list = List::default();
    // KVM takes groups only after a write of the revision.
    list.always(DISTRIBUTOR, IIDR);
    list.always(DISTRIBUTOR, CTLR);
    for cpu in (0..cpus).map(|cpu| cpu << 32) {
        list.banks(DISTRIBUTOR, cpu, 0..PRIVATE);
        // SGIs are pending once for each CPU that they come from.
        for word in 0..4 {
            list.unless_zero(DISTRIBUTOR, cpu | (SPENDSGIR + 4 * word));
        }
    }
    for first in (PRIVATE..interrupts).step_by(4) {
        list.always(DISTRIBUTOR, ITARGETSR + u64::from(first));
    }
    list.banks(DISTRIBUTOR, 0, PRIVATE..interrupts);
    for cpu in (0..cpus).map(|cpu| cpu << 32) {
        for register in [GICC_CTLR, GICC_PMR, GICC_BPR, GICC_ABPR] {
            list.always(CPU_V2, cpu | register);
        }
        for word in 0..4 {
            list.always(CPU_V2, cpu | (GICC_APR + 4 * word));
        }
    }
    list.0
}

const GICC_CTLR: u64 = 0x00;
const GICC_PMR: u64 = 0x04;
const GICC_BPR: u64 = 0x08;
const GICC_ABPR: u64 = 0x1c;
const GICC_APR: u64 = 0xd0;

#[derive(Default)]
struct List(Vec<Entry>);

impl List {
    fn always(&mut self, group: u32, attribute: u64) {
        self.0.push(Entry { group, attribute, zero_is_default: false });
    }

    fn unless_zero(&mut self, group: u32, attribute: u64) {
        self.0.push(Entry { group, attribute, zero_is_default: true });
    }

    /// What there is for each of some interrupts: a frame of a redistributor and the distributor have the same
    /// layout. Pending and active come last, when it is settled what an interrupt is.
    fn banks(&mut self, group: u32, at: u64, interrupts: std::ops::Range<u32>) {
        let words = |bits: u32| {
            let (first, end) = (interrupts.start * bits / 32, interrupts.end * bits / 32);
            (first..end).map(|word| 4 * u64::from(word))
        };
        words(1).for_each(|word| self.always(group, at | (IGROUPR + word)));
        words(2).for_each(|word| self.always(group, at | (ICFGR + word)));
        words(8).for_each(|word| self.unless_zero(group, at | (IPRIORITYR + word)));
        for register in [ISENABLER, ISPENDR, ISACTIVER] {
            words(1).for_each(|word| self.unless_zero(group, at | (register + word)));
        }
    }
}

/// Whether a register of this group has 64 bits.
fn is_wide(group: u32) -> bool {
    group == CPU_V3
}

fn read(device: &DeviceFd, group: u32, attribute: u64) -> Result<u64, Error> {
    let (mut word, mut wide) = (0u32, 0u64);
    let addr = match is_wide(group) {
        true => std::ptr::from_mut(&mut wide) as u64,
        false => std::ptr::from_mut(&mut word) as u64,
    };
    let mut attribute = kvm_device_attr { flags: 0, group, attr: attribute, addr };
    // SAFETY: KVM writes 64 bits to `addr` for a register of the CPU interface of GICv3, and 32 bits for others
    // (vgic_v3_attr_regs_access, vgic_v2_attr_regs_access), and that is what is there.
    unsafe { device.get_device_attr(&mut attribute) }
        .map_err(call("read the interrupt controller"))?;
    Ok(if is_wide(group) { wide } else { word.into() })
}

fn write(device: &DeviceFd, register: &GicRegister) -> Result<(), Error> {
    let GicRegister { group, attribute, value } = *register;
    let word = value as u32;
    let addr = match is_wide(group) {
        true => std::ptr::from_ref(&value) as u64,
        false => std::ptr::from_ref(&word) as u64,
    };
    let attribute = kvm_device_attr { flags: 0, group, attr: attribute, addr };
    device.set_device_attr(&attribute).map_err(call("restore the interrupt controller"))
}
