//! Register identifiers for KVM_GET_ONE_REG and KVM_SET_ONE_REG, and what some of the values mean.
//!
//! The identifiers are plain numbers: no kernel header is needed to compute them, so the report of
//! a dead vCPU can be tested on any machine.
//!
//! # References
//! - Linux `arch/arm64/include/uapi/asm/kvm.h`, `Documentation/virt/kvm/api.rst` 4.68
//! - Arm DDI 0487, *Arm Architecture Reference Manual for A-profile*: MPIDR_EL1, ESR_ELx, SPSR_EL1

use std::fmt;

mod syndrome;

pub use syndrome::Syndrome;

/// KVM_REG_ARM64.
const ARM64: u64 = 0x6000_0000_0000_0000;
/// KVM_REG_SIZE_SHIFT.
const SIZE_SHIFT: u32 = 52;
/// KVM_REG_SIZE_U64.
const SIZE_U64: u64 = 0x0030_0000_0000_0000;
/// KVM_REG_ARM_CORE.
const CORE: u64 = 0x0010 << 16;
/// KVM_REG_SIZE_U512.
const SIZE_U512: u64 = 0x0060_0000_0000_0000;
/// KVM_REG_ARM64_SVE.
const SVE: u64 = 0x0015 << 16;
/// KVM_REG_ARM64_SYSREG.
const SYSREG: u64 = 0x0013 << 16;

/// KVM_REG_ARM_COPROC_MASK: which of these it is.
const FAMILY: u64 = 0x0fff_0000;

/// The identifier of a 64-bit register.
///
/// Those of the system registers name what a saved vCPU is made of, in reports and in checks of a saved
/// state; a list of all that there are comes from KVM (KVM_GET_REG_LIST).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegId(u64);

impl RegId {
    /// Stack pointer of EL0.
    pub const SP_EL0: RegId = core(31);
    /// Program counter.
    pub const PC: RegId = core(32);
    /// Processor state, in the layout of SPSR.
    pub const PSTATE: RegId = core(33);
    /// Stack pointer of EL1.
    pub const SP_EL1: RegId = core(34);
    /// Where an exception to EL1 came from.
    pub const ELR_EL1: RegId = core(35);
    /// Processor state before an exception to EL1.
    pub const SPSR_EL1: RegId = core(36);

    /// Affinity of the vCPU; see [`Mpidr`].
    pub const MPIDR_EL1: RegId = system(3, 0, 0, 0, 5);
    /// Processor features 0: SVE in bits 32 to 35.
    pub const ID_AA64PFR0_EL1: RegId = system(3, 0, 0, 4, 0);
    /// Processor features 1: MTE in bits 8 to 11.
    pub const ID_AA64PFR1_EL1: RegId = system(3, 0, 0, 4, 1);
    /// Instruction set 1: pointer authentication in bits 4 to 11 and 24 to 31.
    pub const ID_AA64ISAR1_EL1: RegId = system(3, 0, 0, 6, 1);
    /// Memory model 0: physical address range, translation granules.
    pub const ID_AA64MMFR0_EL1: RegId = system(3, 0, 0, 7, 0);
    /// The kinds of cache at each level; see [`Clidr`](crate::caches::Clidr).
    pub const CLIDR_EL1: RegId = system(3, 1, 0, 0, 1);
    /// System control: MMU, caches, tag checking.
    pub const SCTLR_EL1: RegId = system(3, 0, 1, 0, 0);
    /// Translation table of the lower addresses.
    pub const TTBR0_EL1: RegId = system(3, 0, 2, 0, 0);
    /// Translation table of the upper addresses.
    pub const TTBR1_EL1: RegId = system(3, 0, 2, 0, 1);
    /// Translation control.
    pub const TCR_EL1: RegId = system(3, 0, 2, 0, 2);
    /// Cause of the last exception to EL1; see [`Syndrome`].
    pub const ESR_EL1: RegId = system(3, 0, 5, 2, 0);
    /// Address of the last fault taken to EL1.
    pub const FAR_EL1: RegId = system(3, 0, 6, 0, 0);
    /// Exception vectors of EL1.
    pub const VBAR_EL1: RegId = system(3, 0, 12, 0, 0);

    /// KVM_REG_ARM_TIMER_CNT, the virtual counter. The encoding is that of CNTV_CVAL_EL0: the
    /// kernel's header swapped the two by accident and is bound to it ("WARNING" in
    /// uapi/asm/kvm.h).
    pub const TIMER_CNT: RegId = system(3, 3, 14, 3, 2);
    /// KVM_REG_ARM_TIMER_CVAL, the virtual compare value, with the encoding of CNTVCT_EL0; see
    /// [`RegId::TIMER_CNT`].
    pub const TIMER_CVAL: RegId = system(3, 3, 14, 0, 2);
    /// KVM_REG_ARM_TIMER_CTL, control of the virtual timer.
    pub const TIMER_CTL: RegId = system(3, 3, 14, 3, 1);
    /// KVM_REG_ARM_PTIMER_CNT, the physical counter.
    pub const PTIMER_CNT: RegId = system(3, 3, 14, 0, 1);
    /// The first half of the key for instruction addresses, key A: there if the vCPU has pointer authentication.
    pub const APIAKEYLO_EL1: RegId = system(3, 0, 2, 1, 0);
    /// KVM_REG_ARM64_SVE_VLS, the vector lengths of SVE: 512 bits. There if the vCPU has SVE.
    pub const SVE_VLS: RegId = RegId(ARM64 | SIZE_U512 | SVE | 0xffff);

    /// The general-purpose register X`number`, or `None` beyond X30.
    pub const fn x(number: u8) -> Option<RegId> {
        if number <= 30 { Some(core(number as u64)) } else { None }
    }

    /// The register with this number.
    pub const fn new(number: u64) -> RegId {
        RegId(number)
    }

    /// The number for KVM.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether it is one of those that are known to be zero in every vCPU that has not run: general-purpose and vector
    /// registers, and those of breakpoints and watchpoints (Linux arch/arm64/kvm/reset.c, `kvm_reset_vcpu`; sys_regs.c,
    /// `DBG_BCR_BVR_WCR_WVR_EL1`). Others may be zero as well, or have a value that stands for an unknown one.
    pub const fn is_zero_at_reset(self) -> bool {
        let (family, index) = (self.0 & FAMILY, self.0 & 0xffff);
        match family {
            // In units of 32 bits; those of 128 bits are V0 to V31.
            CORE => index <= 2 * 30 || self.size() == 16,
            SVE => self.0 != Self::SVE_VLS.0,
            // DBGBVR<n>_EL1, DBGBCR<n>_EL1, DBGWVR<n>_EL1 and DBGWCR<n>_EL1: CRm is the number.
            SYSREG => index & !(0xf << 3 | 0b11) == 2 << 14 | 4,
            _ => false,
        }
    }

    /// Whether it is one of those that a vCPU with SVE has and others have not.
    pub const fn is_of_sve(self) -> bool {
        self.0 & FAMILY == SVE
    }

    /// Its size in bytes (KVM_REG_SIZE): 1 to 2^15.
    pub const fn size(self) -> usize {
        1 << (self.0 >> SIZE_SHIFT & 0xf)
    }
}

/// Register `index` of `struct kvm_regs`, which counts in units of 32 bits. Every one that is used
/// here has 64 bits.
const fn core(index: u64) -> RegId {
    RegId(ARM64 | SIZE_U64 | CORE | (2 * index))
}

/// ARM64_SYS_REG(op0, op1, crn, crm, op2).
const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> RegId {
    RegId(ARM64 | SIZE_U64 | SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
}

impl fmt::Display for RegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::Debug for RegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegId({self})")
    }
}

/// The value of [`RegId::MPIDR_EL1`]: which CPU this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mpidr(u64);

impl Mpidr {
    /// Aff3 in bits 32 to 39, Aff2 to Aff0 in bits 0 to 23.
    const AFFINITY: u64 = 0xff_00ff_ffff;

    /// The register's value as KVM returns it.
    pub const fn new(value: u64) -> Mpidr {
        Mpidr(value)
    }

    /// The register's value.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The affinity fields alone: `reg` of the CPU's device tree node, and PSCI's target.
    pub const fn affinity(self) -> u64 {
        self.0 & Mpidr::AFFINITY
    }
}

impl fmt::Display for Mpidr {
    /// Aff3.Aff2.Aff1.Aff0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, _, _, aff3, _, aff2, aff1, aff0] = self.0.to_be_bytes();
        write!(f, "{aff3}.{aff2}.{aff1}.{aff0}")
    }
}

#[cfg(test)]
mod tests;
