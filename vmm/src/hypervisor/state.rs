//! The state of vCPUs, interrupt controller and clock, as plain values: what a snapshot holds of them.

pub mod bytes;

use std::io;
use std::ops::Range;

use arch::regs::RegId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a vCPU does not take a state.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// It has no such registers, or does not take their values.
    #[error(
        "the saved state of vCPU {vcpu} does not fit this host's CPUs and kernel: KVM does not take the registers \
         {registers}. Restore on a host like the one where it was saved"
    )]
    Registers {
        /// Which vCPU.
        vcpu: u32,
        /// The registers, each with the reason.
        registers: String,
    },
    /// A call failed.
    #[error("KVM: cannot {what} of vCPU {vcpu}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// For which vCPU.
        vcpu: u32,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The registers of a vCPU (KVM_GET_ONE_REG), in the order in which KVM lists them. It has hundreds: their values are kept
/// together.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SavedRegisters {
    ids: Vec<u64>,
    /// Little-endian, one after the other, each as long as its id says: at most 256 bytes, an SVE register.
    #[serde(with = "bytes")]
    values: Vec<u8>,
}

impl SavedRegisters {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Their ids.
    pub fn ids(&self) -> impl Iterator<Item = RegId> + '_ {
        self.ids.iter().copied().map(RegId::new)
    }

    /// How many bytes their values have. What is read from a file may not be what the ids say.
    pub fn value_bytes(&self) -> usize {
        self.values.len()
    }

    /// Adds one; its value is zero, and may be written.
    pub fn push(&mut self, id: RegId) -> &mut [u8] {
        self.ids.push(id.get());
        let start = self.values.len();
        self.values.resize(start + id.size(), 0);
        &mut self.values[start..]
    }

    /// With values that need not be what the ids say.
    #[cfg(test)]
    pub(crate) fn unchecked(ids: Vec<u64>, values: Vec<u8>) -> Self {
        Self { ids, values }
    }

    /// Each with its value, as far as there are values.
    pub fn iter(&self) -> impl Iterator<Item = (RegId, &[u8])> {
        let mut rest = &*self.values;
        self.ids().map_while(move |id| {
            let (value, others) = rest.split_at_checked(id.size())?;
            rest = others;
            Some((id, value))
        })
    }
}

/// A pending SError (KVM_GET_VCPU_EVENTS).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SError {
    /// Its syndrome, if it has one.
    pub esr: Option<u64>,
}

/// The state of one vCPU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// Its registers.
    pub registers: SavedRegisters,
    /// Whether it runs, is off or is suspended (KVM_GET_MP_STATE).
    pub mp_state: u32,
    /// The SError that it is to take.
    pub serror: Option<SError>,
    /// Its vector lengths (KVM_REG_ARM64_SVE_VLS), if it has SVE: set before the vCPU is finalized.
    pub sve_lengths: Option<[u64; 8]>,
}

impl VcpuState {
    /// Whether it has pointer authentication.
    pub fn has_pointer_authentication(&self) -> bool {
        self.registers.ids().any(|id| id == RegId::APIAKEYLO_EL1)
    }
}

/// One register of the interrupt controller (KVM_GET_DEVICE_ATTR).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GicRegister {
    /// Its group (KVM_DEV_ARM_VGIC_GRP_*).
    pub group: u32,
    /// Its offset or encoding, with the vCPU that it belongs to.
    pub attribute: u64,
    /// Its value. Only system registers of a GICv3 CPU interface have more than 32 bits.
    pub value: u64,
}

/// The state of the interrupt controller.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GicState {
    /// 2 or 3.
    pub version: u8,
    /// Its registers, in the order in which they are to be written.
    pub registers: Vec<GicRegister>,
}

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS, and where its GICD_IPRIORITYR are: a byte for each interrupt.
const DISTRIBUTOR: u32 = 1;
const PRIORITIES: Range<u64> = 0x400..0x800;

impl GicState {
    /// How many interrupts the controller has, private ones included. What is read from a file may be no number that
    /// fits the registers.
    pub fn interrupts(&self) -> u32 {
        let of_distributor = self.registers.iter().filter(|one| one.group == DISTRIBUTOR);
        let priorities = of_distributor.filter(|one| PRIORITIES.contains(&one.attribute));
        let last = priorities.map(|one| (one.attribute - PRIORITIES.start) as u32).max();
        last.map_or(0, |last| last + 1).next_multiple_of(32).max(64)
    }
}

/// The VM's clock. There is one for all vCPUs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// The virtual counter (CNTVCT_EL0).
    pub counter: u64,
    /// How often it counts a second (CNTFRQ_EL0).
    pub frequency: u32,
    /// The host's wall clock at the same moment, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gic(registers: &[(u32, u64)]) -> GicState {
        let register = |&(group, attribute)| GicRegister { group, attribute, value: 0 };
        GicState { version: 3, registers: registers.iter().map(register).collect() }
    }

    #[test]
    fn a_saved_controller_has_as_many_interrupts_as_priorities() {
        let with_last = |offset| gic(&[(1, 0x0c00), (1, 0x400), (1, offset), (1, 0x6100)]);

        assert_eq!(with_last(0x400 + 96 - 4).interrupts(), 96);
        assert_eq!(with_last(0x400 + 1024 - 4).interrupts(), 1024);
    }

    #[test]
    fn whatever_a_file_says_the_number_is_one_that_a_controller_can_have() {
        for (group, attribute, expected) in
            [(1, 0x800, 64), (5, 0x7fc, 64), (1, 0x401, 64), (1, 0x7ff, 1024), (1, u64::MAX, 64)]
        {
            assert_eq!(gic(&[(group, attribute)]).interrupts(), expected);
        }
        assert_eq!(gic(&[]).interrupts(), 64);
    }
}
