//! A vCPU in KVM.
#![allow(unsafe_code)]

use std::io;

use arch::caches::Clidr;
use arch::irq::Ppi;
use arch::regs::{Mpidr, RegId, Syndrome};
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE,
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_device_attr, kvm_vcpu_events, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestAddress;

use super::host::CpuFeatures;
use super::kick::ImmediateExit;
use super::{Error, vcpu_call, vcpu_state};
use crate::hypervisor::state::{VcpuState, VcpuStateError};
use crate::vcpu::{Entry, Exit, Kick, Registers, Unhandled, Vcpu};

/// A vCPU.
pub(super) struct KvmVcpu {
    index: u32,
    fd: VcpuFd,
}

impl KvmVcpu {
    /// Creates a vCPU with all that the host's CPUs have: SVE and pointer authentication where present.
    /// All but the first wait for PSCI CPU_ON. With SVE, vectors have these lengths, or all that the host has.
    pub(super) fn new(
        vm: &VmFd,
        features: CpuFeatures,
        sve_lengths: Option<[u64; 8]>,
        index: u32,
    ) -> Result<Self, Error> {
        let fd = vm.create_vcpu(index.into()).map_err(vcpu_call("create the state", index))?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(vcpu_call("choose the model", index))?;
        let mut feature = |bit: u32| init.features[0] |= 1 << bit;
        feature(KVM_ARM_VCPU_PSCI_0_2);
        if index > 0 {
            feature(KVM_ARM_VCPU_POWER_OFF);
        }
        if features.pointer_authentication {
            feature(KVM_ARM_VCPU_PTRAUTH_ADDRESS);
            feature(KVM_ARM_VCPU_PTRAUTH_GENERIC);
        }
        if features.sve {
            feature(KVM_ARM_VCPU_SVE);
        }
        if features.pmu {
            feature(KVM_ARM_VCPU_PMU_V3);
        }
        fd.vcpu_init(&init).map_err(vcpu_call("initialise the registers", index))?;
        if features.sve {
            if let Some(lengths) = sve_lengths {
                let bytes: Vec<u8> = lengths.iter().flat_map(|word| word.to_le_bytes()).collect();
                fd.set_one_reg(RegId::SVE_VLS.get(), &bytes)
                    .map_err(|_| Error::SavedFeature { feature: "SVE with its vector lengths" })?;
            }
            let sve = i32::try_from(KVM_ARM_VCPU_SVE).unwrap_or(i32::MAX);
            fd.vcpu_finalize(&sve).map_err(vcpu_call("finalise SVE", index))?;
        }
        Ok(Self { index, fd })
    }

    /// Gives the PMU its interrupt, and starts it: after the interrupt controller, before the vCPU
    /// (Documentation/virt/kvm/devices/vcpu.rst, KVM_ARM_VCPU_PMU_V3_CTRL).
    pub(super) fn start_pmu(&self) -> Result<(), Error> {
        let intid = Ppi::PMU.intid();
        let set = |attribute: u32, addr: u64| {
            let attribute = kvm_device_attr {
                flags: 0,
                group: KVM_ARM_VCPU_PMU_V3_CTRL,
                attr: attribute.into(),
                addr,
            };
            self.fd.set_device_attr(&attribute).map_err(vcpu_call("start the PMU", self.index))
        };
        set(KVM_ARM_VCPU_PMU_V3_IRQ, std::ptr::from_ref(&intid) as u64)?;
        set(KVM_ARM_VCPU_PMU_V3_INIT, 0)
    }

    /// The vCPU's affinity, as KVM chose it.
    ///
    /// # Errors
    /// When KVM does not tell.
    pub(super) fn mpidr(&self) -> Result<Mpidr, Error> {
        self.get(RegId::MPIDR_EL1)
            .map(Mpidr::new)
            .map_err(vcpu_call("read the affinity", self.index))
    }

    /// The caches that the vCPU shows, if KVM gives them.
    pub(super) fn clidr(&self) -> Option<Clidr> {
        self.get(RegId::CLIDR_EL1).map(Clidr::new).ok()
    }

    fn get(&self, register: RegId) -> Result<u64, kvm_ioctls::Error> {
        let mut value = [0; 8];
        self.fd.get_one_reg(register.get(), &mut value)?;
        Ok(u64::from_le_bytes(value))
    }

    fn set(&self, register: RegId, value: u64) -> Result<(), kvm_ioctls::Error> {
        self.fd.set_one_reg(register.get(), &value.to_le_bytes()).map(drop)
    }
}

impl KvmVcpu {
    /// An access outside memory whose instruction KVM does not decode: pairs, vectors, atomics.
    fn undecodable(&mut self) -> Exit {
        // SAFETY: the exit that has just come says that this member of the union is the one in use.
        let access = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.arm_nisv };
        // A data abort from a lower level; KVM gives its ISS alone.
        let syndrome = Syndrome::new(DATA_ABORT | access.esr_iss);
        Exit::Undecoded(Unhandled {
            what: format!("an access that KVM cannot decode ({syndrome})"),
            address: Some(GuestAddress(access.fault_ipa)),
        })
    }
}

/// The exception class of a data abort from a lower exception level, in ESR_EL2.EC.
const DATA_ABORT: u64 = 0x24 << 26;

impl Vcpu for KvmVcpu {
    fn enter(&mut self, entry: Entry) -> io::Result<Exit> {
        if let Entry::MmioData(data) = entry {
            self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = data;
        }
        match self.fd.run() {
            Ok(VcpuExit::Unsupported(KVM_EXIT_ARM_NISV)) => Ok(self.undecodable()),
            Ok(exit) => Ok(translate(exit)),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                Ok(Exit::Interrupted)
            }
            // get_user_pages has no page (user_mem_abort in arch/arm64/kvm/mmu.c).
            Err(error) if matches!(error.errno(), libc::EFAULT | libc::EHWPOISON) => {
                let what = format!("a page of guest memory that the host cannot give ({error})");
                Ok(Exit::MemoryFault(Unhandled { what, address: None }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// `kvm_handle_mmio_return` neither finishes the access nor skips the instruction then
    /// (arch/arm64/kvm/mmio.c).
    fn inject_abort(&mut self) -> io::Result<()> {
        let mut events = kvm_vcpu_events::default();
        events.exception.ext_dabt_pending = 1;
        Ok(self.fd.set_vcpu_events(&events)?)
    }

    fn registers(&self) -> io::Result<Registers> {
        let mut registers = Registers {
            sp: self.get(RegId::SP_EL1)?,
            pc: self.get(RegId::PC)?,
            pstate: self.get(RegId::PSTATE)?,
            ..Registers::default()
        };
        for (register, value) in (0..).map_while(RegId::x).zip(&mut registers.x) {
            *value = self.get(register)?;
        }
        Ok(registers)
    }

    fn save(&self) -> io::Result<VcpuState> {
        vcpu_state::save(&self.fd)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), VcpuStateError> {
        vcpu_state::restore(&self.fd, self.index, state)
    }

    fn counter(&self) -> io::Result<u64> {
        Ok(self.get(RegId::TIMER_CNT)?)
    }

    fn set_counter(&mut self, value: u64) -> io::Result<()> {
        Ok(self.set(RegId::TIMER_CNT, value)?)
    }

    fn set_boot_state(&mut self, entry: GuestAddress, fdt: GuestAddress) -> io::Result<()> {
        self.set(RegId::PC, entry.0)?;
        let x0 = RegId::x(0).map_or(Ok(()), |x0| self.set(x0, fdt.0));
        Ok(x0?)
    }

    fn kicker(&self) -> io::Result<Box<dyn Kick>> {
        Ok(Box::new(ImmediateExit::new(&self.fd)?))
    }
}

fn translate(exit: VcpuExit<'_>) -> Exit {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            Exit::MmioRead { address: GuestAddress(address), length: data.len() }
        }
        VcpuExit::MmioWrite(address, data) => {
            let length = data.len().min(8);
            let mut bytes = [0; 8];
            bytes[..length].copy_from_slice(&data[..length]);
            Exit::MmioWrite { address: GuestAddress(address), data: bytes, length }
        }
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Exit::PowerOff,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, data) => {
            let warm = u64::from(KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2);
            if data.first().is_some_and(|flags| flags & warm != 0) {
                Exit::WarmReset
            } else {
                Exit::Reset
            }
        }
        VcpuExit::Intr => Exit::Interrupted,
        VcpuExit::MemoryFault { gpa, size, .. } => Exit::MemoryFault(Unhandled {
            what: format!("{size} bytes of guest memory that the host cannot give"),
            address: Some(GuestAddress(gpa)),
        }),
        other => Exit::Unhandled(Unhandled { what: format!("{other:?}"), address: None }),
    }
}
