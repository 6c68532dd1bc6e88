//! What has moved between two reports.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figure::{Better, Figure, Key};
use super::file::Report;

/// How a figure has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// To the good.
    Better,
    /// To the bad.
    Worse,
    /// It has gone, or could be found before and cannot now.
    Gone,
    /// It is new, or could not be found before.
    New,
}

/// A figure that has moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moved {
    /// What it is of.
    pub figure: String,
    /// Of the number.
    pub unit: String,
    /// In the first report.
    pub before: Option<f64>,
    /// In the second.
    pub after: Option<f64>,
    /// By how much, in percent of what it was; null where that is 0 or there is none.
    pub percent: Option<f64>,
    /// Which way.
    pub change: Change,
}

/// What is different.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Figures that are in both reports.
    pub in_both: usize,
    /// Those that have moved, and those of one report alone, in the order of the second.
    pub moved: Vec<Moved>,
}

/// Compares two reports. A figure has moved when it differs by more than `tolerance` percent of what it was.
pub fn compare(before: &Report, after: &Report, tolerance: f64) -> Comparison {
    let of_key = |report| Vec::from_iter(figures(report));
    let (old, new) = (of_key(before), of_key(after));
    let old_by_key: BTreeMap<Key<'_>, &Figure> = old.iter().copied().collect();
    let new_keys: BTreeMap<Key<'_>, &Figure> = new.iter().copied().collect();
    let mut moved: Vec<Moved> = new
        .iter()
        .filter_map(|(key, figure)| change(old_by_key.get(key).copied(), Some(figure), tolerance))
        .collect();
    let gone = old.iter().filter(|(key, _)| !new_keys.contains_key(key));
    moved.extend(gone.filter_map(|(_, figure)| change(Some(figure), None, tolerance)));
    let in_both = new_keys.keys().filter(|key| old_by_key.contains_key(key)).count();
    Comparison { in_both, moved }
}

/// One a key: of several versions and hosts in a report, the first.
fn figures(report: &Report) -> impl Iterator<Item = (Key<'_>, &Figure)> {
    let mut seen = std::collections::BTreeSet::new();
    report
        .figures
        .iter()
        .map(|figure| (figure.key(), figure))
        .filter(move |(key, _)| seen.insert(*key))
}

/// By how much one number is another, in percent of the first; none where that is 0.
pub(super) fn percent(old: f64, new: f64) -> Option<f64> {
    (old != 0.0).then(|| (new - old) * 100.0 / old.abs())
}

fn change(before: Option<&Figure>, after: Option<&Figure>, tolerance: f64) -> Option<Moved> {
    let figure = after.or(before)?;
    let [old, new] = [before, after].map(|figure| figure.and_then(|figure| figure.value));
    let (change, percent) = match (old, new) {
        (Some(old), Some(new)) => {
            let percent = percent(old, new);
            let is_moved = percent.map_or(new != 0.0, |percent| percent.abs() > tolerance);
            let is_better = match figure.better {
                Better::Less => new < old,
                Better::More => new > old,
            };
            let change = if is_better { Change::Better } else { Change::Worse };
            is_moved.then_some((change, percent))?
        }
        (Some(_), None) => (Change::Gone, None),
        (None, Some(_)) => (Change::New, None),
        // A dash in both; or in one, and the other has no such row.
        (None, None) => return None,
    };
    Some(Moved {
        figure: figure.key().to_string(),
        unit: figure.unit.clone(),
        before: old,
        after: new,
        percent,
        change,
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{dash, figure};
    use super::*;

    fn of(figures: &[Figure]) -> Report {
        Report { figures: figures.to_vec(), ..Report::default() }
    }

    fn one(before: &[Figure], after: &[Figure], tolerance: f64) -> Option<(Change, Option<f64>)> {
        let comparison = compare(&of(before), &of(after), tolerance);
        assert!(comparison.moved.len() < 2, "{comparison:?}");
        comparison.moved.first().map(|moved| (moved.change, moved.percent))
    }

    #[test]
    fn the_same_has_not_moved() {
        assert_eq!(one(&[figure("tessera", 1.0)], &[figure("tessera", 1.0)], 0.0), None);
        assert_eq!(one(&[figure("tessera", 0.0)], &[figure("tessera", 0.0)], 0.0), None);
        assert_eq!(one(&[dash("QEMU", "a")], &[dash("QEMU", "b")], 0.0), None);
        assert_eq!(one(&[figure("tessera", 100.0)], &[figure("tessera", 101.0)], 1.0), None);
    }

    #[test]
    fn a_change_has_its_size_and_its_side() {
        let less =
            |before, after| one(&[figure("tessera", before)], &[figure("tessera", after)], 1.0);

        assert_eq!(less(100.0, 102.0), Some((Change::Worse, Some(2.0))));
        assert_eq!(less(100.0, 50.0), Some((Change::Better, Some(-50.0))));
        assert_eq!(less(-10.0, 10.0), Some((Change::Worse, Some(200.0))));
        assert_eq!(less(0.0, 10.0), Some((Change::Worse, None)));
        let more = |value| Figure { better: Better::More, ..figure("tessera", value) };
        assert_eq!(one(&[more(1.0)], &[more(2.0)], 0.0), Some((Change::Better, Some(100.0))));
    }

    #[test]
    fn figures_come_and_go() {
        let own = figure("tessera", 1.0);
        let both = [own.clone(), figure("QEMU", 2.0)];

        assert_eq!(one(std::slice::from_ref(&own), &both, 0.0), Some((Change::New, None)));
        assert_eq!(one(&both, &[own], 0.0), Some((Change::Gone, None)));
        assert_eq!(
            one(&[dash("QEMU", "a")], &[figure("QEMU", 1.0)], 0.0),
            Some((Change::New, None))
        );
        assert_eq!(
            one(&[figure("QEMU", 1.0)], &[dash("QEMU", "a")], 0.0),
            Some((Change::Gone, None))
        );
    }

    #[test]
    fn another_version_or_host_is_what_is_compared() {
        let mut newer = figure("tessera", 2.0);
        newer.vmm.version = "2".to_owned();
        newer.host.kernel = "6.18".to_owned();

        assert_eq!(
            one(&[figure("tessera", 1.0)], &[newer], 0.0),
            Some((Change::Worse, Some(100.0)))
        );
    }
}
