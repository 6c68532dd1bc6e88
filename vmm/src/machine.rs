//! The machine: the one file that knows every part, and puts them together in one order.

mod board;
mod slots;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arch::caches::CacheTopology;
use arch::fdt::{MmioNode, Seeds, Tree};
use arch::gic::Gic;
use arch::irq::Spi;
use arch::layout;
use arch::range::MemoryRange;
use arch::regs::Mpidr;
use arch::units::Bytes;
use devices::bus::{Bus, SharedDevice};
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

use crate::api::model;
use crate::backends::balloon;
use crate::backends::clock::{HostClock, RtcEvents};
use crate::backends::entropy::{self, HostEntropy};
use crate::backends::queues::Gate;
use crate::backends::reporting::{self, Setup};
use crate::console::{Output, Quiesce};
use crate::error::{is_denied, say};
use crate::exit_status::ExitStatus;
use crate::kvm::{self, KvmVcpu, Vm};
use crate::memory::{
    self, Footprint, LoadError, Loaded, Reclaimer, Reservations, Unreserved, footprint,
};
use crate::metrics::VcpuCounters;
use crate::spec::{BalloonSpec, Spec};
use crate::tag_storage::broker::Client;
use crate::tag_storage::{self, BorrowerLease, TagReservation};
use crate::vcpu::{self, Services, Vcpu, VcpuSet};
pub use board::{Board, Mte};
use slots::Slots;

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
    /// There is no tag storage for the VM.
    #[error(transparent)]
    TagStorage(#[from] tag_storage::ReservationError),
    /// It may not live beside the broker's tag storage.
    #[error(transparent)]
    BorrowerLease(#[from] tag_storage::BorrowerLeaseError),
    /// The devices' timers cannot be had.
    #[error("the host gives no timers for the guest's devices: look at ulimit -n")]
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
            Self::TagStorage(error) if is_denied(error) => ExitStatus::NoPermission,
            Self::BorrowerLease(error) if is_denied(error) => ExitStatus::NoPermission,
            Self::Load(error) => error.status(),
            Self::Kvm(_)
            | Self::Memory(_)
            | Self::Seeds(_)
            | Self::TagStorage(_)
            | Self::BorrowerLease(_)
            | Self::Timers(_)
            | Self::Vcpus(_) => ExitStatus::Unavailable,
            Self::NoSlot => ExitStatus::Config,
            Self::Fdt(_) | Self::WriteFdt(_) | Self::Bus(_) => ExitStatus::VmmFault,
        }
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
    footprint: footprint::Meter,
    counters: Arc<VcpuCounters>,
    quiesce: Quiesce,
    tags: Option<TagReservation>,
    tenancy: Option<BorrowerLease>,
    /// Open while the guest runs.
    gate: Gate,
    /// Somebody has asked for it.
    paused: bool,
    /// Nobody has, but the guest stands still, for this reason.
    held: Option<String>,
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
        let Board { vm, vcpus, gic, caches, loaded, tags, tenancy, .. } = board;
        let irq = |spi| vm.irq(spi).map(Box::new);
        let brake = console.brake();
        let serial = Serial::new(irq(layout::SERIAL_SPI)?, Box::new(console));
        let serial_counters = serial.counters();
        let serial = Arc::new(Mutex::new(serial));
        let gpio = Arc::new(Mutex::new(Gpio::new(irq(layout::GPIO_SPI)?)));
        let mut bus = Bus::new();
        attach(&mut bus, layout::SERIAL, serial.clone())?;
        let clock = HostClock::new().map_err(Error::Timers)?;
        let rtc = Rtc::new(Box::new(clock.clone()), Box::new(vm.level_irq(layout::RTC_SPI)));
        let rtc = Arc::new(Mutex::new(rtc));
        attach(&mut bus, layout::RTC, rtc.clone())?;
        attach(&mut bus, layout::GPIO, gpio.clone())?;
        let gate = Gate::default();
        let mut slots = Slots::new(&vm, &mut bus, &gate);
        let guest_page = loaded.guest_page;
        let reclaimer = || {
            let reservations = tags.as_ref().map(TagReservation::reservations);
            let reservations: Box<dyn Reservations> = reservations.unwrap_or(Box::new(Unreserved));
            Reclaimer::new(vm.ram().clone(), reservations)
        };
        let balloon = spec
            .balloon
            .map(|wanted| add_balloon(&mut slots, wanted, spec, reclaimer(), guest_page))
            .transpose()?;
        let rng_counters = spec.rng.then(|| add_rng(&mut slots)).transpose()?;
        let (virtio, mut queue_events) = slots.finish();
        queue_events.push(Box::new(RtcEvents::new(rtc, clock)));
        write_fdt(&vm, spec, &vcpus, caches.as_ref(), &gic, &loaded, &virtio)?;
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
            footprint: footprint::Meter::new(vm.ram()),
            vm,
            counters,
            quiesce,
            tags,
            tenancy,
            gate,
            paused: true,
            held: None,
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
        let measured = self.footprint.footprint()?;
        let Footprint { resident, huge, tagged } = &*measured;
        let mut footprint = model::Footprint {
            guest_bytes: ram.range().size.get(),
            resident_bytes: resident.get(),
            huge_bytes: huge.get(),
            tagged_bytes: tagged.as_ref().ok().map(|tagged| tagged.get()),
            tagged_unavailable: tagged.as_ref().err().map(|error| crate::error::chain(error)),
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

    /// The VM's tag storage, if any is reserved.
    pub fn tag_storage(&self) -> Option<&TagReservation> {
        self.tags.as_ref()
    }

    /// Where memory without tags may be beside tag storage, if there is a broker.
    pub fn tenancy(&self) -> Option<&BorrowerLease> {
        self.tenancy.as_ref()
    }

    /// The broker of tag storage, if there is one.
    pub fn broker(&self) -> Option<&Arc<Client>> {
        let own = self.tags.as_ref().and_then(TagReservation::broker);
        own.or_else(|| self.tenancy.as_ref().map(BorrowerLease::broker))
    }

    /// Asks the guest for the memory of so many chunks beyond what it has given, as others need tag storage.
    /// What the user asks of the balloon stays as it is.
    pub fn give_back(&self, chunks: u64) {
        // Nothing else frees tag storage as memory goes back.
        let frees = self.tags.as_ref().is_some_and(TagReservation::is_on_demand);
        if let Some(balloon) = self.balloon.as_ref().filter(|_| frees) {
            balloon.give_back(Bytes::new(chunks.saturating_mul(layout::CHUNK.get())));
        }
    }

    /// Nobody needs that any more.
    pub fn take_back(&self) {
        if let Some(balloon) = &self.balloon {
            balloon.take_back();
        }
    }

    /// Whether the vCPUs are out of the guest, or stand still in it.
    pub fn is_paused(&self) -> bool {
        self.paused || self.held.is_some()
    }

    /// Why the guest stands still without anybody having asked for that.
    pub fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }

    /// Stops the guest and its clock; pending MMIO is finished first. Its memory stands still until
    /// [`Machine::resume`], as no queue is served.
    ///
    /// # Errors
    /// When a vCPU does not leave the guest: then it goes on.
    pub fn pause(&mut self) -> Result<(), vcpu::Error> {
        self.stand_still()?;
        self.paused = true;
        Ok(())
    }

    /// Lets the guest run, its clock where it stopped. One that is held is let go later.
    ///
    /// # Errors
    /// When its clock cannot be set: then it stays paused.
    pub fn resume(&mut self) -> Result<(), vcpu::Error> {
        if self.paused && self.held.is_none() {
            self.go_on()?;
        }
        self.paused = false;
        Ok(())
    }

    /// Stops the guest for this reason until it is [let go](Self::let_go).
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub fn hold(&mut self, reason: &str) -> Result<(), vcpu::Error> {
        self.stand_still()?;
        self.held = Some(reason.to_owned());
        Ok(())
    }

    /// Lets a guest run that was held, unless it is paused besides.
    ///
    /// # Errors
    /// As for [`resume`](Self::resume).
    pub fn let_go(&mut self) -> Result<(), vcpu::Error> {
        if self.held.is_some() && !self.paused {
            self.go_on()?;
        }
        self.held = None;
        Ok(())
    }

    fn stand_still(&mut self) -> Result<(), vcpu::Error> {
        self.quiesce.set(true);
        let tags = self.tags.as_ref();
        let waits = || tags.is_some_and(|tags| tags.waiting() > 0);
        let paused = self.vcpus.pause_excusing(waits);
        if paused.is_ok() {
            self.gate.close();
        } else if !self.is_paused() {
            self.quiesce.set(false);
        }
        paused
    }

    fn go_on(&mut self) -> Result<(), vcpu::Error> {
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
        if let Some(tags) = &self.tags {
            metrics["tag_storage"] = tags.metrics();
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
        // Nor may one wait for tag storage: it would not leave the guest.
        self.vcpus.finish();
        if let Some(tags) = &mut self.tags {
            tags.stop();
        }
    }
}

fn attach(
    bus: &mut Bus,
    range: MemoryRange,
    device: SharedDevice,
) -> Result<(), devices::bus::Error> {
    bus.insert(range.base, range.size.get(), device)
}

fn add_balloon(
    slots: &mut Slots<'_>,
    wanted: BalloonSpec,
    spec: &Spec,
    reclaimer: Reclaimer,
    guest_page: Bytes,
) -> Result<balloon::Control, Error> {
    let ram = slots.ram();
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
    caches: Option<&CacheTopology>,
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
        caches,
        gic,
        serial: node(layout::SERIAL, layout::SERIAL_SPI),
        rtc: node(layout::RTC, layout::RTC_SPI),
        gpio: node(layout::GPIO, layout::GPIO_SPI),
        virtio,
        seeds: seeds().map_err(Error::Seeds)?,
    };
    let blob = tree.build()?;
    let room = loaded.fdt.size;
    let size = Bytes::new(blob.len() as u64);
    if size > room {
        return Err(arch::fdt::Error::Room { size, room }.into());
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
