//! Figures in sections, plots and rows, in the order in which they were found.
//!
//! A report may have thousands of figures, all of which may differ in all: nothing here takes a look at each row and column
//! for each figure.

use std::collections::{BTreeMap, BTreeSet};

use super::figure::{Figure, Host, Method, Setting};

/// Columns of a table. With more, the table is a list: it could not be read, and would be as large as the square of what it
/// shows.
pub(super) const MAX_COLUMNS: usize = 16;

/// A bench.
pub(super) struct Section<'a> {
    pub(super) bench: &'a str,
    pub(super) plots: Vec<Plot<'a>>,
}

/// Figures of one kind: a table, and a plot.
pub(super) struct Plot<'a> {
    pub(super) name: &'a str,
    pub(super) unit: &'a str,
    pub(super) method: Method,
    /// One a VMM; of several versions, one a version.
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Row<'a>>,
}

impl Plot<'_> {
    /// Its dashes, and what each VMM says for them.
    pub(super) fn dashes(&self) -> Vec<String> {
        let cannot = |figure: &Figure| {
            let cannot = figure.cannot.as_ref()?;
            Some(format!("– {}: {cannot}", figure.vmm.label()))
        };
        let mut seen = BTreeSet::new();
        let lines = self.figures().filter_map(cannot);
        lines.filter(|line| seen.insert(line.clone())).collect()
    }

    /// All figures of it, row by row.
    pub(super) fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.rows.iter().flat_map(|row| row.cells.values().copied())
    }

    /// The heads of its table, beside that of the labels, and its lines: a label, and a cell for each head.
    pub(super) fn table<'a>(
        &'a self,
        cell: impl Fn(Option<&Figure>) -> String,
    ) -> (Vec<&'a str>, Vec<(&'a str, Vec<String>)>) {
        if self.columns.len() > MAX_COLUMNS {
            let line = |row: &'a Row<'_>, column: &usize, figure| {
                (row.label.as_str(), vec![self.columns[*column].clone(), cell(Some(figure))])
            };
            let lines = self.rows.iter().flat_map(|row| {
                row.cells.iter().map(move |(column, figure)| (row, column, *figure))
            });
            let lines = lines.map(|(row, column, figure)| line(row, column, figure)).collect();
            return (vec!["VMM", "value"], lines);
        }
        let cells = |row: &Row<'_>| {
            (0..self.columns.len())
                .map(|column| cell(row.cells.get(&column).copied()))
                .collect::<Vec<_>>()
        };
        let lines = self.rows.iter().map(|row| (row.label.as_str(), cells(row))).collect();
        (self.columns.iter().map(String::as_str).collect(), lines)
    }
}

/// Figures beside each other.
pub(super) struct Row<'a> {
    pub(super) label: String,
    /// By column.
    pub(super) cells: BTreeMap<usize, &'a Figure>,
}

/// What figures must share to be in a row, beside their supply.
type Place<'a> = (&'a str, u64, u32, &'a Host);

fn place(figure: &Figure) -> Place<'_> {
    (figure.case.as_str(), figure.setting.memory_mib, figure.setting.vcpus, &figure.host)
}

/// Whether figures of one place may be in a row.
fn is_beside(one: &Figure, other: &Figure) -> bool {
    one.supply.is_none() || other.supply.is_none() || one.supply == other.supply
}

/// Groups of the same key, in the order of their first.
fn groups<'a, K: Ord>(
    figures: impl IntoIterator<Item = &'a Figure>,
    key: impl Fn(&'a Figure) -> K,
) -> Vec<Vec<&'a Figure>> {
    let mut groups: Vec<Vec<&Figure>> = Vec::new();
    let mut known = BTreeMap::new();
    for figure in figures {
        let at = *known.entry(key(figure)).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.push(figure),
            None => groups.push(vec![figure]),
        }
    }
    groups
}

/// All figures, in sections.
pub(super) fn sections(figures: &[Figure]) -> Vec<Section<'_>> {
    let benches = groups(figures, |figure| figure.bench.as_str());
    benches.into_iter().map(|of| Section { bench: &of[0].bench, plots: plots(of) }).collect()
}

fn plots(figures: Vec<&Figure>) -> Vec<Plot<'_>> {
    let kinds = groups(figures, |figure| (&figure.name, &figure.unit, figure.method));
    kinds.into_iter().map(plot).collect()
}

fn plot(figures: Vec<&Figure>) -> Plot<'_> {
    let first = figures[0];
    let (name, unit, method) = (&first.name, &first.unit, first.method);
    let vmms = groups(figures.iter().copied(), vmm);
    let columns: BTreeMap<(String, &str), usize> =
        vmms.iter().enumerate().map(|(column, of)| (vmm(of[0]), column)).collect();
    let mut rows: Vec<BTreeMap<usize, &Figure>> = Vec::new();
    let mut of_place: BTreeMap<Place<'_>, Vec<usize>> = BTreeMap::new();
    for figure in figures {
        let column = columns.get(&vmm(figure)).copied().unwrap_or_default();
        let known = of_place.entry(place(figure)).or_default();
        // Those of a row that have a supply have the same: one look finds it.
        let fits = |row: &&usize| {
            let cells = &rows[**row];
            let other = cells.values().find(|other| other.supply.is_some());
            !cells.contains_key(&column) && other.is_none_or(|other| is_beside(figure, other))
        };
        match known.iter().find(fits).copied() {
            Some(row) => {
                rows[row].insert(column, figure);
            }
            None => {
                known.push(rows.len());
                rows.push(BTreeMap::from([(column, figure)]));
            }
        }
    }
    let firsts: Vec<&Figure> = rows.iter().filter_map(|row| row.values().next().copied()).collect();
    let differing = Differing::between(&firsts);
    let labels: Vec<String> = firsts.iter().map(|first| differing.label(first)).collect();
    let rows = labels.into_iter().zip(rows).map(|(label, cells)| Row { label, cells }).collect();
    Plot { name, unit, method, columns: heads(&vmms), rows }
}

/// What has a column.
fn vmm(figure: &Figure) -> (String, &str) {
    (figure.vmm.label(), figure.vmm.version.as_str())
}

/// The names of the columns: with their versions, where there are several of a VMM.
fn heads(vmms: &[Vec<&Figure>]) -> Vec<String> {
    let mut labels: BTreeMap<String, usize> = BTreeMap::new();
    for of in vmms {
        *labels.entry(vmm(of[0]).0).or_default() += 1;
    }
    let head = |of: &Vec<&Figure>| match vmm(of[0]) {
        (label, version) if labels.get(&label).is_some_and(|count| *count > 1) => {
            format!("{label} {version}")
        }
        (label, _) => label,
    };
    vmms.iter().map(head).collect()
}

/// What the rows of a plot differ in: it is in their labels.
struct Differing<'a> {
    guest: bool,
    supply: bool,
    host: bool,
    /// The options and supplies of each place.
    options: BTreeMap<Place<'a>, BTreeSet<(&'a str, Option<&'a str>)>>,
}

impl<'a> Differing<'a> {
    /// The first figure of each row.
    fn between(firsts: &[&'a Figure]) -> Self {
        let any = |differs: &dyn Fn(&Figure, &Figure) -> bool| {
            firsts.windows(2).any(|pair| differs(pair[0], pair[1]))
        };
        let mut options: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for first in firsts {
            let own = (first.setting.options.as_str(), first.supply.as_deref());
            options.entry(place(first)).or_default().insert(own);
        }
        Self {
            options,
            guest: any(&|one, other| {
                (one.setting.memory_mib, one.setting.vcpus)
                    != (other.setting.memory_mib, other.setting.vcpus)
            }),
            supply: any(&|one, other| one.supply != other.supply),
            host: any(&|one, other| one.host != other.host),
        }
    }

    fn label(&self, own: &'a Figure) -> String {
        let Setting { memory_mib, vcpus, options } = &own.setting;
        let mut words = vec![own.case.clone()];
        if *memory_mib > 0 && (own.case.is_empty() || self.guest) {
            words.push(format!("{}, {vcpus} vCPU", memory(*memory_mib)));
        }
        if self.supply {
            words.extend(own.supply.clone());
        }
        if self.host {
            words.push(format!("host of {}", memory(own.host.memory_mib)));
        }
        // The same but for options: they are in no other word.
        let differs = |(other, supply): &(&str, Option<&str>)| {
            let own = own.supply.as_deref();
            (own.is_none() || supply.is_none() || *supply == own) && other != options
        };
        if self.options.get(&place(own)).is_some_and(|known| known.iter().any(differs)) {
            words.push(options.clone());
        }
        words.retain(|word| !word.is_empty());
        match words.is_empty() {
            true => own.vmm.label(),
            false => words.join(", "),
        }
    }
}

/// So many MiB.
pub(super) fn memory(mib: u64) -> String {
    match mib {
        0 => "no guest memory".to_owned(),
        mib if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::samples::figure;
    use super::*;

    #[test]
    fn figures_of_one_case_are_a_row_and_of_one_vmm_a_column() {
        let mut other_case = figure("QEMU", 3.0);
        other_case.case = "gz, cold".to_owned();
        let mut other_name = figure("QEMU", 4.0);
        other_name.name = "exec to init".to_owned();
        let figures = [figure("tessera", 1.0), figure("QEMU", 2.0), other_case, other_name];

        let sections = sections(&figures);

        assert_eq!(sections.len(), 1);
        let [exit, init] = sections[0].plots.as_slice() else { panic!("two names, two plots") };
        assert_eq!((exit.name, init.name), ("exec to exit", "exec to init"));
        assert_eq!(exit.columns, ["tessera", "QEMU"]);
        let rows: Vec<_> = exit.rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(rows, ["raw, cold", "gz, cold"]);
        let (heads, lines) = exit.table(|cell| format!("{:?}", cell.and_then(|cell| cell.value)));
        assert_eq!(heads, ["tessera", "QEMU"]);
        assert_eq!(lines[0].1, ["Some(1.0)", "Some(2.0)"]);
        assert_eq!(lines[1].1, ["None", "Some(3.0)"]);
    }

    #[test]
    fn what_differs_between_rows_is_in_their_labels() {
        let mut four = figure("tessera", 2.0);
        four.setting.vcpus = 4;
        let mut large = figure("tessera", 3.0);
        large.setting.memory_mib = 1024;
        let mut sandboxed = figure("tessera", 4.0);
        sandboxed.setting.options = "--sandbox".to_owned();
        let figures = [figure("tessera", 1.0), four, large, sandboxed];

        let sections = sections(&figures);

        let rows: Vec<_> = sections[0].plots[0].rows.iter().map(|row| &row.label).collect();
        let expected = [
            "raw, cold, 256 MiB, 1 vCPU",
            "raw, cold, 256 MiB, 4 vCPU",
            "raw, cold, 1 GiB, 1 vCPU",
            "raw, cold, 256 MiB, 1 vCPU, --sandbox",
        ];
        assert_eq!(rows, expected.each_ref());
    }

    #[test]
    fn two_versions_are_two_columns() {
        let mut newer = figure("tessera", 2.0);
        newer.vmm.version = "2".to_owned();

        let figures = [figure("tessera", 1.0), newer];

        assert_eq!(sections(&figures)[0].plots[0].columns, ["tessera 1", "tessera 2"]);
    }
}
