//! The devices of a machine: a list for what concerns all of them, and handles of those that are controlled.
//!
//! A new virtio device is one constructor here: [`balloon`] and [`entropy_source`] are examples.

mod attached;
mod builder;
mod held;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use arch::fdt::MmioNode;
use arch::layout;
use arch::units::Bytes;
use devices::bus::Bus;
use devices::gpio::Gpio;
use devices::ports::GuestRange;
use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::virtio::balloon::{Balloon, BalloonConfig};
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::virtio::vsock::Vsock;
use event_manager::MutEventSubscriber;
use serde_json::{Value, json};

use super::Error;
use crate::backends::balloon;
use crate::backends::block::{self, BlockEvents};
use crate::backends::clock::{HostClock, RtcEvents};
use crate::backends::entropy::{HostEntropy, LimitedQueue};
use crate::backends::gate::QueueGate;
use crate::backends::net::{self, NetEvents};
use crate::backends::rate_limiter::SharedLimiter;
use crate::backends::reporting::{self, ReportingConfig};
use crate::backends::vsock::{HostPeers, VsockEvents};
use crate::backends::worker::Worker;
use crate::console::Output;
use crate::error::say;
use crate::events::EventLog;
use crate::hypervisor::Vm;
use crate::memory::Reclaimer;
use crate::snapshot::DeviceStates;
use crate::spec::{BalloonSpec, DiskSpec, NetSpec, RateLimiterSpec, Spec, VsockSpec};
use crate::sys::thread::Role;
use crate::vcpu::Hold;
pub use attached::{Attached, StateError};
use builder::Builder;
use held::HeldReclaim;

/// The devices of a machine.
pub struct DeviceSet {
    attached: Vec<Box<dyn Attached>>,
    /// The serial port, for its input.
    pub(super) serial: Arc<Mutex<Serial>>,
    /// The GPIO controller, for the power key.
    pub(super) gpio: Arc<Mutex<Gpio>>,
    /// The balloon, for its target and statistics.
    pub(super) balloon: Option<balloon::Control>,
    /// The network interfaces, for their limits.
    pub(super) net: Vec<net::Control>,
    /// The disks, for their sizes and limits.
    pub(super) disks: Vec<block::Control>,
    /// What serves the queues and the alarm, until the event loop takes it.
    pub(super) events: Vec<Box<dyn MutEventSubscriber>>,
    /// The threads of devices that have one.
    _workers: Vec<Worker>,
}

/// What the rest of the machine needs to know of its devices once.
pub(super) struct Plugged {
    pub(super) bus: Bus,
    pub(super) nodes: Vec<MmioNode>,
}

impl DeviceSet {
    /// Makes the devices of a description. Their queues are served while `gate` is open.
    pub(super) fn new(
        vm: &dyn Vm,
        spec: &Spec,
        gate: &QueueGate,
        log: EventLog,
        console: Output,
        reclaimer: impl FnOnce() -> (Reclaimer, Hold),
        guest_page: Bytes,
    ) -> Result<(Self, Plugged), Error> {
        let mut builder = Builder::new(vm, gate, log);
        let serial = serial(&mut builder, console)?;
        clock(&mut builder)?;
        let gpio = Gpio::new(vm.irq(layout::GPIO_SPI)?);
        let gpio = builder.add("gpio", layout::GPIO, gpio, None)?;
        let balloon = spec
            .balloon
            .map(|wanted| balloon(&mut builder, wanted, spec, reclaimer(), guest_page))
            .transpose()?;
        let disks = spec.disks.iter().map(|disk| self::disk(&mut builder, disk));
        let disks = disks.collect::<Result<_, _>>()?;
        if let Some(limits) = spec.rng {
            entropy_source(&mut builder, limits)?;
        }
        if let Some(wanted) = &spec.vsock {
            vsock(&mut builder, wanted, spec.leave_sockets)?;
        }
        let net = spec.net.iter().map(|net| network_interface(&mut builder, net));
        let net = net.collect::<Result<_, _>>()?;
        let Builder { plugged, attached, events, workers, .. } = builder;
        Ok((
            Self { attached, serial, gpio, balloon, net, disks, events, _workers: workers },
            plugged,
        ))
    }

    /// Every device.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Attached> {
        self.attached.iter().map(|device| &**device)
    }

    /// Has all devices start no further work; whether none is in flight.
    pub fn quiesce(&self) -> bool {
        // Each of them is asked, whatever the others say.
        self.iter().filter(|device| !device.quiesce()).count() == 0
    }

    /// The state of every device by its name. The guest is paused and the devices are quiesced.
    ///
    /// # Errors
    /// When a state has no form that can be saved.
    pub fn save(&self) -> Result<DeviceStates, StateError> {
        self.iter().map(|device| Ok((device.name().to_owned(), device.save()?))).collect()
    }

    /// Takes the states of all devices over, before the guest runs.
    ///
    /// # Errors
    /// When one is missing, or is not of such a device.
    pub fn restore(&self, states: &DeviceStates) -> Result<(), StateError> {
        for device in self.iter() {
            let missing = || StateError::Missing { device: device.name().into() };
            device.restore(states.get(device.name()).ok_or_else(missing)?)?;
        }
        if let Some(balloon) = &self.balloon {
            balloon.restored();
        }
        Ok(())
    }

    /// The counters of every device that has some, by its name.
    pub(super) fn metrics(&self) -> impl Iterator<Item = (&str, Value)> {
        self.iter().filter_map(|device| Some((device.name(), device.metrics()?)))
    }
}

fn serial(builder: &mut Builder<'_>, console: Output) -> Result<Arc<Mutex<Serial>>, Error> {
    let serial = Serial::new(builder.vm().irq(layout::SERIAL_SPI)?, Box::new(console));
    let counters = serial.counters();
    let metrics = move || {
        json!({
            "output_bytes": counters.sent.load(Ordering::Relaxed),
            "dropped_bytes": counters.lost.load(Ordering::Relaxed),
            "irq_failures_total": counters.irq_failures.load(Ordering::Relaxed),
            "input_bytes": counters.received.load(Ordering::Relaxed),
        })
    };
    builder.add("serial", layout::SERIAL, serial, Some(Box::new(metrics)))
}

fn clock(builder: &mut Builder<'_>) -> Result<(), Error> {
    let clock = HostClock::new().map_err(|source| Error::Timers { device: "clock", source })?;
    let irq = builder.vm().level_irq(layout::RTC_SPI);
    let rtc = Rtc::new(Box::new(clock.clone()), irq);
    let rtc = builder.add("rtc", layout::RTC, rtc, None)?;
    builder.events.push(Box::new(RtcEvents::new(rtc, clock)));
    Ok(())
}

fn balloon(
    builder: &mut Builder<'_>,
    wanted: BalloonSpec,
    spec: &Spec,
    (reclaimer, hold): (Reclaimer, Hold),
    guest_page: Bytes,
) -> Result<balloon::Control, Error> {
    let ram = builder.vm().ram();
    let reporting_config = ReportingConfig {
        wanted: wanted.reporting,
        locked: ram.is_locked(),
        memory: spec.memory,
        guest_page,
        order: reporting::in_effect(&spec.command_line, guest_page),
        granularity: ram.backing().page_size(),
    };
    // That it is off is known to the user who switched it off; that memory is locked may not be.
    if let Some(why) = reporting::forecast(&reporting_config).filter(|_| reporting_config.wanted) {
        say(&format!("page reporting will give nothing back: {why}"));
    }
    let config = BalloonConfig {
        reporting: reporting_config.offered(),
        deflate_on_oom: wanted.deflate_on_oom,
        target: wanted.target.get(),
    };
    let range = ram.range();
    let range = GuestRange { start: range.base, length: range.size.get() };
    let (discards, mender) = (reclaimer.counters(), reclaimer.mender(ram.clone()));
    let reclaimer = HeldReclaim::new(reclaimer, spec.memory, hold);
    let device = Balloon::new(config, Box::new(reclaimer), range);
    let transport = builder.plug("balloon", device)?;
    let gate = builder.gate().clone();
    let control = balloon::Control::new(
        wanted,
        reporting_config,
        Arc::clone(&transport),
        (discards, mender),
        gate,
        builder.log().clone(),
    )
    .map_err(|source| Error::Timers { device: "balloon", source })?;
    let counted = control.clone();
    builder.attach("balloon", transport, Some(Box::new(move || counted.metrics())));
    Ok(control)
}

fn disk(builder: &mut Builder<'_>, spec: &DiskSpec) -> Result<block::Control, Error> {
    let opened = block::Opened::new(spec)?;
    let (transport, mut queues) = builder.place(&format!("disk {}", spec.id), opened.device())?;
    let control = opened.control(&mut queues);
    let events = BlockEvents::new(&control, queues, builder.vm().ram().clone());
    builder.attach(&format!("block_{}", spec.id), transport, Some(control.reader()));
    builder.work(Role::Disk, &format!("disk-{}", spec.id), Box::new(events))?;
    Ok(control)
}

fn entropy_source(builder: &mut Builder<'_>, limits: RateLimiterSpec) -> Result<(), Error> {
    let limiter = SharedLimiter::new(limits)
        .map_err(|source| Error::Timers { device: "entropy source", source })?;
    let device = Rng::new(Box::new(HostEntropy)).with_limits(Box::new(limiter.clone()));
    let counters = device.counters();
    let (transport, queues) = builder.place("entropy source", device)?;
    builder.events.push(Box::new(LimitedQueue::new(queues, limiter.clone())));
    let metrics = move || {
        json!({
            "output_bytes": counters.bytes.load(Ordering::Relaxed),
            "failures_total": counters.failures.load(Ordering::Relaxed),
            "throttled_total": limiter.throttled(),
        })
    };
    builder.attach("entropy", transport, Some(Box::new(metrics)));
    Ok(())
}

fn vsock(builder: &mut Builder<'_>, wanted: &VsockSpec, leave_socket: bool) -> Result<(), Error> {
    let mut peers = HostPeers::listen(&wanted.path, builder.gate().clone())?;
    if leave_socket {
        peers.leave_socket();
    }
    let device = Vsock::new(wanted.cid, peers);
    let counters = device.counters();
    let (transport, queues) = builder.place("socket device", device)?;
    let events = VsockEvents::new(&transport, queues)
        .map_err(|source| Error::Timers { device: "socket device", source })?;
    builder.work(Role::Vsock, "vsock", Box::new(events))?;
    let metrics = move || {
        json!({
            "connections": counters.connections.load(Ordering::Relaxed),
            "from_host_total": counters.from_host.load(Ordering::Relaxed),
            "from_guest_total": counters.from_guest.load(Ordering::Relaxed),
            "refused_total": counters.refused.load(Ordering::Relaxed),
            "resets_total": counters.resets.load(Ordering::Relaxed),
            "dropped_packets_total": counters.dropped.load(Ordering::Relaxed),
            "input_bytes": counters.to_guest.load(Ordering::Relaxed),
            "output_bytes": counters.to_host.load(Ordering::Relaxed),
        })
    };
    builder.attach("vsock", transport, Some(Box::new(metrics)));
    Ok(())
}

fn network_interface(builder: &mut Builder<'_>, spec: &NetSpec) -> Result<net::Control, Error> {
    let port = net::Port::open(spec);
    let port = port.map_err(|source| Error::Net { id: spec.id.clone(), source })?;
    let called = format!("network interface {}", spec.id);
    let (transport, queues) = builder.place(&called, Net::new(port, spec.mac, spec.mtu))?;
    let events = NetEvents::new(queues)
        .map_err(|source| Error::Timers { device: "network interface", source })?;
    builder.work(Role::Net, &format!("net-{}", spec.id), Box::new(events))?;
    let control = net::Control::new(spec, &transport);
    builder.attach(&format!("net_{}", spec.id), transport, Some(control.reader()));
    Ok(control)
}

#[cfg(test)]
mod tests;
