//! What this host's KVM can do.

use std::io;

use arch::gic::Gic;
use arch::layout;
use arch::units::Bytes;
use kvm_bindings::{
    HWCAP2_MTE, KVM_API_VERSION, KVM_CAP_ARM_MTE, KVM_CAP_ARM_PMU_V3, KVM_CAP_ARM_PTRAUTH_ADDRESS,
    KVM_CAP_ARM_PTRAUTH_GENERIC, KVM_CAP_ARM_SVE,
};
use kvm_ioctls::{Cap, Kvm};

use super::vm::Vm;
use super::{Error, call, gic};
use crate::hypervisor::state::VcpuState;
use crate::hypervisor::{self, Hypervisor};
use crate::memory::GuestRam;

/// KVM creates no VM with fewer guest-physical address bits (Documentation/virt/kvm/api.rst,
/// KVM_CREATE_VM).
const MIN_IPA_BITS: u8 = 32;

/// The limit of a KVM that does not tell its own.
const DEFAULT_IPA_BITS: u8 = 40;

/// What the CPUs of the host have and guests get.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuFeatures {
    pub(super) sve: bool,
    pub(super) pointer_authentication: bool,
    pub(super) pmu: bool,
}

impl CpuFeatures {
    /// Those that a saved vCPU has.
    ///
    /// # Errors
    /// When the host lacks one of them.
    pub(super) fn of_saved(self, vcpu: &VcpuState) -> Result<Self, Error> {
        let sve = vcpu.sve_lengths.is_some();
        let pointer_authentication = vcpu.has_pointer_authentication();
        match (sve && !self.sve, pointer_authentication && !self.pointer_authentication) {
            (true, _) => Err(Error::SavedFeature { feature: "SVE" }),
            (_, true) => Err(Error::SavedFeature { feature: "pointer authentication" }),
            _ => Ok(Self { sve, pointer_authentication, ..self }),
        }
    }
}

/// An open /dev/kvm.
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// When it is missing, not permitted, or of another API.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|errno| {
            let source = io::Error::from(errno);
            let hint = match source.kind() {
                io::ErrorKind::NotFound => {
                    "this host has no KVM: enable virtualisation in its firmware and load a kernel built with KVM"
                }
                io::ErrorKind::PermissionDenied => {
                    "you may not use it: add yourself to its group, usually kvm"
                }
                _ => "run `tessera doctor`",
            };
            Error::Open { hint, source }
        })?;
        match kvm.get_api_version() {
            version if version == KVM_API_VERSION as i32 => Ok(Self { kvm }),
            version => Err(Error::ApiVersion(version)),
        }
    }

    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    pub(super) fn cpu_features(&self) -> CpuFeatures {
        CpuFeatures {
            sve: self.has_sve(),
            pointer_authentication: self.has_pointer_authentication(),
            pmu: self.has(KVM_CAP_ARM_PMU_V3),
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.kvm.check_extension_raw(capability.into()) > 0
    }

    /// Whether guests can have MTE.
    ///
    /// # Errors
    /// Why they cannot, as the end of a sentence.
    pub fn mte(&self) -> Result<(), &'static str> {
        let hwcap2 = rustix::param::linux_hwcap().1 as u64;
        if self.has(KVM_CAP_ARM_MTE) {
            Ok(())
        } else if hwcap2 & u64::from(HWCAP2_MTE) == 0 {
            Err(
                "its CPUs have no MTE, or its kernel was built or started without it (CONFIG_ARM64_MTE, arm64.nomte)",
            )
        } else {
            Err(
                "its kernel has MTE but its KVM does not offer it to guests (protected KVM, or Linux before 5.13)",
            )
        }
    }

    /// The interrupt controller that guests get.
    ///
    /// # Errors
    /// When there is none, or KVM creates no VM to ask.
    pub fn gic(&self) -> Result<Gic, Error> {
        let vm = self.kvm.create_vm().map_err(call("create a VM"))?;
        gic::probe(&vm, 1, None)
    }

    /// Whether guests can have SVE.
    pub fn has_sve(&self) -> bool {
        self.has(KVM_CAP_ARM_SVE)
    }

    /// Whether guests can have pointer authentication: KVM gives both kinds or neither.
    pub fn has_pointer_authentication(&self) -> bool {
        self.has(KVM_CAP_ARM_PTRAUTH_ADDRESS) && self.has(KVM_CAP_ARM_PTRAUTH_GENERIC)
    }

    /// The most vCPUs a VM can have.
    pub fn max_cpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX)
    }

    /// The widest guest-physical address, in bits.
    pub fn ipa_bits(&self) -> u8 {
        match self.kvm.check_extension_int(Cap::ArmVmIPASize) {
            0 => DEFAULT_IPA_BITS,
            bits => u8::try_from(bits).unwrap_or(DEFAULT_IPA_BITS),
        }
    }
}

impl Hypervisor for Host {
    fn mte(&self) -> Result<(), &'static str> {
        Self::mte(self)
    }

    fn check_cpus(&self, asked: u32) -> Result<(), Error> {
        let max = self.max_cpus();
        if asked > max {
            return Err(Error::TooManyCpus { asked, max, limit: "this host's KVM" });
        }
        Ok(())
    }

    fn ipa_bits_for(&self, memory: Bytes) -> Result<u8, Error> {
        let limit = self.ipa_bits();
        let end = layout::ram(memory, limit)?.end();
        let needed = u64::BITS - (end.0 - 1).leading_zeros();
        Ok(u8::try_from(needed).unwrap_or(limit).max(MIN_IPA_BITS).min(limit))
    }

    fn create_vm(
        &self,
        ipa_bits: u8,
        ram: GuestRam,
        mte: bool,
    ) -> Result<Box<dyn hypervisor::Vm>, Error> {
        Ok(Box::new(Vm::new(self, ipa_bits, ram, mte)?))
    }
}
