//! The balloon from the host's side: what the control socket asks of it, its timers, what there is to
//! say about it.

mod auto;
mod change;
mod status;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use arch::units::Bytes;
use devices::virtio::Features;
use devices::virtio::balloon::{self, Balloon, Role};
use devices::virtio::mmio::Transport;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde_json::{Value, json};

use self::auto::{Auto, Look};
use super::gate::QueueGate;
use super::queues::Shared;
use super::reporting::{self, Diagnosis, DriverState, ReportingConfig, Running};
use crate::error::say;
use crate::events::EventLog;
use crate::memory::{GuestRam, Mender, reclaim};
use crate::spec::{BalloonSpec, default_balloon_floor};
use crate::sys::timer::Timer;

pub use auto::{READ as READ_BY_AUTO, Reason as AutoReason, State as AutoState};
pub use change::{Change, ChangeError, Limits, Request};
pub use status::{AutoStatus, GuestReport, Status, Totals};

/// The unit in which a balloon counts.
const PAGE: Bytes = Bytes::kib(4);

/// How long a guest has for booting before the VMM reports that it gives no memory back: a distribution
/// loads its drivers within seconds, under emulation within a few more.
const SETTLED: Duration = Duration::from_secs(30);

/// How long what others need is asked of the guest, unless the request is cancelled or renewed: the VM
/// that asked may have ended.
const NEEDED: Duration = Duration::from_secs(30);

/// How long it is asked for after the request was cancelled. A VM that lacks tag storage takes it little by
/// little and lacks it again at once; a guest that got its memory back in between would give the same
/// memory the next time, whose tag storage is free already.
const LINGER: Duration = Duration::from_secs(5);

/// The least that is asked of the guest for others. It gives single pages, and only whole chunks help:
/// Linux takes them from one large free block after the other.
const LEAST: Bytes = Bytes::mib(32);

/// A VM's balloon, controlled. Clones are the same balloon.
#[derive(Clone)]
pub struct Control(Rc<Inner>);

struct Inner {
    transport: Shared<Balloon>,
    counters: Arc<balloon::Counters>,
    discards: Arc<reclaim::Counters>,
    mender: RefCell<Option<Mender>>,
    config: ReportingConfig,
    gate: QueueGate,
    deflate_on_oom: bool,
    /// Seconds between two requests for statistics; 0 for none.
    stats_interval_s: Cell<u16>,
    /// What the user asks the guest to give up, or the VMM chooses.
    target: Cell<Bytes>,
    auto: RefCell<Auto>,
    /// What it is to give up besides, as others need it.
    needed: Cell<Bytes>,
    /// They need it no more, and it is asked for a little longer.
    lingers: Cell<bool>,
    statistics_timer: Timer,
    settled_timer: Timer,
    needed_timer: Timer,
}

impl Control {
    /// Controls this balloon, which was made as `spec` says for a guest with this reporting `config`. The host's answers
    /// to its discards are counted, and what falls into small pages then is mended. While `gate` is closed, the guest is
    /// asked for nothing.
    ///
    /// # Errors
    /// When the host gives no timers.
    pub fn new(
        spec: BalloonSpec,
        config: ReportingConfig,
        transport: Shared<Balloon>,
        (discards, mender): (Arc<reclaim::Counters>, Option<Mender>),
        gate: QueueGate,
        log: EventLog,
    ) -> io::Result<Self> {
        let counters = lock(&transport).device().counters();
        let floor = spec.floor.unwrap_or(default_balloon_floor(config.memory));
        let control = Self(Rc::new(Inner {
            transport,
            counters,
            discards,
            mender: RefCell::new(mender),
            config,
            gate,
            deflate_on_oom: spec.deflate_on_oom,
            stats_interval_s: Cell::new(0),
            target: Cell::new(spec.target),
            auto: RefCell::new(Auto::new(config.memory, floor, log)?),
            needed: Cell::new(Bytes::ZERO),
            lingers: Cell::new(false),
            statistics_timer: Timer::new()?,
            settled_timer: Timer::new()?,
            needed_timer: Timer::new()?,
        }));
        control.set_stats_interval(spec.stats_interval_s)?;
        if spec.auto {
            control.choose()?;
            control.aim();
        }
        control.0.settled_timer.once(SETTLED)?;
        Ok(control)
    }

    fn transport(&self) -> MutexGuard<'_, Transport<Balloon, GuestRam>> {
        lock(&self.0.transport)
    }

    /// What has become of it.
    pub fn status(&self) -> Status {
        let transport = self.transport();
        let device = transport.device();
        Status {
            target: self.0.target.get(),
            needed: self.needed(),
            actual: Bytes::new(device.actual()),
            deflate_on_oom: self.0.deflate_on_oom,
            stats_interval_s: self.0.stats_interval_s.get(),
            reporting: self.0.config.offered() && device.reporting(),
            driver: driver_state(&transport),
            diagnosis: diagnosis(&self.0.config, &transport),
            auto: {
                let auto = self.0.auto.borrow();
                AutoStatus { floor: auto.floor(), choice: auto.choice() }
            },
        }
    }

    /// Asks the guest for another amount of memory, switches reporting, or has the VMM choose. Returns without waiting
    /// for the guest.
    ///
    /// # Errors
    /// When this VM cannot do it: see [`Change::new`]. Nothing is changed then.
    pub fn update(&self, request: &Request) -> Result<(), ChangeError> {
        let config = &self.0.config;
        let limits =
            Limits { memory: config.memory, reporting: config.offered(), auto: !config.is_fixed() };
        let change = Change::new(request, &limits)?;
        let mut transport = self.transport();
        if let Some(on) = change.reporting {
            transport.device_mut().set_reporting(on);
        }
        drop(transport);
        if let Some(floor) = change.floor {
            self.0.auto.borrow_mut().set_floor(floor);
        }
        if change.auto == Some(false) {
            self.0.auto.borrow_mut().stop();
        }
        if let Some(target) = change.target {
            self.0.target.set(target);
        }
        if change.auto == Some(true) {
            // It cannot fail with such a time; if it does the target stays.
            let _ = self.choose();
        }
        self.aim();
        Ok(())
    }

    /// Has the VMM choose the target from now on, beginning from that which is. The guest is to be asked for it.
    fn choose(&self) -> io::Result<()> {
        let target = self.0.auto.borrow_mut().start(self.0.target.get())?;
        self.0.target.set(target);
        Ok(())
    }

    /// Asks the guest, whose balloon has been restored, for what it is asked for here: what others needed of it when it was
    /// saved, they have asked for on another host, or at another time.
    pub(crate) fn restored(&self) {
        self.aim();
    }

    /// Has the VMM choose anew.
    fn look(&self) {
        let look = {
            let transport = self.transport();
            let device = transport.device();
            Look {
                has_driver: matches!(driver_state(&transport), DriverState::Active),
                actual: Bytes::new(device.actual()),
                needed: self.needed(),
                statistics: device.statistics().copied(),
                actual_then: Bytes::new(device.actual_at_statistics()),
                answers: self.0.counters.statistics.load(Ordering::Relaxed),
            }
        };
        let Some(decision) = self.0.auto.borrow_mut().look(&look) else { return };
        if self.0.target.replace(decision.target) != decision.target {
            self.aim();
        }
        if decision.ask {
            self.ask();
        }
    }

    /// Asks the guest for this much more than it has given so far, for others. A quarter of its memory stays
    /// its own, and its floor where the VMM chooses the target.
    pub fn request_reclaim(&self, size: Bytes) {
        let actual = Bytes::new(self.transport().device().actual());
        let given = actual.get().saturating_sub(self.0.target.get().get());
        let needed = given.saturating_add(size.max(LEAST).get());
        self.0.needed.set(self.0.needed.get().max(Bytes::new(needed)));
        self.aim();
        self.0.lingers.set(false);
        self.wind(NEEDED);
    }

    /// Cancels the request. The guest has the memory back [a while](LINGER) later, unless it is asked again.
    pub fn cancel_reclaim(&self) {
        if !self.0.needed.get().is_zero() && !self.0.lingers.replace(true) {
            self.wind(LINGER);
        }
    }

    /// What the guest is asked for beyond the target.
    fn needed(&self) -> Bytes {
        let memory = self.0.config.memory.get();
        let auto = self.0.auto.borrow();
        let floor = auto.choice().map_or(0, |_| auto.floor().get());
        let most = (memory - (memory / 4).max(floor)).saturating_sub(self.0.target.get().get());
        self.0.needed.get().min(Bytes::new(most)).align_down(PAGE)
    }

    /// Tells the driver what the guest is asked for, if that has changed.
    fn aim(&self) {
        let target = self.0.target.get().get().saturating_add(self.needed().get());
        let mut transport = self.transport();
        if transport.device_mut().set_target(target) {
            transport.config_changed();
        }
    }

    fn wind(&self, after: Duration) {
        // It cannot fail with such times; if it does the guest gives for longer than it should.
        let _ = self.0.needed_timer.once(after);
    }

    /// What the guest last said; `None` while it is not asked.
    pub fn statistics(&self) -> Option<GuestReport> {
        if self.0.stats_interval_s.get() == 0 {
            return None;
        }
        let transport = self.transport();
        let device = transport.device();
        Some(GuestReport {
            target: Bytes::new(device.target()),
            actual: Bytes::new(device.actual()),
            statistics: device.statistics().copied().unwrap_or_default(),
        })
    }

    /// Asks the guest for its statistics every so many seconds from now on; 0 for never.
    ///
    /// # Errors
    /// When the host refuses the timer: then it is as before.
    pub fn set_stats_interval(&self, seconds: u16) -> io::Result<()> {
        self.0.statistics_timer.every(Duration::from_secs(seconds.into()))?;
        self.0.stats_interval_s.set(seconds);
        Ok(())
    }

    /// The balloon's figures, each with its unit at the end of its name.
    pub fn metrics(&self) -> Value {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let transport = self.transport();
        let wire = transport.counters();
        json!({
            "target_bytes": transport.device().target(),
            "needed_bytes": self.needed().get(),
            "actual_bytes": transport.device().actual(),
            "inflated_bytes": read(&counters.inflated),
            "reported_bytes": read(&counters.reported),
            "discarded_bytes": read(&counters.discarded),
            "failed_bytes": read(&counters.failed),
            "discard_retries_total": self.0.discards.retries.get(),
            "renewed_chunks_total": self.0.discards.renewed.get(),
            "split_chunks_total": self.0.discards.split.get(),
            "mended_chunks_total": self.0.discards.mended.get(),
            "poison_skipped_bytes": read(&counters.poison_skipped),
            "kept_bytes": read(&counters.kept),
            "outside_bytes": read(&counters.outside),
            "reports_total": read(&counters.reports),
            "statistics_total": read(&counters.statistics),
            "turns_total": read(&wire.turns),
            "interrupts_total": read(&wire.interrupts),
            "irq_failures_total": read(&wire.irq_failures),
            "resets_total": read(&wire.resets),
            "broken_total": read(&wire.broken),
            "auto": self.0.auto.borrow().metrics(),
        })
    }

    /// What has gone through it since the start.
    pub fn totals(&self) -> Totals {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| Bytes::new(counter.load(Ordering::Relaxed));
        Totals {
            inflated: read(&counters.inflated),
            reported: read(&counters.reported),
            discarded: read(&counters.discarded),
            failed: read(&counters.failed),
            failed_reason: self.0.discards.last_error().map(|error| error.to_string()),
            poison_skipped: read(&counters.poison_skipped),
            kept: read(&counters.kept),
        }
    }

    /// Has the statistics' buffer returned to the driver, which fills it again.
    fn ask(&self) {
        let mut transport = self.transport();
        transport.device_mut().request_statistics();
        if let Some(queue) = transport.device().queue_of(Role::Statistics) {
            transport.notify(queue);
        }
    }

    /// Says why the guest, which has had its time to boot, gives nothing back, unless the
    /// configuration asks for that.
    fn explain(&self) {
        let found = diagnosis(&self.0.config, &self.transport());
        // What was known before the guest started was said then.
        if found != reporting::forecast(&self.0.config)
            && let Some(diagnosis) = found.filter(|diagnosis| !diagnosis.is_choice())
        {
            say(&format!("page reporting gives nothing back: {diagnosis}"));
        }
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for timer in [&self.0.statistics_timer, &self.0.settled_timer, &self.0.needed_timer] {
            // Without its event there are no statistics, or there is no explanation.
            let _ = ops.add(Events::new_raw(timer.as_raw_fd(), EventSet::IN));
        }
        // Without its event the target stays.
        let _ = ops.add(Events::new_raw(self.0.auto.borrow().timer().as_raw_fd(), EventSet::IN));
        if let Some(mender) = &*self.0.mender.borrow() {
            // Without its event, small pages serve.
            let _ = ops.add(Events::new_raw(mender.timer().as_raw_fd(), EventSet::IN));
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let fired = |timer: &Timer| events.fd() == timer.as_raw_fd() && timer.take();
        if fired(&self.0.statistics_timer) && self.0.gate.enter().is_some() {
            self.ask();
        }
        if fired(&self.0.settled_timer) {
            self.explain();
        }
        if fired(&self.0.needed_timer) {
            self.0.needed.set(Bytes::ZERO);
            self.0.lingers.set(false);
            self.aim();
        }
        let is_due = fired(self.0.auto.borrow().timer());
        if is_due {
            match self.0.gate.enter() {
                Some(_inside) => self.look(),
                None => self.0.auto.borrow_mut().forget(),
            }
        }
        if let Some(mender) = &mut *self.0.mender.borrow_mut()
            && fired(mender.timer())
        {
            match self.0.gate.enter() {
                Some(_inside) => mender.turn(),
                None => mender.postpone(),
            }
        }
    }
}

fn lock(transport: &Shared<Balloon>) -> MutexGuard<'_, Transport<Balloon, GuestRam>> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

fn driver_state(transport: &Transport<Balloon, GuestRam>) -> DriverState {
    match transport.broken() {
        Some(_) => DriverState::NeedsReset,
        None if transport.is_active() => DriverState::Active,
        None => DriverState::Absent,
    }
}

fn diagnosis(
    config: &ReportingConfig,
    transport: &Transport<Balloon, GuestRam>,
) -> Option<Diagnosis> {
    let device = transport.device();
    let running = Running {
        on: device.reporting(),
        driver: driver_state(transport),
        acknowledged: device
            .driver_features()
            .is_some_and(|acked| acked.contains(Features::BALLOON_PAGE_REPORTING)),
        poison: device.poison(),
    };
    reporting::diagnosis(config, &running)
}
