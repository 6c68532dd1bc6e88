//! A figure: one number that a bench has found, with all that is needed to read it.

use serde::{Deserialize, Serialize};

/// Letters of a text: it is a word in a table, or a line under it.
pub const MAX_TEXT: usize = 400;
/// The numbers that a figure is made of: more are no raw data of one figure.
pub const MAX_SAMPLES: usize = 4096;
/// The greatest number: below it a double has every integer, and a plot's scale has room.
const MAX_VALUE: f64 = 9_007_199_254_740_992.0;

/// The name of the VMM whose aims these are.
pub const OWN: &str = "tessera";
/// In an aim: the best of all other VMMs.
pub const BEST_PEER: &str = "best peer";

/// How a number was found.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By an emulated processor that counts instructions. Two runs of the same programs find the same.
    Counted,
    /// By a clock.
    Time,
    /// By counts of the host's kernel: bytes, pages.
    Kernel,
    /// By a model that runs no guest. Two runs with one seed find the same.
    Model,
}

impl Method {
    /// Whether two runs must find the same.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Counted | Self::Model)
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Counted => "counted instructions",
            Self::Time => "time",
            Self::Kernel => "counts of the kernel",
            Self::Model => "model",
        }
    }
}

/// Which way is good.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less of it.
    Less,
    /// More of it.
    More,
}

/// What was measured.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vmm {
    /// Its name.
    pub name: String,
    /// Its version, as it says itself.
    pub version: String,
    /// What tells it from the same VMM in the same plot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Vmm {
    /// Its name in a plot.
    pub fn label(&self) -> String {
        match self.variant.as_str() {
            "" => self.name.clone(),
            variant => format!("{}, {variant}", self.name),
        }
    }
}

/// The guest that it ran.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Its memory in MiB; 0 where there is no guest, or several that differ.
    pub memory_mib: u64,
    /// Its vCPUs; 0 where there is no guest.
    pub vcpus: u32,
    /// The VMM's options that matter, in its own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
}

/// The machine that the VMM ran on.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its processor, and whether it is emulated.
    pub machine: String,
    /// The release of its kernel.
    pub kernel: String,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its processors.
    pub cpus: u32,
}

/// Which side of a number is good.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// That number or less.
    AtMost,
    /// That number or more.
    AtLeast,
}

/// Another figure of the same name, which an aim is a multiple of.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The VMM's [label](Vmm::label), or [`BEST_PEER`].
    pub vmm: String,
    /// Its case, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
}

/// What a figure shall be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aim {
    /// Which side is good.
    pub bound: Bound,
    /// The number, in the figure's unit; or a multiple of what `of` names.
    pub value: f64,
    /// What `value` is a multiple of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Reference>,
}

/// One number that a bench has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The bench, a section of the report.
    pub bench: String,
    /// What was measured, a plot of the section.
    pub name: String,
    /// In which case, a row of the plot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// What was measured.
    pub vmm: Vmm,
    /// The number; null where the VMM cannot do it.
    pub value: Option<f64>,
    /// Why there is no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot: Option<String>,
    /// Of the number.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// How it was found.
    pub method: Method,
    /// What tag storage is made of, where it is meant: `ledger`, or `node:N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supply: Option<String>,
    /// The guest.
    pub setting: Setting,
    /// The machine.
    pub host: Host,
    /// What the number was chosen from, or made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<f64>,
    /// What it shall be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aim: Option<Aim>,
}

/// Why this is no figure.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// A text that must be there.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// A text that is too long.
    #[error("`{0}` has more than {MAX_TEXT} letters")]
    Long(&'static str),
    /// A text that is no line.
    #[error("`{0}` has control characters")]
    Controls(&'static str),
    /// A number that is too great, or none.
    #[error("a number in `{0}` is not between -2^53 and 2^53")]
    Number(&'static str),
    /// More samples than are kept.
    #[error("there are more than {MAX_SAMPLES} samples")]
    Samples,
    /// A value and a reason for having none, or neither.
    #[error("it has to have either a `value` or, as `cannot`, the reason why there is none")]
    Value,
    /// A supply that there is not.
    #[error("`supply` is neither `ledger` nor `node:N`")]
    Supply,
    /// An aim that all numbers are on one side of.
    #[error("an aim that is a multiple of another figure has to be above 0")]
    Multiple,
}

impl Figure {
    /// Looks at what its types leave open.
    ///
    /// # Errors
    /// When it says what no figure can.
    pub fn check(&self) -> Result<(), Invalid> {
        self.check_texts()?;
        for (name, value) in
            [("value", self.value), ("aim", self.aim.as_ref().map(|aim| aim.value))]
        {
            check_number(name, value.unwrap_or_default())?;
        }
        if self.samples.len() > MAX_SAMPLES {
            return Err(Invalid::Samples);
        }
        self.samples.iter().try_for_each(|sample| check_number("samples", *sample))?;
        if self.value.is_some() == self.cannot.is_some() {
            return Err(Invalid::Value);
        }
        let is_supply = |supply: &str| {
            let node = supply.strip_prefix("node:");
            supply == "ledger" || node.is_some_and(|node| node.parse::<u32>().is_ok())
        };
        if !self.supply.as_deref().is_none_or(is_supply) {
            return Err(Invalid::Supply);
        }
        match &self.aim {
            Some(Aim { value, of: Some(_), .. }) if *value <= 0.0 => Err(Invalid::Multiple),
            _ => Ok(()),
        }
    }

    fn check_texts(&self) -> Result<(), Invalid> {
        let needed = [
            ("bench", &self.bench),
            ("name", &self.name),
            ("unit", &self.unit),
            ("vmm.name", &self.vmm.name),
            ("vmm.version", &self.vmm.version),
            ("host.machine", &self.host.machine),
        ];
        let texts = [
            ("case", &self.case),
            ("vmm.variant", &self.vmm.variant),
            ("setting.options", &self.setting.options),
            ("host.kernel", &self.host.kernel),
        ];
        if let Some((name, _)) = needed.iter().find(|(_, text)| text.trim().is_empty()) {
            return Err(Invalid::Empty(name));
        }
        let reference = self.aim.as_ref().and_then(|aim| aim.of.as_ref());
        let others = [
            ("cannot", self.cannot.as_ref()),
            ("supply", self.supply.as_ref()),
            ("aim.of.vmm", reference.map(|of| &of.vmm)),
            ("aim.of.case", reference.and_then(|of| of.case.as_ref())),
        ];
        let others = others.into_iter().filter_map(|(name, text)| Some((name, text?)));
        needed
            .into_iter()
            .chain(texts)
            .chain(others)
            .try_for_each(|(name, text)| check_text(name, text))
    }

    /// What it is a figure of: two with the same are of the same thing.
    pub fn key(&self) -> Key<'_> {
        Key {
            bench: &self.bench,
            name: &self.name,
            case: &self.case,
            vmm: &self.vmm.name,
            variant: &self.vmm.variant,
            setting: &self.setting,
            supply: self.supply.as_deref(),
            method: self.method,
            unit: &self.unit,
        }
    }
}

/// What a figure is of, whatever the versions and the machine.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key<'a> {
    bench: &'a str,
    name: &'a str,
    case: &'a str,
    vmm: &'a str,
    variant: &'a str,
    setting: &'a Setting,
    supply: Option<&'a str>,
    method: Method,
    unit: &'a str,
}

/// Whether a text fits a line of a report.
pub(super) fn check_text(name: &'static str, text: &str) -> Result<(), Invalid> {
    match () {
        () if text.chars().count() > MAX_TEXT => Err(Invalid::Long(name)),
        () if text.chars().any(char::is_control) => Err(Invalid::Controls(name)),
        () => Ok(()),
    }
}

fn check_number(name: &'static str, value: f64) -> Result<(), Invalid> {
    match value.is_finite() && value.abs() <= MAX_VALUE {
        true => Ok(()),
        false => Err(Invalid::Number(name)),
    }
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.bench, self.name)?;
        let label = match self.variant {
            "" => self.vmm.to_owned(),
            variant => format!("{}, {variant}", self.vmm),
        };
        match self.case {
            "" => write!(f, " ({label})"),
            case => write!(f, ", {case} ({label})"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::samples::figure;
    use super::*;

    #[test]
    fn a_figure_is_the_same_after_json() {
        let mut one = figure("tessera", 1.5);
        one.supply = Some("node:1".to_owned());
        one.samples = vec![1.5, 2.0];
        one.aim = Some(Aim {
            bound: Bound::AtMost,
            value: 0.5,
            of: Some(Reference { vmm: BEST_PEER.to_owned(), case: None }),
        });
        one.check().unwrap();

        let text = serde_json::to_string(&one).unwrap();

        assert_eq!(serde_json::from_str::<Figure>(&text).unwrap(), one);
    }

    #[test]
    fn what_no_figure_can_say_is_refused() {
        let refused = |change: fn(&mut Figure)| {
            let mut figure = figure("tessera", 1.0);
            change(&mut figure);
            figure.check().unwrap_err()
        };

        assert_eq!(refused(|figure| figure.bench = " ".to_owned()), Invalid::Empty("bench"));
        assert_eq!(refused(|figure| figure.case = "x".repeat(401)), Invalid::Long("case"));
        assert_eq!(refused(|figure| figure.unit = "a\nb".to_owned()), Invalid::Controls("unit"));
        assert_eq!(refused(|figure| figure.value = Some(1e300)), Invalid::Number("value"));
        assert_eq!(refused(|figure| figure.samples = vec![f64::NAN]), Invalid::Number("samples"));
        assert_eq!(refused(|figure| figure.samples = vec![0.0; 4097]), Invalid::Samples);
        assert_eq!(refused(|figure| figure.value = None), Invalid::Value);
        assert_eq!(refused(|figure| figure.cannot = Some("no".to_owned())), Invalid::Value);
        assert_eq!(refused(|figure| figure.supply = Some("node:".to_owned())), Invalid::Supply);
        let nothing = |figure: &mut Figure| {
            let of = Some(Reference { vmm: BEST_PEER.to_owned(), case: None });
            figure.aim = Some(Aim { bound: Bound::AtMost, value: 0.0, of });
        };
        assert_eq!(refused(nothing), Invalid::Multiple);
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        let mut value = serde_json::to_value(figure("tessera", 1.0)).unwrap();
        value["values"] = 1.into();

        let error = serde_json::from_value::<Figure>(value).unwrap_err();

        assert!(error.to_string().contains("unknown field `values`"), "{error}");
    }
}
