//! What of a state can be checked without a host.
//!
//! # References
//! Linux `arch/arm64/include/uapi/asm/kvm.h`, `include/uapi/linux/kvm.h`;
//! `Documentation/virt/kvm/devices/arm-vgic.rst`, `arm-vgic-v3.rst`

use arch::gic::Gic;
use arch::layout::CHUNK;
use arch::regs::RegId;
use arch::units::Bytes;

use super::super::error::Part;
use super::super::memory_file::{MAX_MEMORY, is_page_size};
use super::sections::{CLOCK, DEVICES, GIC, MANIFEST, SectionKind, VCPUS};
use super::{DeviceState, DeviceStates, Manifest, State};
use crate::hypervisor::state::{ClockState, GicState, VcpuState};

/// The most vCPUs, of whatever interrupt controller ([`Gic::max_cpus`] has the limit by the VM's own).
pub(super) const MOST_VCPUS: usize = 512;
/// The most devices: there are places for 32 of virtio, and a few others.
pub(super) const MOST_DEVICES: usize = 128;

/// The most registers of a vCPU. The widest CPU model known has 366; there is room for some more features.
const MOST_REGISTERS: usize = 1024;
/// The most registers of an interrupt controller: a GICv3's 988 shared interrupts have a route of two registers
/// each, and less than two more; a vCPU has fewer than 128.
const MOST_GIC_REGISTERS: usize = 4096 + 128 * 512;

/// The queues and registers of some dozens of devices, and what is under way in them: kilobytes each.
const DEVICES_BUT_PAGES: u64 = 1 << 20;

/// The most that the states of all devices of a VM have together: a balloon has at most a bit for each 4 KiB of guest
/// memory, all others nothing that the guest can make long.
pub(super) const fn most_of_devices(memory: Bytes) -> Bytes {
    Bytes::new(DEVICES_BUT_PAGES + memory.get() / (4096 * 8))
}

/// KVM_REG_ARM64.
const ARCH_ARM64: u64 = 0x60;
const ARCH_SHIFT: u32 = 56;
/// KVM_REG_SIZE_SHIFT.
const SIZE_SHIFT: u32 = 52;
/// KVM_REG_ARM_COPROC_SHIFT: the family. Above are no bits up to the size.
const FAMILY_SHIFT: u32 = 16;
/// Core, demultiplexed, system, firmware, SVE, and firmware features registers (KVM_REG_ARM_CORE,
/// KVM_REG_ARM_DEMUX, KVM_REG_ARM64_SYSREG, KVM_REG_ARM_FW, KVM_REG_ARM64_SVE, KVM_REG_ARM_FW_FEAT_BMAP).
const FAMILIES: [u64; 6] = [0x10, 0x11, 0x13, 0x14, 0x15, 0x16];
/// The largest register in bytes: one of SVE (KVM_REG_SIZE_U2048).
const LARGEST: usize = 256;

/// KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_MP_STATE_SUSPENDED.
const MP_STATES: [u32; 3] = [0, 5, 10];

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS and KVM_DEV_ARM_VGIC_GRP_CPU_REGS.
const V2_GROUPS: [u32; 2] = [1, 2];
/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS and
/// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO. The others act, or are set when the controller is made.
const V3_GROUPS: [u32; 4] = [1, 5, CPU_SYSREGS, 7];
/// The only group of 64-bit registers.
const CPU_SYSREGS: u32 = 6;

/// Checks a state. What makes no sense is named, with the reason.
pub(super) fn state(state: &State) -> Result<(), (Part, String)> {
    let of = |kind: SectionKind| move |reason| (kind.part(), reason);
    manifest(&state.manifest).map_err(of(MANIFEST))?;
    vcpus(&state.vcpus, &state.manifest).map_err(of(VCPUS))?;
    gic(&state.gic, &state.manifest).map_err(of(GIC))?;
    clock(&state.clock, &state.manifest).map_err(of(CLOCK))?;
    devices(&state.devices, &state.manifest).map_err(of(DEVICES))
}

fn manifest(manifest: &Manifest) -> Result<(), String> {
    if !is_page_size(manifest.page_size()) {
        return Err(format!("no host has pages of {}", manifest.page_size()));
    }
    if let Some(size) = manifest.guest_page_size
        && !is_page_size(Bytes::new(size))
    {
        return Err(format!("no guest has pages of {}", Bytes::new(size)));
    }
    let memory = manifest.memory_size();
    if memory.is_zero() || !memory.is_multiple_of(CHUNK) || memory > MAX_MEMORY {
        return Err(format!("no VM has {memory} of memory"));
    }
    if !matches!(manifest.gic_version, 2 | 3) {
        return Err(format!("there is no GICv{}", manifest.gic_version));
    }
    if manifest.counter_frequency == 0 {
        return Err("the counter stands still".to_owned());
    }
    if !manifest.config.is_object() {
        return Err("the configuration is no object".to_owned());
    }
    Ok(())
}

fn vcpus(vcpus: &[VcpuState], manifest: &Manifest) -> Result<(), String> {
    let most = match manifest.gic_version {
        2 => Gic::V2.max_cpus(),
        _ => Gic::V3 { cpus: 1 }.max_cpus(),
    };
    if vcpus.is_empty() || vcpus.len() > most as usize {
        return Err(format!("a VM has 1 to {most} vCPUs, and there are {}", vcpus.len()));
    }
    for (index, state) in vcpus.iter().enumerate() {
        vcpu(state, manifest.cpu_features.sve)
            .map_err(|reason| format!("vCPU {index}: {reason}"))?;
    }
    Ok(())
}

fn vcpu(vcpu: &VcpuState, sve: bool) -> Result<(), String> {
    if vcpu.registers.is_empty() || vcpu.registers.len() > MOST_REGISTERS {
        return Err(format!("it has {} registers", vcpu.registers.len()));
    }
    vcpu.registers.ids().try_for_each(register)?;
    let found = vcpu.registers.value_bytes();
    let said: usize = vcpu.registers.ids().map(RegId::size).sum();
    if found != said {
        return Err(format!("its registers have {found} bytes, and their ids say {said}"));
    }
    if let Some(id) = twice(vcpu.registers.ids().map(RegId::get).collect()) {
        return Err(format!("register {id:#x} is there twice"));
    }
    if !MP_STATES.contains(&vcpu.mp_state) {
        return Err(format!("there is no state {} of a vCPU", vcpu.mp_state));
    }
    if vcpu.sve_lengths.is_some() != sve {
        return Err("vector lengths are there without SVE, or SVE without them".to_owned());
    }
    Ok(())
}

fn register(register: RegId) -> Result<(), String> {
    let id = register.get();
    let family = (id >> FAMILY_SHIFT) & ((1 << (SIZE_SHIFT - FAMILY_SHIFT)) - 1);
    if id >> ARCH_SHIFT != ARCH_ARM64 || !FAMILIES.contains(&family) {
        return Err(format!("register {id:#x} is of no family that this version knows"));
    }
    match register.size() {
        size if size > LARGEST => Err(format!("no register has {size} bytes, as {id:#x} says")),
        _ => Ok(()),
    }
}

/// Something that is in a list more than once.
fn twice<T: Copy + Ord>(mut list: Vec<T>) -> Option<T> {
    list.sort_unstable();
    list.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

fn gic(gic: &GicState, manifest: &Manifest) -> Result<(), String> {
    if gic.version != manifest.gic_version {
        return Err(format!("it is of a GICv{}, not v{}", gic.version, manifest.gic_version));
    }
    if gic.registers.len() > MOST_GIC_REGISTERS {
        return Err(format!("it has {} registers", gic.registers.len()));
    }
    let groups = if gic.version == 2 { &V2_GROUPS[..] } else { &V3_GROUPS[..] };
    for register in &gic.registers {
        let (group, attribute) = (register.group, register.attribute);
        if !groups.contains(&group) {
            return Err(format!("there are no registers of group {group}"));
        }
        if group != CPU_SYSREGS && register.value > u64::from(u32::MAX) {
            return Err(format!("register {attribute:#x} of group {group} has more than 32 bits"));
        }
    }
    let names = gic.registers.iter().map(|register| (register.group, register.attribute));
    match twice(names.collect()) {
        Some((group, attribute)) => {
            Err(format!("register {attribute:#x} of group {group} is there twice"))
        }
        None => Ok(()),
    }
}

fn clock(clock: &ClockState, manifest: &Manifest) -> Result<(), String> {
    if clock.frequency != manifest.counter_frequency {
        return Err(format!(
            "it counts at {} Hz, and the counter at {} Hz",
            clock.frequency, manifest.counter_frequency
        ));
    }
    Ok(())
}

fn devices(devices: &DeviceStates, manifest: &Manifest) -> Result<(), String> {
    let most = most_of_devices(manifest.memory_size());
    let length = devices.values().map(DeviceState::length).fold(0, u64::saturating_add);
    match length <= most.get() {
        true => Ok(()),
        false => Err(format!("they have {length} bytes, and those of this VM {most} at most")),
    }
}
