//! One report of several files.

use std::collections::BTreeMap;

use super::figure::{Figure, Host, Key, MAX_SAMPLES, MAX_TEXT};
use super::file::{MAX_FIGURES, MAX_NOTES, Report, SCHEMA};

/// How many figures an error names.
const NAMED: usize = 10;

/// Why there is no report of these files.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// Figures that must be the same are not.
    #[error(
        "{count} figures differ that must be the same in every run: {}{}; give the files of one run, or find out why they differ",
        named.join("; "),
        if count > &named.len() { "; and more" } else { "" }
    )]
    Conflict {
        /// How many.
        count: usize,
        /// Some of them, with both values.
        named: Vec<String>,
    },
    /// More figures than are read again.
    #[error(
        "together the files have {0} figures, and a report at most {MAX_FIGURES}: give the files of one run"
    )]
    Figures(usize),
    /// More notes than are read again.
    #[error(
        "together there are {0} notes, and a report has at most {MAX_NOTES}: give fewer --note, or the files of one run"
    )]
    Notes(usize),
}

/// What two records must have in common to be of the same figure.
type Identity<'a> = (Key<'a>, &'a str, &'a Host);

fn identity(figure: &Figure) -> Identity<'_> {
    (figure.key(), &figure.vmm.version, &figure.host)
}

/// Makes one report of several, in their order. Of figures that were found several times by a clock, or by the kernel's
/// counts, the median stays, with all that it is the median of.
///
/// # Errors
/// When a figure that is counted, or a model's, was found twice and differs; or could be found once and once not; or when
/// there is more than [`read`](super::read) would read again.
pub fn merge(reports: Vec<Report>) -> Result<Report, MergeError> {
    let mut notes: BTreeMap<String, String> = BTreeMap::new();
    let mut figures: Vec<Figure> = Vec::new();
    for report in reports {
        for (name, text) in report.notes {
            let note = notes.entry(name).or_insert_with(|| text.clone());
            if *note != text && note.chars().count() + 2 + text.chars().count() < MAX_TEXT {
                *note = format!("{note}; {text}");
            }
        }
        figures.extend(report.figures);
    }
    // By identity, which of `figures` are of it.
    let mut found: BTreeMap<Identity<'_>, Vec<usize>> = BTreeMap::new();
    for (at, figure) in figures.iter().enumerate() {
        found.entry(identity(figure)).or_default().push(at);
    }
    let conflicts: Vec<String> = found
        .values()
        .filter_map(|same| same[1..].iter().find_map(|at| differ(&figures[same[0]], &figures[*at])))
        .collect();
    if !conflicts.is_empty() {
        let (count, named) = (conflicts.len(), conflicts.into_iter().take(NAMED).collect());
        return Err(MergeError::Conflict { count, named });
    }
    let mut groups: Vec<Vec<usize>> = found.into_values().collect();
    groups.sort_unstable();
    let figures: Vec<Figure> =
        groups.iter().filter_map(|group| one(group.iter().map(|at| &figures[*at]))).collect();
    match (figures.len(), notes.len()) {
        (count, _) if count > MAX_FIGURES => Err(MergeError::Figures(count)),
        (_, count) if count > MAX_NOTES => Err(MergeError::Notes(count)),
        _ => Ok(Report { schema: SCHEMA, notes, figures }),
    }
}

/// How two records of a figure contradict each other, if they do.
fn differ(one: &Figure, other: &Figure) -> Option<String> {
    let may = one.value.is_some() && other.value.is_some() && !one.method.is_exact();
    let text =
        |figure: &Figure| figure.value.map_or_else(|| "none".to_owned(), |value| value.to_string());
    (one.value != other.value && !may)
        .then(|| format!("{}: {} and {}", one.key(), text(one), text(other)))
}

/// One of several records of the same figure.
fn one<'a>(same: impl Iterator<Item = &'a Figure> + Clone) -> Option<Figure> {
    let mut figure = same.clone().next()?.clone();
    if same.clone().count() > 1 && !figure.method.is_exact() {
        let mut values: Vec<f64> =
            same.filter_map(|figure| figure.value).take(MAX_SAMPLES).collect();
        figure.samples.clone_from(&values);
        values.sort_by(f64::total_cmp);
        figure.value = values.get(values.len() / 2).copied();
    }
    Some(figure)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::figure::Method;
    use super::super::samples::{dash, figure};
    use super::*;

    fn of(figures: &[Figure]) -> Report {
        Report { schema: SCHEMA, figures: figures.to_vec(), ..Report::default() }
    }

    #[test]
    fn counted_figures_that_are_the_same_become_one() {
        let (one, two) = (figure("tessera", 1.0), figure("QEMU", 2.0));

        let merged = merge(vec![of(&[one.clone(), two.clone()]), of(&[two.clone(), one.clone()])]);

        assert_eq!(merged.unwrap().figures, [one, two]);
    }

    #[test]
    fn counted_figures_that_differ_are_an_error_that_names_them() {
        let conflict = merge(vec![of(&[figure("tessera", 1.0)]), of(&[figure("tessera", 1.5)])]);

        let message = conflict.unwrap_err().to_string();
        assert!(
            message.contains("start: exec to exit, raw, cold (tessera): 1 and 1.5"),
            "{message}"
        );
        let reports = vec![of(&[figure("QEMU", 1.0)]), of(&[dash("QEMU", "it has none")])];
        let conflict = merge(reports).unwrap_err();
        assert!(matches!(conflict, MergeError::Conflict { count: 1, .. }), "{conflict}");
    }

    #[test]
    fn figures_of_other_versions_hosts_and_supplies_are_other_figures() {
        let changes: [fn(&mut Figure); 4] = [
            |figure| figure.vmm.version = "2".to_owned(),
            |figure| figure.host.kernel = "6.18".to_owned(),
            |figure| figure.supply = Some("ledger".to_owned()),
            |figure| figure.case = "gz, cold".to_owned(),
        ];
        for change in changes {
            let mut other = figure("tessera", 2.0);
            change(&mut other);
            assert_eq!(merge(vec![of(&[figure("tessera", 1.0), other])]).unwrap().figures.len(), 2);
        }
    }

    #[test]
    fn of_several_times_the_median_stays() {
        let at = |value| Figure { method: Method::Time, ..figure("tessera", value) };

        let merged = merge(vec![of(&[at(3.0)]), of(&[at(1.0)]), of(&[at(2.0)])]).unwrap();

        assert_eq!(merged.figures.len(), 1);
        assert_eq!(merged.figures[0].value, Some(2.0));
        assert_eq!(merged.figures[0].samples, [3.0, 1.0, 2.0]);
    }

    #[test]
    fn notes_of_several_files_are_all_there() {
        let of = |text: &str| Report {
            notes: BTreeMap::from([("commit".to_owned(), text.to_owned())]),
            ..Report::default()
        };
        assert_eq!(merge(vec![of("a"), of("b"), of("b")]).unwrap().notes["commit"], "a; b; b");
    }
    /// So many figures, from a case of this number on.
    fn many(from: usize, count: usize) -> Report {
        let cases = (from..from + count).map(|case| case.to_string());
        of(&cases.map(|case| Figure { case, ..figure("tessera", 1.0) }).collect::<Vec<_>>())
    }

    #[test]
    fn what_would_not_be_read_again_is_refused() {
        let most = merge(vec![many(0, MAX_FIGURES), many(0, MAX_FIGURES)]).unwrap();
        assert_eq!(most.figures.len(), MAX_FIGURES);
        let reports = vec![many(0, MAX_FIGURES), many(MAX_FIGURES, 1)];
        assert_eq!(merge(reports), Err(MergeError::Figures(MAX_FIGURES + 1)));

        let notes = |range: std::ops::Range<usize>| Report {
            notes: range.map(|at| (at.to_string(), "text".to_owned())).collect(),
            ..Report::default()
        };
        assert!(merge(vec![notes(0..MAX_NOTES), notes(1..2)]).is_ok());
        let reports = vec![notes(0..MAX_NOTES), notes(MAX_NOTES..MAX_NOTES + 1)];
        assert_eq!(merge(reports), Err(MergeError::Notes(MAX_NOTES + 1)));
    }
}
