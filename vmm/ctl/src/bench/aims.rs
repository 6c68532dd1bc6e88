//! Aims, and how far the figures are from them.

use std::collections::BTreeMap;
use std::fmt;

use super::figure::{Aim, BEST_PEER, Better, Bound, Figure, Host, Method, OWN, Reference};
use super::number::short;

/// What became of an aim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The figure is on the good side.
    Met,
    /// It is on the other.
    Missed,
    /// There is no figure, or none to compare it with.
    Unknown,
}

/// A figure beside its aim.
#[derive(Clone, Debug)]
pub struct Verdict<'a> {
    /// The figure.
    pub figure: &'a Figure,
    /// Its aim.
    pub aim: &'a Aim,
    /// What the aim is a multiple of, if that is known.
    pub reference: Option<&'a Figure>,
    /// The figure, or how many times the reference it is.
    pub measured: Option<f64>,
    /// What became of it.
    pub outcome: Outcome,
}

/// All aims of these figures.
pub fn verdicts(figures: &[Figure]) -> Vec<Verdict<'_>> {
    let mut all: Alike<'_> = BTreeMap::new();
    for figure in figures.iter().filter(|figure| figure.value.is_some()) {
        all.entry(likeness(figure, &figure.case)).or_default().push(figure);
    }
    figures.iter().filter_map(|figure| verdict(figure, &all)).collect()
}

/// What figures must share to be compared, beside their vCPUs.
type Likeness<'a> = (&'a str, &'a str, &'a str, Method, &'a Host, &'a str, u64);
/// Figures that have a value.
type Alike<'a> = BTreeMap<Likeness<'a>, Vec<&'a Figure>>;

fn likeness<'a>(figure: &'a Figure, case: &'a str) -> Likeness<'a> {
    let Figure { bench, name, unit, method, host, setting, .. } = figure;
    (bench, name, unit, *method, host, case, setting.memory_mib)
}

fn verdict<'a>(figure: &'a Figure, all: &Alike<'a>) -> Option<Verdict<'a>> {
    let aim = figure.aim.as_ref()?;
    let reference = aim.of.as_ref().and_then(|of| find(figure, of, all));
    let measured = figure.value.and_then(|value| match (&aim.of, reference) {
        (None, _) => Some(value),
        (Some(_), Some(Figure { value: Some(other), .. })) if *other > 0.0 => Some(value / other),
        _ => None,
    });
    let outcome = measured.map_or(Outcome::Unknown, |measured| {
        let is_met = match aim.bound {
            Bound::AtMost => measured <= aim.value,
            Bound::AtLeast => measured >= aim.value,
        };
        if is_met { Outcome::Met } else { Outcome::Missed }
    });
    Some(Verdict { figure, aim, reference, measured, outcome })
}

/// The figure that an aim is a multiple of.
fn find<'a>(figure: &'a Figure, of: &'a Reference, all: &Alike<'a>) -> Option<&'a Figure> {
    let case = of.case.as_ref().unwrap_or(&figure.case);
    let alike = all.get(&likeness(figure, case))?;
    let is_comparable =
        |other: &&Figure| of.case.is_some() || other.setting.vcpus == figure.setting.vcpus;
    let mut others = alike.iter().copied().filter(is_comparable);
    if of.vmm != BEST_PEER {
        return others.find(|other| other.vmm.label() == of.vmm);
    }
    let peers = others.filter(|other| other.vmm.name != OWN);
    let by_value = |one: &&Figure, two: &&Figure| {
        one.value.unwrap_or_default().total_cmp(&two.value.unwrap_or_default())
    };
    match figure.better {
        Better::Less => peers.min_by(by_value),
        Better::More => peers.max_by(by_value),
    }
}

/// Where the aims of figures are, each in the figure's own unit. A figure is known by where it lies.
pub(super) struct Marks(BTreeMap<*const Figure, f64>);

impl Marks {
    pub(super) fn of(verdicts: &[Verdict<'_>]) -> Self {
        let marks = verdicts.iter();
        Self(marks.filter_map(|of| Some((std::ptr::from_ref(of.figure), of.mark()?))).collect())
    }

    pub(super) fn get(&self, figure: &Figure) -> Option<f64> {
        self.0.get(&std::ptr::from_ref(figure)).copied()
    }
}

impl Verdict<'_> {
    /// Where the aim is in the figure's own unit.
    pub fn mark(&self) -> Option<f64> {
        match (&self.aim.of, self.reference) {
            (None, _) => Some(self.aim.value),
            (Some(_), reference) => reference?.value.map(|value| value * self.aim.value),
        }
    }

    /// The aim in words.
    pub fn wanted(&self) -> String {
        let bound = match self.aim.bound {
            Bound::AtMost => "at most",
            Bound::AtLeast => "at least",
        };
        let value = short(self.aim.value);
        let Some(of) = &self.aim.of else {
            return format!("{bound} {value} {}", self.figure.unit);
        };
        let case = of.case.as_ref().map_or_else(String::new, |case| format!(", {case}"));
        match self.reference.filter(|_| of.vmm == BEST_PEER) {
            Some(found) => format!("{bound} {value} × {} ({}){case}", of.vmm, found.vmm.label()),
            None => format!("{bound} {value} × {}{case}", of.vmm),
        }
    }

    /// What was found, as the aim has it.
    pub fn found(&self) -> String {
        match (self.measured, &self.aim.of) {
            (None, _) => "–".to_owned(),
            (Some(ratio), Some(_)) => format!("{} ×", short(ratio)),
            (Some(value), None) => format!("{} {}", short(value), self.figure.unit),
        }
    }
}

/// `pass` or the distance.
impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(measured) = self.measured else {
            return f.write_str("not to be told: no figure to compare");
        };
        let distance = (measured - self.aim.value).abs();
        let distance = match self.aim.of {
            Some(_) => format!("{:.1} %", distance * 100.0 / self.aim.value),
            None => format!("{} {}", short(distance), self.figure.unit),
        };
        let (bound, beyond) = match self.aim.bound {
            Bound::AtMost => ("below", "above"),
            Bound::AtLeast => ("above", "below"),
        };
        match self.outcome {
            Outcome::Met => write!(f, "pass, {distance} {bound}"),
            _ => write!(f, "missed, {distance} {beyond}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::samples::{at_most, dash, figure};
    use super::*;

    fn only(figures: &[Figure]) -> (Outcome, String, String) {
        let all = verdicts(figures);
        assert_eq!(all.len(), 1);
        (all[0].outcome, all[0].wanted(), all[0].to_string())
    }

    #[test]
    fn an_aim_of_a_number_is_met_on_its_good_side() {
        let with = |value, bound| {
            let aim = Some(Aim { bound, value: 10.0, of: None });
            let mut figure = figure("tessera", value);
            figure.aim = aim;
            only(&[figure])
        };

        assert_eq!(with(9.0, Bound::AtMost).0, Outcome::Met);
        assert_eq!(with(9.0, Bound::AtMost).2, "pass, 1 instructions below");
        assert_eq!(with(10.0, Bound::AtMost).0, Outcome::Met);
        assert_eq!(with(11.0, Bound::AtMost).0, Outcome::Missed);
        assert_eq!(with(11.0, Bound::AtMost).2, "missed, 1 instructions above");
        assert_eq!(with(9.0, Bound::AtLeast).0, Outcome::Missed);
        assert_eq!(with(11.0, Bound::AtLeast).1, "at least 10 instructions");
    }

    #[test]
    fn an_aim_of_the_best_peer_looks_at_the_least_of_the_others() {
        let own = Figure { aim: at_most(0.85, BEST_PEER, None), ..figure("tessera", 18.0) };
        let figures = [own, figure("QEMU", 40.0), figure("kvmtool", 20.0), dash("crosvm", "no")];

        let (outcome, wanted, text) = only(&figures);

        assert_eq!(outcome, Outcome::Missed);
        assert_eq!(wanted, "at most 0.85 × best peer (kvmtool)");
        assert_eq!(text, "missed, 5.9 % above");
        assert_eq!(verdicts(&figures)[0].mark(), Some(17.0));
    }

    #[test]
    fn an_aim_may_look_at_another_case() {
        let mut own =
            Figure { aim: at_most(0.2, BEST_PEER, Some("raw, cold")), ..figure("tessera", 4.0) };
        own.case = "raw, boot image".to_owned();

        let (outcome, wanted, _) = only(&[own, figure("QEMU", 40.0)]);

        assert_eq!(outcome, Outcome::Met);
        assert_eq!(wanted, "at most 0.2 × best peer (QEMU), raw, cold");
    }

    #[test]
    fn without_a_figure_to_compare_with_nothing_is_said() {
        let own = Figure { aim: at_most(0.5, "QEMU", None), ..figure("tessera", 4.0) };
        let mut elsewhere = figure("QEMU", 10.0);
        elsewhere.host.kernel = "6.18".to_owned();

        for figures in
            [vec![own.clone()], vec![own.clone(), dash("QEMU", "no")], vec![own, elsewhere]]
        {
            let (outcome, _, text) = only(&figures);
            assert_eq!(outcome, Outcome::Unknown);
            assert!(text.starts_with("not to be told"), "{text}");
        }
    }
}
