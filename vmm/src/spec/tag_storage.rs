//! The tag storage of a VM.

use std::path::PathBuf;
use std::time::Duration;

use arch::units::Bytes;

use super::Error;
use crate::config::{MteMode, OnExhausted, TagStorageMode, TagStorageSection};

/// How long a touch waits for tag storage before something is done about it: long enough for other VMs
/// that are asked to give memory back, whose guests need a second or two.
const DEADLINE_SECONDS: u16 = 5;

/// How tag storage is reserved for a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TagStorageSpec {
    /// Once or bit by bit.
    pub when: ReservationMode,
    /// The broker's socket; without it the VM has a pool of its own.
    pub broker: Option<PathBuf>,
    /// Tag storage that is set aside for this VM.
    pub min: Bytes,
    /// The most that it can have; [`Bytes::MAX`] for all there is.
    pub max: Bytes,
}

/// When tag storage is reserved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReservationMode {
    /// For all of guest memory when the VM is created.
    Strict,
    /// For each chunk when it is first touched.
    Demand {
        /// What happens to a touch that has waited too long.
        on_exhausted: OnExhausted,
        /// How long that is, in seconds.
        deadline_s: u16,
    },
}

impl ReservationMode {
    /// How long a touch may wait.
    pub fn deadline(self) -> Duration {
        match self {
            Self::Strict => Duration::MAX,
            Self::Demand { deadline_s, .. } => Duration::from_secs(deadline_s.into()),
        }
    }

    /// Its name in the configuration.
    pub fn mode(self) -> TagStorageMode {
        match self {
            Self::Strict => TagStorageMode::Strict,
            Self::Demand { .. } => TagStorageMode::Demand,
        }
    }
}

impl TagStorageSpec {
    /// Checks a section, for a guest with such memory. `None`: no tag storage is reserved.
    ///
    /// # Errors
    /// When it makes no sense, by itself or for such a guest.
    pub(super) fn new(
        section: TagStorageSection,
        mte: MteMode,
        lock_memory: bool,
    ) -> Result<Option<Self>, Error> {
        let exhausted = section.on_exhausted.is_some() || section.deadline_s.is_some();
        let min = size(section.min, section.min_kib)?;
        let max = size(section.max, section.max_kib)?;
        let limited = min.is_some() || max.is_some() || exhausted;
        let mode = match (section.mode, &section.broker) {
            // Without MTE it has nothing to reserve for, and borrows.
            (None | Some(TagStorageMode::Off), Some(_)) if mte == MteMode::Off => {
                TagStorageMode::Off
            }
            (Some(TagStorageMode::Off), Some(_)) => return Err(Error::TagStorageOff),
            (Some(mode), _) => mode,
            (None, Some(_)) => TagStorageMode::Demand,
            (None, None) => TagStorageMode::Off,
        };
        let when = match mode {
            TagStorageMode::Off if limited && section.broker.is_some() => {
                return Err(Error::TagStorageBorrower);
            }
            TagStorageMode::Off if limited => return Err(Error::TagStorageOff),
            TagStorageMode::Off => return Ok(None),
            TagStorageMode::Strict if exhausted => return Err(Error::TagStorageStrict),
            TagStorageMode::Strict => ReservationMode::Strict,
            TagStorageMode::Demand if lock_memory => return Err(Error::TagStorageLocked),
            TagStorageMode::Demand => ReservationMode::Demand {
                on_exhausted: section.on_exhausted.unwrap_or_default(),
                deadline_s: section.deadline_s.unwrap_or(DEADLINE_SECONDS),
            },
        };
        if mte == MteMode::Off {
            return Err(Error::TagStorageWithoutMte(mode));
        }
        let (min, max) = (min.unwrap_or(Bytes::ZERO), max.unwrap_or(Bytes::MAX));
        if min > max {
            return Err(Error::TagStorageLimits { min, max });
        }
        Ok(Some(Self { when, broker: section.broker, min, max }))
    }

    /// The same as a section of the configuration, which counts in whole KiB: limits are rounded down.
    pub(super) fn to_section(&self) -> TagStorageSection {
        let kib = |size: Bytes| size.get() >> 10;
        let (on_exhausted, deadline_s) = match self.when {
            ReservationMode::Strict => (None, None),
            ReservationMode::Demand { on_exhausted, deadline_s } => {
                (Some(on_exhausted), Some(deadline_s))
            }
        };
        TagStorageSection {
            mode: Some(self.when.mode()),
            broker: self.broker.as_ref().map(|path| path.to_string_lossy().into_owned().into()),
            min_kib: Some(kib(self.min)),
            min: None,
            max_kib: (self.max < Bytes::MAX).then(|| kib(self.max)),
            max: None,
            on_exhausted,
            deadline_s,
        }
    }
}

fn size(size: Option<Bytes>, kib: Option<u64>) -> Result<Option<Bytes>, Error> {
    let from_kib =
        |kib: u64| kib.checked_mul(1 << 10).map(Bytes::new).ok_or(Error::TagStorageOverflow(kib));
    match size {
        Some(size) => Ok(Some(size)),
        None => kib.map(from_kib).transpose(),
    }
}

#[cfg(test)]
mod tests;
