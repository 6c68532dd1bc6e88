//! Why page reporting gives nothing back.

use std::fmt;

use arch::layout::CHUNK;
use arch::units::Bytes;

use super::{batch, best, unit};

/// From this part of the guest's memory on, a batch is too large: the guest itself and its page cache
/// use about as much, so that much is hardly ever free.
const TOO_LARGE: u64 = 2;

/// The state of the guest's balloon driver.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DriverState {
    /// None has started, or it has left.
    Absent,
    /// It runs the device.
    Active,
    /// It did something that the specification forbids, so that the device waits for its reset.
    NeedsReset,
}

/// What is settled before the guest starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReportingConfig {
    /// Whether the configuration has reporting on.
    pub wanted: bool,
    /// Whether guest memory is locked or pinned. Reporting is not offered then, whatever is wanted.
    pub locked: bool,
    /// The guest's memory.
    pub memory: Bytes,
    /// The size of the guest's pages: 4, 16 or 64 KiB.
    pub guest_page: Bytes,
    /// The order in which the guest reports: see [`super::in_effect`].
    pub order: u8,
    /// The size of the pages that guest memory is made of.
    pub granularity: Bytes,
}

impl ReportingConfig {
    /// Whether the guest is offered page reporting.
    pub fn offered(&self) -> bool {
        self.wanted && !self.locked
    }

    /// Whether nothing of guest memory becomes free memory of the host: locked memory stays, and that of hugetlbfs goes
    /// to its pool.
    pub fn is_fixed(&self) -> bool {
        self.locked || self.granularity >= CHUNK
    }
}

/// What changes while the guest runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Running {
    /// Whether reporting is switched on now.
    pub on: bool,
    /// The driver's state.
    pub driver: DriverState,
    /// Whether the driver acknowledged VIRTIO_BALLOON_F_PAGE_REPORTING.
    pub acknowledged: bool,
    /// The value with which the guest fills its free pages, if the driver acknowledged
    /// VIRTIO_BALLOON_F_PAGE_POISON.
    pub poison: Option<u32>,
}

/// Why reporting gives nothing back, and what to do about it (its `Display`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Diagnosis {
    /// Guest memory is locked or pinned.
    Locked,
    /// The configuration has reporting off, so the guest was not offered it.
    NotOffered,
    /// It has been switched off since the start.
    SwitchedOff,
    /// The device waits for the driver's reset.
    NeedsReset,
    /// The guest has no driver for the balloon, or none yet.
    NoDriver,
    /// The driver does not know reporting, or does not want it.
    LeftOut,
    /// The guest fills its free pages and expects to find them so.
    Poison {
        /// With this value.
        value: u32,
    },
    /// What the guest reports never contains a whole page of its memory's.
    UnitBelowPage {
        /// What the guest reports at least.
        unit: Bytes,
        /// A page of guest memory.
        granularity: Bytes,
        /// An order that would do.
        better: Option<u8>,
    },
    /// So much must be free before the guest reports anything that it hardly ever is.
    OrderTooHigh {
        /// The order.
        order: u8,
        /// What must be free.
        batch: Bytes,
        /// The guest's memory.
        memory: Bytes,
        /// An order that would do.
        better: Option<u8>,
    },
}

impl Diagnosis {
    /// Whether the configuration asks for it, as opposed to reporting that is on and gives nothing.
    pub fn is_choice(&self) -> bool {
        matches!(self, Self::Locked | Self::NotOffered | Self::SwitchedOff)
    }
}

/// Why reporting will give nothing back whatever the guest's driver does; `None` if it can.
pub fn forecast(config: &ReportingConfig) -> Option<Diagnosis> {
    if config.locked {
        return Some(Diagnosis::Locked);
    }
    if !config.wanted {
        return Some(Diagnosis::NotOffered);
    }
    let better = best(config.memory, config.guest_page, config.granularity)
        .filter(|better| *better != config.order);
    let unit = unit(config.order, config.guest_page);
    if unit < config.granularity {
        let granularity = config.granularity;
        return Some(Diagnosis::UnitBelowPage { unit, granularity, better });
    }
    let batch = batch(config.order, config.guest_page);
    if batch.get() >= config.memory.get() / TOO_LARGE {
        let ReportingConfig { order, memory, .. } = *config;
        return Some(Diagnosis::OrderTooHigh { order, batch, memory, better });
    }
    None
}

/// Why reporting gives nothing back now; `None` if it does. Of several reasons, the one to act on first.
pub fn diagnosis(config: &ReportingConfig, running: &Running) -> Option<Diagnosis> {
    let now = match *running {
        _ if !config.offered() => None,
        Running { on: false, .. } => Some(Diagnosis::SwitchedOff),
        Running { driver: DriverState::NeedsReset, .. } => Some(Diagnosis::NeedsReset),
        Running { driver: DriverState::Absent, .. } => Some(Diagnosis::NoDriver),
        Running { acknowledged: false, .. } => Some(Diagnosis::LeftOut),
        Running { poison: Some(value), .. } if value != 0 => Some(Diagnosis::Poison { value }),
        Running { .. } => None,
    };
    now.or_else(|| forecast(config))
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Locked => f.write_str(
                "guest memory is locked, so none of it can be given back: start without --lock-memory",
            ),
            Self::NotOffered => f.write_str(
                "it was off at the start, so the guest does not report: start with --balloon reporting=on",
            ),
            Self::SwitchedOff => f.write_str(
                "it is switched off, and what the guest reports is kept: \
                 PATCH /balloon with {\"free_page_reporting\": true}, or `tesseractl balloon VM reporting on`",
            ),
            Self::NeedsReset => f.write_str(
                "the guest's driver broke the rules of virtio and the device waits for its reset: \
                 load the driver again, or restart the guest",
            ),
            Self::NoDriver => f.write_str(
                "the guest has not started a balloon driver: load virtio_mmio and virtio_balloon in it",
            ),
            Self::LeftOut => f.write_str(
                "the guest's driver left page reporting out: Linux has it since 5.7, with \
                 CONFIG_PAGE_REPORTING, and not with init_on_free or page_poison if its driver does not \
                 know page poisoning",
            ),
            Self::Poison { value } => write!(
                f,
                "the guest fills its free pages with {value:#x} and expects to find them so: \
                 boot it without page_poison (init_on_free=1 does no harm)"
            ),
            Self::UnitBelowPage { unit, granularity, better } => {
                write!(
                    f,
                    "the guest reports units of {unit}, less than the {granularity} pages of its memory: "
                )?;
                advise(f, better, "take --memory-backing anonymous, or a kernel with larger pages")
            }
            Self::OrderTooHigh { order, batch, memory, better } => {
                write!(
                    f,
                    "at reporting order {order} the guest reports only while {batch} of its {memory} is free: "
                )?;
                advise(f, better, "give it more --memory")
            }
        }
    }
}

fn advise(f: &mut fmt::Formatter<'_>, better: Option<u8>, otherwise: &str) -> fmt::Result {
    match better {
        Some(order) => write!(f, "put {}={order} on its command line", super::PARAMETER),
        None => f.write_str(otherwise),
    }
}
