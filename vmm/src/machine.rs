//! The machine: the one file that knows every part, and puts them together in one order.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arch::fdt::{MmioNode, Seeds, Tree};
use arch::gic::{Gic, Spi};
use arch::layout::{self, MemoryRange};
use arch::regs::Mpidr;
use arch::units::Bytes;
use devices::bus::{Bus, MmioDevice};
use devices::gpio::Gpio;
use devices::rtc::Rtc;
use devices::serial::{self, Serial};
use serde_json::{Value, json};
use thiserror::Error;
use vm_memory::Bytes as _;

use crate::config::{HugePages, MteMode};
use crate::console::{Output, Quiesce};
use crate::exit_status::ExitStatus;
use crate::kvm::{self, Host, KvmVcpu, Vm};
use crate::memory::{self, Attributes, GuestRam, LoadError, Loaded, tag_checks};
use crate::metrics::VcpuCounters;
use crate::spec::Spec;
use crate::vcpu::{self, Services, Vcpu, VcpuSet};

/// Room for the device tree beyond what each vCPU adds; the command line is its largest part.
const FDT_BASE: u64 = 8 << 10;
/// Room in the device tree for one vCPU's node.
const FDT_PER_CPU: u64 = 160;

// The device tree and the model must mean the same line.
const _: () = assert!(arch::fdt::POWER_KEY_LINE == devices::gpio::POWER_KEY_LINE as u32);

/// Why there is no machine.
#[derive(Debug, Error)]
pub enum Error {
    /// KVM cannot give it.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Its memory cannot be had.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Kernel or initrd cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device tree cannot be made.
    #[error("cannot describe the machine to the guest")]
    Fdt(#[from] arch::fdt::Error),
    /// The device tree cannot be put into guest memory.
    #[error("cannot write the device tree into guest memory")]
    WriteFdt(#[source] vm_memory::GuestMemoryError),
    /// The host has no randomness for the guest's seeds.
    #[error("the host gives no random bytes for the guest's seeds")]
    Seeds(#[source] rustix::io::Errno),
    /// Two devices claim one address.
    #[error("the memory map is contradictory; please report this")]
    Bus(#[from] devices::bus::Error),
    /// The vCPUs' threads cannot be started.
    #[error(transparent)]
    Vcpus(#[from] vcpu::Error),
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Kvm(kvm::Error::Open { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ExitStatus::NoPermission
            }
            Self::Load(error) => error.status(),
            Self::Kvm(_) | Self::Memory(_) | Self::Seeds(_) | Self::Vcpus(_) => {
                ExitStatus::Unavailable
            }
            Self::Fdt(_) | Self::WriteFdt(_) | Self::Bus(_) => ExitStatus::VmmFault,
        }
    }
}

/// A VM that exists in KVM with its kernel loaded, and that nothing outside this process shows yet:
/// killed now, it leaves nothing behind.
pub struct Board {
    // Field order is drop order: vCPUs, VM, and with it the memory.
    vcpus: Vec<KvmVcpu>,
    vm: Vm,
    gic: Gic,
    loaded: Loaded,
    mte: Mte,
}

/// Whether the guest has MTE, and why not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mte {
    /// It has.
    On,
    /// It was not to have it.
    Off,
    /// The host cannot give it.
    Unavailable,
}

impl Board {
    /// Makes a VM by its description: host, memory, kernel, vCPUs, interrupt controller.
    ///
    /// # Errors
    /// When the host cannot give what the description asks for, or a file cannot be loaded.
    pub fn new(spec: &Spec) -> Result<Self, Error> {
        tag_checks::disable();
        let host = Host::open()?;
        let mte = choose_mte(&host, spec.mte)?;
        host.check_cpus(spec.cpus)?;
        let ipa_bits = host.ipa_bits_for(spec.memory)?;
        let attributes = Attributes {
            tags: mte == Mte::On,
            huge_pages: spec.huge_pages == HugePages::Transparent,
        };
        let ram = GuestRam::new(spec.memory, attributes)?;
        let mut vm = Vm::new(&host, ipa_bits, ram, mte == Mte::On)?;
        let fdt_room = Bytes::new(FDT_BASE + FDT_PER_CPU * u64::from(spec.cpus));
        let loaded = memory::load(vm.ram(), &spec.kernel, spec.initrd.as_deref(), fdt_room)?;
        let (vcpus, gic) = vm.create_cpus(&host, spec.cpus)?;
        Ok(Self { vm, vcpus, gic, loaded, mte })
    }

    /// Whether the guest has MTE.
    pub fn mte(&self) -> Mte {
        self.mte
    }
}

fn choose_mte(host: &Host, mode: MteMode) -> Result<Mte, kvm::Error> {
    match (mode, host.mte()) {
        (MteMode::Off, _) => Ok(Mte::Off),
        (_, Ok(())) => Ok(Mte::On),
        (MteMode::Auto, Err(_)) => Ok(Mte::Unavailable),
        (MteMode::Require, Err(missing)) => Err(kvm::Error::MteMissing(missing)),
    }
}

/// A VM with its devices and vCPU threads. Dropped, it ends.
pub struct Machine {
    // Field order is drop order: the threads end before what they use.
    vcpus: VcpuSet,
    serial: Arc<Mutex<Serial>>,
    serial_counters: Arc<serial::Counters>,
    gpio: Arc<Mutex<Gpio>>,
    vm: Vm,
    counters: Arc<VcpuCounters>,
    quiesce: Quiesce,
    paused: bool,
}

impl Machine {
    /// Gives a board its devices, describes them to the guest, and starts the vCPUs' threads. They do
    /// not enter the guest before [`Machine::resume`].
    ///
    /// # Errors
    /// When the host runs out of something.
    pub fn new(
        board: Board,
        spec: &Spec,
        console: Output,
        quiesce: Quiesce,
    ) -> Result<Self, Error> {
        let Board { vm, vcpus, gic, loaded, .. } = board;
        let irq = |spi| vm.irq(spi).map(Box::new);
        let brake = console.brake();
        let serial = Serial::new(irq(layout::SERIAL_SPI)?, Box::new(console));
        let serial_counters = serial.counters();
        let serial = Arc::new(Mutex::new(serial));
        let gpio = Arc::new(Mutex::new(Gpio::new(irq(layout::GPIO_SPI)?)));
        let mut bus = Bus::new();
        attach(&mut bus, layout::SERIAL, serial.clone())?;
        attach(&mut bus, layout::RTC, Arc::new(Mutex::new(Rtc::new())))?;
        attach(&mut bus, layout::GPIO, gpio.clone())?;
        write_fdt(&vm, spec, &vcpus, &gic, &loaded)?;
        if let Some(first) = vcpus.first() {
            first.set_boot_state(loaded.entry, loaded.fdt.base)?;
        }
        let counters = Arc::new(VcpuCounters::default());
        let vcpus = vcpus.into_iter().map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu>).collect();
        let services = Services { bus, brake, counters: Arc::clone(&counters) };
        let vcpus = VcpuSet::spawn(vcpus, &Arc::new(services))?;
        Ok(Self { vcpus, serial, serial_counters, gpio, vm, counters, quiesce, paused: true })
    }

    /// The vCPUs, for the event that says one of them has ended the VM.
    pub fn vcpus(&self) -> &VcpuSet {
        &self.vcpus
    }

    /// The serial port, for its input.
    pub fn serial(&self) -> Arc<Mutex<Serial>> {
        Arc::clone(&self.serial)
    }

    /// Whether the vCPUs are out of the guest.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Stops the guest and its clock; pending MMIO is finished first.
    ///
    /// # Errors
    /// When a vCPU does not leave the guest: then it goes on.
    pub fn pause(&mut self) -> Result<(), vcpu::Error> {
        self.quiesce.set(true);
        let paused = self.vcpus.pause();
        if paused.is_err() && !self.paused {
            self.quiesce.set(false);
        }
        self.paused |= paused.is_ok();
        paused
    }

    /// Lets the guest run, its clock where it stopped.
    ///
    /// # Errors
    /// When its clock cannot be set: then it stays paused.
    pub fn resume(&mut self) -> Result<(), vcpu::Error> {
        if !self.paused {
            return Ok(());
        }
        self.quiesce.set(false);
        self.vcpus.resume()?;
        self.paused = false;
        Ok(())
    }

    /// Moves the power key; says whether the guest listens to it.
    pub fn set_power_key(&self, pressed: bool) -> bool {
        self.gpio.lock().unwrap_or_else(PoisonError::into_inner).set_power_key(pressed)
    }

    /// Counters, each with its unit at the end of its name.
    pub fn metrics(&self) -> Value {
        let serial = &self.serial_counters;
        json!({
            "vcpu": self.counters.to_json(),
            "serial": {
                "output_bytes": serial.sent.load(std::sync::atomic::Ordering::Relaxed),
                "dropped_bytes": serial.lost.load(std::sync::atomic::Ordering::Relaxed),
                "irq_failures_total": serial.irq_failures.load(std::sync::atomic::Ordering::Relaxed),
                "input_bytes": serial.received.load(std::sync::atomic::Ordering::Relaxed),
            },
            "memory": { "guest_bytes": self.vm.ram().range().size.get() },
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // No vCPU may wait for a console's reader while its thread is joined.
        self.quiesce.set(true);
    }
}

fn attach(
    bus: &mut Bus,
    range: MemoryRange,
    device: Arc<Mutex<dyn MmioDevice>>,
) -> Result<(), devices::bus::Error> {
    bus.insert(range.base, range.size.get(), device)
}

fn write_fdt(
    vm: &Vm,
    spec: &Spec,
    vcpus: &[KvmVcpu],
    gic: &Gic,
    loaded: &Loaded,
) -> Result<(), Error> {
    let node = |range: MemoryRange, spi: Spi| MmioNode { range, spi };
    let cpus = vcpus.iter().map(KvmVcpu::mpidr).collect::<Result<Vec<Mpidr>, _>>()?;
    let tree = Tree {
        command_line: &spec.command_line,
        memory: &[vm.ram().range()],
        initrd: loaded.initrd,
        cpus: &cpus,
        gic,
        serial: node(layout::SERIAL, layout::SERIAL_SPI),
        rtc: node(layout::RTC, layout::RTC_SPI),
        gpio: node(layout::GPIO, layout::GPIO_SPI),
        seeds: seeds().map_err(Error::Seeds)?,
    };
    let blob = tree.build()?;
    let room = loaded.fdt.size;
    if blob.len() as u64 > room.get() {
        return Err(arch::fdt::Error::TooLarge { size: Bytes::new(blob.len() as u64) }.into());
    }
    vm.ram().regions().write_slice(&blob, loaded.fdt.base).map_err(Error::WriteFdt)
}

fn seeds() -> Result<Seeds, rustix::io::Errno> {
    let mut bytes = [0; 72];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut seeds = Seeds { rng: [0; 64], kaslr: 0 };
    seeds.rng.copy_from_slice(&bytes[..64]);
    for byte in &bytes[64..] {
        seeds.kaslr = seeds.kaslr << 8 | u64::from(*byte);
    }
    Ok(seeds)
}
