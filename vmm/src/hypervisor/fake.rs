//! A hypervisor whose guests follow a script. What happens to it is recorded with what happens to its vCPUs.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::io;

use arch::gic::Gic;
use arch::irq::Spi;
use arch::regs::Mpidr;
use arch::units::Bytes;
use devices::ports::{IrqLine, LevelLine};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::state::{GicRegister, GicState};
use super::{CpuRequest, Error, Hypervisor, Vcpus, Vm};
use crate::memory::{GuestRam, SharedPage};
use crate::vcpu::Vcpu;
use crate::vcpu::fake::{Event, FakeVcpu, Guest, Step};

/// A hypervisor for one VM.
pub(crate) struct FakeHypervisor {
    pub(crate) guest: Guest,
    pub(crate) mte: Result<(), &'static str>,
    /// Whether [`Hypervisor::create_vm`] takes memory for a guest with MTE.
    pub(crate) tagged_memory: bool,
    /// Whether it enables MTE for a VM.
    pub(crate) enables_mte: bool,
    pub(crate) vcpus: RefCell<Vec<FakeVcpu>>,
}

impl FakeHypervisor {
    /// Its VM has a vCPU for each script.
    pub(crate) fn new(scripts: impl IntoIterator<Item = Vec<Step>>) -> Self {
        let guest = Guest::default();
        let vcpus = scripts.into_iter().enumerate();
        let vcpus = vcpus.map(|(index, script)| guest.vcpu(index, script)).collect();
        Self {
            guest,
            mte: Ok(()),
            tagged_memory: true,
            enables_mte: true,
            vcpus: RefCell::new(vcpus),
        }
    }

    /// Changes the vCPUs before they are given to a VM.
    pub(crate) fn with_vcpus(&self, change: impl FnMut(&mut FakeVcpu)) {
        self.vcpus.borrow_mut().iter_mut().for_each(change);
    }
}

impl Hypervisor for FakeHypervisor {
    fn mte(&self) -> Result<(), &'static str> {
        self.mte
    }

    fn check_cpus(&self, _: u32) -> Result<(), Error> {
        Ok(())
    }

    fn ipa_bits_for(&self, _: Bytes) -> Result<u8, Error> {
        Ok(40)
    }

    fn create_vm(&self, _: u8, ram: GuestRam, mte: bool) -> Result<Box<dyn Vm>, Error> {
        if mte && !self.enables_mte {
            return Err(Error::MteRefused { source: io::Error::from_raw_os_error(libc::EINVAL) });
        }
        if mte && !self.tagged_memory {
            return Err(Error::TaggedBacking {
                backing: ram.backing(),
                since: "6.13",
                source: io::Error::from_raw_os_error(libc::EINVAL),
            });
        }
        self.guest.note(Event::Note(if mte { "VM with MTE" } else { "VM" }));
        let vcpus = self.vcpus.take();
        Ok(Box::new(FakeVm { ram, guest: self.guest.clone(), vcpus, interrupts: 0 }))
    }
}

struct FakeVm {
    guest: Guest,
    ram: GuestRam,
    vcpus: Vec<FakeVcpu>,
    /// Of its interrupt controller.
    interrupts: u32,
}

impl Vm for FakeVm {
    fn create_vcpus(&mut self, wanted: &CpuRequest<'_>) -> Result<Vcpus, Error> {
        let count = wanted.count;
        self.interrupts = wanted.interrupts;
        assert_eq!(self.vcpus.len(), count as usize, "a script for each vCPU");
        self.guest.note(Event::Note("vCPUs"));
        let vcpus = std::mem::take(&mut self.vcpus);
        Ok(Vcpus {
            affinities: (0..count.into()).map(Mpidr::new).collect(),
            vcpus: vcpus.into_iter().map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu>).collect(),
            clidr: None,
            gic: Gic::V3 { cpus: count },
        })
    }

    fn save_gic(&self) -> Result<GicState, Error> {
        self.guest.note(Event::Note("GIC saved"));
        let register = GicRegister { group: 1, attribute: 2, value: 3 };
        Ok(GicState { version: 3, registers: vec![register] })
    }

    fn restore_gic(&self, state: &GicState) -> Result<(), Error> {
        self.guest.note(Event::Note("GIC restored"));
        match state.version {
            3 => Ok(()),
            saved => Err(Error::SavedGic { saved, here: 3 }),
        }
    }

    fn show(&mut self, at: GuestAddress, page: SharedPage) -> Result<(), Error> {
        self.guest.note(Event::Shown(at, page.first()));
        Ok(())
    }

    fn irq(&self, spi: Spi) -> Result<Box<dyn IrqLine>, Error> {
        assert!(spi.intid() < self.interrupts, "the controller has no {spi}");
        self.guest.note(Event::Note("interrupt"));
        Ok(Box::new(Line))
    }

    fn level_irq(&self, spi: Spi) -> Box<dyn LevelLine> {
        Box::new(FakeLevel(self.guest.clone(), spi))
    }

    fn doorbell(&self, _: GuestAddress, _: u32) -> Result<EventFd, Error> {
        Ok(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap())
    }

    fn counter_frequency(&self) -> u32 {
        1_000_000_000
    }

    fn log_writes(&self) -> Result<(), Error> {
        self.guest.note(Event::Note("writes logged"));
        Ok(())
    }

    /// Its vCPUs write nothing.
    fn collect_writes(&self) -> Result<(), Error> {
        self.guest.note(Event::Note("log collected"));
        Ok(())
    }

    fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.guest.note(Event::Note("VM dropped"));
    }
}

struct Line;

impl IrqLine for Line {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

struct FakeLevel(Guest, Spi);

impl LevelLine for FakeLevel {
    fn set(&self, high: bool) -> io::Result<()> {
        self.0.note(Event::Level(self.1, high));
        Ok(())
    }
}
