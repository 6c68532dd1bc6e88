//! The memory balloon, as the configuration file and `--balloon` describe it.

use std::str::FromStr;

use arch::units::{Bytes, ParseBytesError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::file::{only_false, section};

/// Firecracker's `Balloon`. Every field may be left out, and then has the default of `--balloon`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSection {
    /// How much memory the guest is asked to give up, in MiB, as everywhere in the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount_mib: Option<u64>,
    /// Whether a guest that runs out of memory may take it back from the balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deflate_on_oom: Option<bool>,
    /// Seconds between two requests for the guest's statistics; 0 for none. Firecracker's type bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_polling_interval_s: Option<u16>,
    /// Free page hinting: only `false` is accepted.
    #[serde(default, deserialize_with = "only_false")]
    pub free_page_hinting: bool,
    /// Whether free pages that the guest reports are given back. On unless it says otherwise, where
    /// Firecracker has it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
    /// Whether the VMM itself chooses how much the guest is asked for. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<bool>,
    /// What the guest keeps of its memory whatever the VMM chooses, in MiB. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_mib: Option<u64>,
}

/// What a configuration says of the balloon.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum BalloonSetting {
    /// Nothing: there is one with the defaults.
    #[default]
    Default,
    /// `null`, which is Firecracker's way to write it: there is none.
    None,
    /// There is one.
    Section(BalloonSection),
}

impl BalloonSetting {
    /// Whether nothing is said.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::Default
    }

    /// The same with what `--balloon` names; the flag brings back a balloon that the file left out.
    pub(super) fn with(self, flag: BalloonFlag) -> Self {
        let mut section = match self {
            Self::Section(section) => section,
            Self::Default | Self::None => BalloonSection::default(),
        };
        flag.lay_over(&mut section);
        Self::Section(section)
    }
}

impl Serialize for BalloonSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default | Self::None => serializer.serialize_none(),
            Self::Section(section) => section.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BalloonSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(section(deserializer)?.map_or(Self::None, Self::Section))
    }
}

/// The value of `--balloon`: `KEY=VALUE` separated by commas, each key at most once, in any order. `auto` alone is
/// `auto=on`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BalloonFlag {
    reporting: Option<bool>,
    deflate_on_oom: Option<bool>,
    /// In MiB.
    target: Option<u64>,
    stats_interval_s: Option<u16>,
    auto: Option<bool>,
    /// In MiB.
    floor: Option<u64>,
}

/// Why the value of `--balloon` is not understood.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ParseBalloonError {
    /// A key that is none, or no `KEY=VALUE` at all.
    #[error(
        "'{0}' is not known: use reporting=, deflate-on-oom=, target=, stats=, auto and floor="
    )]
    Key(String),
    /// One key twice.
    #[error("'{0}' is given twice: keep one")]
    Twice(&'static str),
    /// Something other than on or off.
    #[error("'{key}={value}' is not understood: use {key}=on or {key}=off")]
    Switch {
        /// The key.
        key: &'static str,
        /// What it was given.
        value: String,
    },
    /// Something other than a size.
    #[error("'{key}=' needs a size: {source}")]
    Size {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        source: ParseBytesError,
    },
    /// A size with a part of a MiB.
    #[error("'{key}=' needs whole MiB, which {size} is not: use for instance {key}=512M")]
    Mib {
        /// The key.
        key: &'static str,
        /// The size.
        size: Bytes,
    },
    /// An interval that is not in the range.
    #[error("'stats={0}' is not understood: use whole seconds up to {max}, 0 for off", max = u16::MAX)]
    Stats(String),
}

impl FromStr for BalloonFlag {
    type Err = ParseBalloonError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut flag = Self::default();
        for item in text.split(',').filter(|_| !text.is_empty()) {
            let unknown = || ParseBalloonError::Key(item.to_owned());
            let item = if item == "auto" { "auto=on" } else { item };
            let (key, value) = item.split_once('=').ok_or_else(unknown)?;
            match key {
                "reporting" => set(&mut flag.reporting, "reporting", switch("reporting", value)?)?,
                "deflate-on-oom" => {
                    let on = switch("deflate-on-oom", value)?;
                    set(&mut flag.deflate_on_oom, "deflate-on-oom", on)?;
                }
                "target" => set(&mut flag.target, "target", mib("target", value)?)?,
                "auto" => set(&mut flag.auto, "auto", switch("auto", value)?)?,
                "floor" => set(&mut flag.floor, "floor", mib("floor", value)?)?,
                "stats" => {
                    let seconds = value.parse();
                    let seconds =
                        seconds.map_err(|_| ParseBalloonError::Stats(value.to_owned()))?;
                    set(&mut flag.stats_interval_s, "stats", seconds)?;
                }
                _ => return Err(unknown()),
            }
        }
        Ok(flag)
    }
}

impl BalloonFlag {
    /// Replaces those fields of a section that the flag names.
    fn lay_over(self, section: &mut BalloonSection) {
        section.free_page_reporting = self.reporting.or(section.free_page_reporting);
        section.deflate_on_oom = self.deflate_on_oom.or(section.deflate_on_oom);
        section.stats_polling_interval_s =
            self.stats_interval_s.or(section.stats_polling_interval_s);
        section.amount_mib = self.target.or(section.amount_mib);
        section.auto = self.auto.or(section.auto);
        section.floor_mib = self.floor.or(section.floor_mib);
    }
}

fn set<T>(field: &mut Option<T>, key: &'static str, value: T) -> Result<(), ParseBalloonError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(ParseBalloonError::Twice(key)),
    }
}

/// A size in whole MiB.
fn mib(key: &'static str, value: &str) -> Result<u64, ParseBalloonError> {
    let size: Bytes = value.parse().map_err(|source| ParseBalloonError::Size { key, source })?;
    match size.is_multiple_of(Bytes::mib(1)) {
        true => Ok(size.as_mib()),
        false => Err(ParseBalloonError::Mib { key, size }),
    }
}

fn switch(key: &'static str, value: &str) -> Result<bool, ParseBalloonError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ParseBalloonError::Switch { key, value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests;
