//! A VM: its memory, interrupt controller and vCPUs, made in the order KVM wants.
#![allow(unsafe_code)]

use std::arch::asm;
use std::io;
use std::sync::{Arc, Weak};

use arch::gic::Gic;
use arch::irq::Spi;
use arch::regs::Mpidr;
use devices::ports::{IrqLine, LevelLine};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_CAP_ARM_MTE, KVM_CAP_ARM_NISV_TO_USER,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{DeviceFd, IoEventAddress, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::host::CpuFeatures;
use super::vcpu::KvmVcpu;
use super::{Error, Host, call, gic, gic_state};
use crate::hypervisor::state::GicState;
use crate::hypervisor::{self, CpuRequest, Vcpus};
use crate::memory::{Backing, GuestRam, SharedPage};
use crate::vcpu::Vcpu;

/// The most memory in one slot: KVM counts a slot's pages in 31 bits (KVM_MEM_MAX_NR_PAGES), which is
/// 8 TiB of 4 KiB pages; a power of two below keeps huge pages aligned.
const MAX_SLOT: u64 = 4 << 40;

/// The first slot that is not of guest memory, which takes up to 1024.
const FIRST_SHOWN: u32 = 4096;

/// The interrupt controller, and the affinities of its vCPUs by index.
pub(super) struct CreatedGic {
    pub(super) device: DeviceFd,
    pub(super) kind: Gic,
    /// How many interrupts it has, private ones included.
    pub(super) interrupts: u32,
    pub(super) cpus: Vec<Mpidr>,
}

/// A VM in KVM.
///
/// Field order is drop order: the VM goes before the memory that its slots refer to.
pub(super) struct Vm {
    // The device's file keeps the interrupt controller.
    gic: Option<CreatedGic>,
    fd: Arc<VmFd>,
    ram: GuestRam,
    /// What else the guest can read.
    shown: Vec<SharedPage>,
    features: CpuFeatures,
}

impl Vm {
    /// Creates a VM around its memory, with guest-physical addresses of so many bits.
    /// With `mte`, the capability is enabled here: it must be before the first vCPU.
    ///
    /// # Errors
    /// When KVM refuses.
    pub(super) fn new(host: &Host, ipa_bits: u8, ram: GuestRam, mte: bool) -> Result<Self, Error> {
        let created = host.kvm().create_vm_with_ipa_size(ipa_bits.into());
        let fd = created.map_err(call("create a VM"))?;
        if mte {
            let capability = kvm_enable_cap { cap: KVM_CAP_ARM_MTE, ..Default::default() };
            fd.enable_cap(&capability)
                .map_err(|errno| Error::MteRefused { source: errno.into() })?;
        }
        // Without it, an access that has no syndrome is an error without an address. An older KVM has none.
        let nisv = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        let _ = fd.enable_cap(&nisv);
        let fd = Arc::new(fd);
        let vm = Self { gic: None, fd, ram, shown: Vec::new(), features: host.cpu_features() };
        vm.set_memory(0).map_err(|errno| {
            let backing = vm.ram.backing();
            // Every page must be able to have tags: kvm_arch_prepare_memory_region.
            match mte && backing != Backing::Anonymous && errno.errno() == libc::EINVAL {
                true => {
                    let (since, source) = (backing.mte_since(), errno.into());
                    Error::TaggedBacking { backing, since, source }
                }
                false => call("register guest memory")(errno),
            }
        })?;
        Ok(vm)
    }

    /// The slots of guest memory: the number of each, where it begins in guest memory, and its size.
    fn slots(&self) -> impl Iterator<Item = (u32, u64, u64)> {
        let size = self.ram.range().size.get();
        let starts = (0..size).step_by(MAX_SLOT as usize);
        starts
            .enumerate()
            .map(move |(slot, start)| (slot as u32, start, (size - start).min(MAX_SLOT)))
    }

    /// Sets the slots of guest memory with these flags. KVM takes slots that are there with other flags.
    fn set_memory(&self, flags: u32) -> Result<(), kvm_ioctls::Error> {
        for (slot, start, memory_size) in self.slots() {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: self.ram.range().base.0 + start,
                memory_size,
                userspace_addr: self.ram.host_address() + start,
            };
            // SAFETY: the range lies in the mapping that `self.ram` keeps until after the VM is gone, and
            // slots do not overlap. One that is there already has the same range.
            unsafe { self.fd.set_user_memory_region(region) }?;
        }
        Ok(())
    }
}

impl hypervisor::Vm for Vm {
    /// KVM wants the vCPUs before the interrupt controller, whose size depends on their number.
    fn create_vcpus(&mut self, wanted: &CpuRequest<'_>) -> Result<Vcpus, Error> {
        let CpuRequest { count, pmu, interrupts, saved } = *wanted;
        let has = saved.map(|(_, gic)| gic.interrupts());
        if has.is_some_and(|has| has < interrupts) {
            return Err(Error::SavedGicRegisters);
        }
        let interrupts = has.unwrap_or(interrupts);
        if pmu && !self.features.pmu {
            return Err(Error::NoPmu);
        }
        let features = CpuFeatures { pmu, ..self.features };
        let features = match saved {
            Some((vcpu, _)) => features.of_saved(vcpu)?,
            None => features,
        };
        let kind = gic::probe(&self.fd, count, saved.map(|(_, gic)| gic.version))?;
        if count > kind.max_cpus() {
            let limit = "the guest's interrupt controller";
            return Err(Error::TooManyCpus { asked: count, max: kind.max_cpus(), limit });
        }
        let vcpus = (0..count)
            .map(|index| {
                let lengths = saved.and_then(|(vcpu, _)| vcpu.sve_lengths);
                KvmVcpu::new(&self.fd, features, lengths, index)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let device = gic::create(&self.fd, &kind, interrupts)?;
        if pmu {
            vcpus.iter().try_for_each(KvmVcpu::start_pmu)?;
        }
        let affinities = vcpus.iter().map(KvmVcpu::mpidr).collect::<Result<Vec<_>, _>>()?;
        self.gic = Some(CreatedGic { device, kind, interrupts, cpus: affinities.clone() });
        let clidr = vcpus.first().and_then(KvmVcpu::clidr);
        let vcpus = vcpus.into_iter().map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu>).collect();
        Ok(Vcpus { vcpus, affinities, clidr, gic: kind })
    }

    fn save_gic(&self) -> Result<GicState, Error> {
        let gic = self.gic.as_ref().ok_or(Error::NoGic)?;
        gic_state::save(gic)
    }

    fn restore_gic(&self, state: &GicState) -> Result<(), Error> {
        let gic = self.gic.as_ref().ok_or(Error::NoGic)?;
        gic_state::restore(gic, state)
    }

    fn show(&mut self, at: GuestAddress, page: SharedPage) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot: FIRST_SHOWN + self.shown.len() as u32,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: at.0,
            memory_size: SharedPage::size().get(),
            userspace_addr: page.host_address(),
        };
        // SAFETY: the page stays mapped until the VM is gone, as `self.shown` is dropped after it. The guest cannot
        // write to it, and nothing here refers to its contents.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(call("show a page to the guest"))?;
        self.shown.push(page);
        Ok(())
    }

    /// An event that KVM turns into the interrupt by itself (KVM_IRQFD).
    fn irq(&self, spi: Spi) -> Result<Box<dyn IrqLine>, Error> {
        let event = event("create the event of an interrupt")?;
        self.fd.register_irqfd(&event, spi.number()).map_err(call("connect an interrupt"))?;
        Ok(Box::new(Irq(event)))
    }

    fn level_irq(&self, spi: Spi) -> Box<dyn LevelLine> {
        Box::new(LevelIrq {
            vm: Arc::downgrade(&self.fd),
            irq: KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | spi.intid(),
        })
    }

    /// An event that KVM writes by itself (KVM_IOEVENTFD).
    fn doorbell(&self, address: GuestAddress, value: u32) -> Result<EventFd, Error> {
        let event = event("create the event of a device's queue")?;
        self.fd
            .register_ioevent(&event, &IoEventAddress::Mmio(address.0), value)
            .map_err(call("connect a device's queue"))?;
        Ok(event)
    }

    fn counter_frequency(&self) -> u32 {
        let frequency: u64;
        // SAFETY: the register can be read at EL0, as the kernel sets CNTKCTL_EL1.EL0VCTEN or emulates it; reading it
        // changes nothing.
        unsafe {
            asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags));
        }
        frequency as u32
    }

    fn log_writes(&self) -> Result<(), Error> {
        self.set_memory(KVM_MEM_LOG_DIRTY_PAGES).map_err(call("log writes to guest memory"))
    }

    fn collect_writes(&self) -> Result<(), Error> {
        let page = rustix::param::page_size() as u64;
        for (slot, start, size) in self.slots() {
            let log = self.fd.get_dirty_log(slot, size as usize);
            let log = log.map_err(call("read the log of writes to guest memory"))?;
            self.ram.add_changes((start / page) as usize, &log);
        }
        Ok(())
    }

    fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

fn event(what: &'static str) -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| Error::Call {
        what,
        vcpu: None,
        source,
    })
}

/// An edge-triggered interrupt line.
struct Irq(EventFd);

impl IrqLine for Irq {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A level-triggered interrupt line (KVM_IRQ_LINE). It does not keep the VM.
struct LevelIrq {
    vm: Weak<VmFd>,
    irq: u32,
}

impl LevelLine for LevelIrq {
    fn set(&self, high: bool) -> io::Result<()> {
        let vm = self.vm.upgrade().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(vm.set_irq_line(self.irq, high)?)
    }
}
