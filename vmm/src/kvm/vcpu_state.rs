//! The state of a vCPU, saved and restored.
//!
//! # References
//! Linux Documentation/virt/kvm/api.rst, KVM_GET_REG_LIST, KVM_SET_ONE_REG, KVM_SET_MP_STATE, KVM_SET_VCPU_EVENTS;
//! Documentation/virt/kvm/arm/fw-pseudo-registers.rst

use std::fmt::Write as _;
use std::io;

use arch::regs::RegId;
use kvm_bindings::{RegList, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

use crate::hypervisor::state::{SError, SavedRegisters, VcpuState, VcpuStateError};

/// The most registers that are read, which is what the list of kvm-bindings holds. A vCPU with all that KVM emulates
/// has 366 in Linux 6.12.
const MOST_REGISTERS: usize = 500;

/// Registers that are not the vCPU's own: the VM has one counter for all its vCPUs, which is set when the guest
/// resumes; and the vector lengths are set before the vCPU is complete.
const NOT_OWN: [RegId; 3] = [RegId::TIMER_CNT, RegId::PTIMER_CNT, RegId::SVE_VLS];

/// The state of a vCPU that is out of the guest.
pub(super) fn save(vcpu: &VcpuFd) -> io::Result<VcpuState> {
    let (mut registers, mut sve_lengths) = (SavedRegisters::default(), None);
    for id in list(vcpu)? {
        if id == RegId::SVE_VLS {
            let mut value = [0; 64];
            vcpu.get_one_reg(id.get(), &mut value)?;
            sve_lengths = Some(words(&value));
        } else if !NOT_OWN.contains(&id) {
            vcpu.get_one_reg(id.get(), registers.push(id))?;
        }
    }
    let exception = vcpu.get_vcpu_events()?.exception;
    let esr = (exception.serror_has_esr != 0).then_some(exception.serror_esr);
    Ok(VcpuState {
        registers,
        mp_state: vcpu.get_mp_state()?.mp_state,
        serror: (exception.serror_pending != 0).then_some(SError { esr }),
        sve_lengths,
    })
}

/// Gives a vCPU that has not run a state. The first run of any vCPU of the VM makes some registers unchangeable.
pub(super) fn restore(vcpu: &VcpuFd, index: u32, state: &VcpuState) -> Result<(), VcpuStateError> {
    let call = |what| move |source| VcpuStateError::Call { what, vcpu: index, source };
    let mut refused = Vec::new();
    for (id, value) in state.registers.iter() {
        // Those of vectors are there with their lengths alone.
        if NOT_OWN.contains(&id) || id.is_of_sve() && state.sve_lengths.is_none() {
            refused.push((id, None));
            continue;
        }
        // Each call costs as much as some thousand instructions, and a third of the registers are of this kind.
        if id.is_zero_at_reset() && value.iter().all(|byte| *byte == 0) {
            continue;
        }
        if let Err(errno) = vcpu.set_one_reg(id.get(), value) {
            // Identification registers take the value that they have, or one that the host can imitate.
            let mut now = vec![0; value.len()];
            let same = vcpu.get_one_reg(id.get(), &mut now).is_ok() && now == value;
            if !same {
                // What the kernel lists is what it takes: it says of all else that there is none.
                refused.push((id, Some(errno).filter(|errno| errno.errno() != libc::ENOENT)));
            }
        }
    }
    if !refused.is_empty() {
        return Err(VcpuStateError::Registers { vcpu: index, registers: names(&refused) });
    }
    if let Some(SError { esr }) = state.serror {
        let mut events = kvm_vcpu_events::default();
        events.exception.serror_pending = 1;
        events.exception.serror_has_esr = esr.is_some().into();
        events.exception.serror_esr = esr.unwrap_or(0);
        vcpu.set_vcpu_events(&events)
            .map_err(io::Error::from)
            .map_err(call("restore the pending SError"))?;
    }
    // Last: a vCPU that PSCI has switched off stays so, whatever its registers are.
    let state = kvm_mp_state { mp_state: state.mp_state };
    vcpu.set_mp_state(state).map_err(io::Error::from).map_err(call("restore the power state"))
}

/// The registers that a complete vCPU has, in the order in which they can be set.
fn list(vcpu: &VcpuFd) -> io::Result<Vec<RegId>> {
    let mut list = RegList::new(MOST_REGISTERS).map_err(|_| io::ErrorKind::OutOfMemory)?;
    vcpu.get_reg_list(&mut list)?;
    Ok(list.as_slice().iter().copied().map(RegId::new).collect())
}

fn words(bytes: &[u8]) -> [u64; 8] {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// The first of the registers, each with why it was refused.
fn names(refused: &[(RegId, Option<kvm_ioctls::Error>)]) -> String {
    const SHOWN: usize = 8;
    let mut names = String::new();
    for (id, errno) in refused.iter().take(SHOWN) {
        let gap = if names.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = match errno {
            Some(errno) => write!(names, "{gap}{id} ({})", io::Error::from(*errno)),
            None => write!(names, "{gap}{id} (there is none here)"),
        };
    }
    if refused.len() > SHOWN {
        let _ = write!(names, " and {} more", refused.len() - SHOWN);
    }
    names
}
