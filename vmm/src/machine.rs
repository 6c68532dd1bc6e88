//! The machine: the one file that knows every part, and puts them together in one order.

mod slots;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arch::fdt::{MmioNode, Seeds, Tree};
use arch::gic::{Gic, Spi};
use arch::layout::{self, MemoryRange};
use arch::regs::Mpidr;
use arch::units::Bytes;
use devices::bus::{Bus, MmioDevice};
use devices::gpio::Gpio;
use devices::ports::GuestRange;
use devices::rtc::Rtc;
use devices::serial::{self, Serial};
use devices::virtio::balloon::{Balloon, BalloonConfig};
use devices::virtio::rng::{self, Rng};
use event_manager::MutEventSubscriber;
use serde_json::{Value, json};
use thiserror::Error;
use vm_memory::Bytes as _;

use crate::balloon;
use crate::config::{HugePages, MemoryBacking, MteMode};
use crate::console::{Output, Quiesce};
use crate::control::model;
use crate::entropy::{self, HostEntropy};
use crate::error::say;
use crate::exit_status::ExitStatus;
use crate::kvm::{self, Host, KvmVcpu, Vm};
use crate::memory::{
    self, Attributes, Backing, Footprint, GuestRam, LoadError, Loaded, Reclaimer, Unreserved,
    footprint, tag_checks,
};
use crate::metrics::VcpuCounters;
use crate::reporting::{self, Setup};
use crate::spec::{BalloonSpec, Spec};
use crate::vcpu::{self, Services, Vcpu, VcpuSet};
use crate::virtio::Gate;
use slots::Slots;

/// Room for the device tree beyond what each vCPU adds; the command line is its largest part.
const FDT_BASE: u64 = 8 << 10;
/// Room in the device tree for one vCPU's node.
const FDT_PER_CPU: u64 = 160;
/// The pages of hugetlbfs: as large as a chunk, whatever the host's own.
const HUGE_PAGE: Bytes = layout::CHUNK;

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
    /// There are more virtio devices than places for them.
    #[error("there are more than {} virtio devices: leave some out", layout::MAX_VIRTIO_DEVICES)]
    NoSlot,
    /// The balloon's timers cannot be had.
    #[error("the host gives no timers for the balloon: look at ulimit -n")]
    Timers(#[source] io::Error),
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
            Self::Kvm(_) | Self::Memory(_) | Self::Seeds(_) | Self::Timers(_) | Self::Vcpus(_) => {
                ExitStatus::Unavailable
            }
            Self::NoSlot => ExitStatus::Config,
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
            backing: match spec.backing {
                MemoryBacking::Anonymous => Backing::Anonymous,
                MemoryBacking::Memfd => Backing::Memfd,
                MemoryBacking::Hugetlbfs => Backing::Hugetlbfs { page: HUGE_PAGE },
            },
        };
        let ram = GuestRam::new(spec.memory, attributes)?;
        let mut vm = Vm::new(&host, ipa_bits, ram, mte == Mte::On)?;
        let fdt_room = Bytes::new(FDT_BASE + FDT_PER_CPU * u64::from(spec.cpus));
        let loaded = memory::load(vm.ram(), &spec.kernel, spec.initrd.as_deref(), fdt_room)?;
        if spec.lock_memory {
            vm.ram().lock()?;
        }
        let (vcpus, gic) = vm.create_cpus(&host, spec.cpus)?;
        Ok(Self { vm, vcpus, gic, loaded, mte })
    }

    /// The description's command line, with the order in which the guest reports free memory if its
    /// kernel's own does not suit it.
    pub fn command_line(&self, spec: &Spec) -> String {
        let offered = spec.balloon.is_some_and(|balloon| balloon.reporting) && !spec.lock_memory;
        if !offered {
            return spec.command_line.clone();
        }
        let page = self.vm.ram().backing().page_size();
        let (line, note) =
            reporting::prepare(&spec.command_line, spec.memory, self.loaded.guest_page, page);
        if let Some(note) = note {
            say(&note);
        }
        line
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
    balloon: Option<balloon::Control>,
    rng_counters: Option<Arc<rng::Counters>>,
    /// Until the event loop takes them.
    queue_events: Vec<Box<dyn MutEventSubscriber>>,
    vm: Vm,
    counters: Arc<VcpuCounters>,
    quiesce: Quiesce,
    /// Open while the guest runs.
    gate: Gate,
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
        let gate = Gate::default();
        let mut slots = Slots::new(&vm, &mut bus, &gate);
        let balloon = spec
            .balloon
            .map(|balloon| add_balloon(&mut slots, balloon, spec, vm.ram(), loaded.guest_page))
            .transpose()?;
        let rng_counters = spec.rng.then(|| add_rng(&mut slots)).transpose()?;
        let (virtio, queue_events) = slots.finish();
        write_fdt(&vm, spec, &vcpus, &gic, &loaded, &virtio)?;
        if let Some(first) = vcpus.first() {
            first.set_boot_state(loaded.entry, loaded.fdt.base)?;
        }
        let counters = Arc::new(VcpuCounters::default());
        let vcpus = vcpus.into_iter().map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu>).collect();
        let services = Services { bus, brake, counters: Arc::clone(&counters) };
        let vcpus = VcpuSet::spawn(vcpus, &Arc::new(services))?;
        Ok(Self {
            vcpus,
            serial,
            serial_counters,
            gpio,
            balloon,
            rng_counters,
            queue_events,
            vm,
            counters,
            quiesce,
            gate,
        })
    }

    /// What serves the queues of the virtio devices, for the event loop. They come once.
    pub fn take_queue_events(&mut self) -> Vec<Box<dyn MutEventSubscriber>> {
        std::mem::take(&mut self.queue_events)
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&balloon::Control> {
        self.balloon.as_ref()
    }

    /// How much of the host the guest takes now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn footprint(&self) -> Result<model::Footprint, footprint::Error> {
        let ram = self.vm.ram();
        let Footprint { resident, huge, tagged } = Footprint::of(ram)?;
        let mut footprint = model::Footprint {
            guest_bytes: ram.range().size.get(),
            resident_bytes: resident.get(),
            huge_bytes: huge.get(),
            tagged_bytes: tagged.as_ref().ok().map(|tagged| tagged.get()),
            tagged_unavailable: tagged.err().map(|error| crate::error::chain(&error)),
            ..model::Footprint::default()
        };
        if let Some(balloon) = &self.balloon {
            balloon.count_into(&mut footprint);
        }
        Ok(footprint)
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
        !self.gate.is_open()
    }

    /// Stops the guest and its clock; pending MMIO is finished first. Its memory stands still until
    /// [`Machine::resume`], as no queue is served.
    ///
    /// # Errors
    /// When a vCPU does not leave the guest: then it goes on.
    pub fn pause(&mut self) -> Result<(), vcpu::Error> {
        self.quiesce.set(true);
        let paused = self.vcpus.pause();
        if paused.is_ok() {
            self.gate.close();
        } else if !self.is_paused() {
            self.quiesce.set(false);
        }
        paused
    }

    /// Lets the guest run, its clock where it stopped.
    ///
    /// # Errors
    /// When its clock cannot be set: then it stays paused.
    pub fn resume(&mut self) -> Result<(), vcpu::Error> {
        if !self.is_paused() {
            return Ok(());
        }
        self.quiesce.set(false);
        self.vcpus.resume()?;
        self.gate.open();
        Ok(())
    }

    /// Moves the power key; says whether the guest listens to it.
    pub fn set_power_key(&self, pressed: bool) -> bool {
        self.gpio.lock().unwrap_or_else(PoisonError::into_inner).set_power_key(pressed)
    }

    /// Counters, each with its unit at the end of its name.
    pub fn metrics(&self) -> Value {
        let serial = &self.serial_counters;
        let mut metrics = json!({
            "vcpu": self.counters.to_json(),
            "serial": {
                "output_bytes": serial.sent.load(Ordering::Relaxed),
                "dropped_bytes": serial.lost.load(Ordering::Relaxed),
                "irq_failures_total": serial.irq_failures.load(Ordering::Relaxed),
                "input_bytes": serial.received.load(Ordering::Relaxed),
            },
            "memory": { "guest_bytes": self.vm.ram().range().size.get() },
        });
        if let Some(balloon) = &self.balloon {
            metrics["balloon"] = balloon.metrics();
        }
        if let Some(rng) = &self.rng_counters {
            metrics["entropy"] = json!({
                "output_bytes": rng.bytes.load(Ordering::Relaxed),
                "failures_total": rng.failures.load(Ordering::Relaxed),
            });
        }
        metrics
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

fn add_balloon(
    slots: &mut Slots<'_>,
    wanted: BalloonSpec,
    spec: &Spec,
    ram: &GuestRam,
    guest_page: Bytes,
) -> Result<balloon::Control, Error> {
    let setup = Setup {
        wanted: wanted.reporting,
        locked: ram.is_locked(),
        memory: spec.memory,
        guest_page,
        order: reporting::in_effect(&spec.command_line, guest_page),
        granularity: ram.backing().page_size(),
    };
    // That it is off is no news to whoever switched it off; that memory is locked may be.
    if let Some(why) = reporting::forecast(&setup).filter(|_| setup.wanted) {
        say(&format!("page reporting will give nothing back: {why}"));
    }
    let config = BalloonConfig {
        reporting: setup.offered(),
        deflate_on_oom: wanted.deflate_on_oom,
        target: wanted.target.get(),
    };
    let range = ram.range();
    let range = GuestRange { start: range.base, length: range.size.get() };
    let reclaimer = Reclaimer::new(ram.clone(), Box::new(Unreserved));
    let discards = reclaimer.counters();
    let device = Balloon::new(config, Box::new(reclaimer), range);
    let transport = slots.add("balloon", device)?;
    balloon::Control::new(wanted, setup, transport, discards, slots.gate().clone())
        .map_err(Error::Timers)
}

fn add_rng(slots: &mut Slots<'_>) -> Result<Arc<rng::Counters>, Error> {
    let device = Rng::new(Box::new(HostEntropy));
    let counters = device.counters();
    slots.add("entropy source", device)?;
    Ok(counters)
}

fn write_fdt(
    vm: &Vm,
    spec: &Spec,
    vcpus: &[KvmVcpu],
    gic: &Gic,
    loaded: &Loaded,
    virtio: &[MmioNode],
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
        virtio,
        seeds: seeds().map_err(Error::Seeds)?,
    };
    let blob = tree.build()?;
    let room = loaded.fdt.size;
    if blob.len() as u64 > room.get() {
        return Err(arch::fdt::Error::TooLarge { size: Bytes::new(blob.len() as u64) }.into());
    }
    vm.ram().write_slice(&blob, loaded.fdt.base).map_err(Error::WriteFdt)
}

fn seeds() -> Result<Seeds, rustix::io::Errno> {
    let mut seeds = Seeds { rng: [0; 64], kaslr: 0 };
    entropy::fill(&mut seeds.rng)?;
    let mut kaslr = [0; 8];
    entropy::fill(&mut kaslr)?;
    seeds.kaslr = u64::from_ne_bytes(kaslr);
    Ok(seeds)
}
