//! Figures in sections, plots and rows, in the order in which they were found.

use super::figure::{Figure, Method, Setting};

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
        let mut lines = Vec::new();
        for figure in self.rows.iter().flat_map(|row| row.cells.iter().flatten()) {
            if let Some(cannot) = &figure.cannot {
                let line = format!("– {}: {cannot}", figure.vmm.label());
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        lines
    }
}

/// Figures beside each other.
pub(super) struct Row<'a> {
    pub(super) label: String,
    /// One a column, where there is one.
    pub(super) cells: Vec<Option<&'a Figure>>,
}

/// What figures must share to be in a row.
fn is_beside(one: &Figure, other: &Figure) -> bool {
    one.case == other.case
        && one.setting.memory_mib == other.setting.memory_mib
        && one.setting.vcpus == other.setting.vcpus
        && one.host == other.host
        && (one.supply.is_none() || other.supply.is_none() || one.supply == other.supply)
}

/// All figures, in sections.
pub(super) fn sections(figures: &[Figure]) -> Vec<Section<'_>> {
    let mut benches: Vec<&str> = Vec::new();
    for figure in figures {
        if !benches.contains(&figure.bench.as_str()) {
            benches.push(&figure.bench);
        }
    }
    let of = |bench: &str| figures.iter().filter(|figure| figure.bench == bench).collect();
    benches.into_iter().map(|bench| Section { bench, plots: plots(of(bench)) }).collect()
}

fn plots(figures: Vec<&Figure>) -> Vec<Plot<'_>> {
    let kind = |figure: &Figure| (figure.name.clone(), figure.unit.clone(), figure.method);
    let mut kinds: Vec<Vec<&Figure>> = Vec::new();
    for figure in figures {
        match kinds.iter_mut().find(|known| kind(known[0]) == kind(figure)) {
            Some(known) => known.push(figure),
            None => kinds.push(vec![figure]),
        }
    }
    kinds.into_iter().map(plot).collect()
}

fn plot(figures: Vec<&Figure>) -> Plot<'_> {
    let first = figures[0];
    let (name, unit, method) = (&first.name, &first.unit, first.method);
    let mut vmms: Vec<(String, &str)> = Vec::new();
    let vmm = |figure: &Figure| figure.vmm.label();
    for figure in &figures {
        let found = (vmm(figure), figure.vmm.version.as_str());
        if !vmms.contains(&found) {
            vmms.push(found);
        }
    }
    let mut rows: Vec<Vec<Option<&Figure>>> = Vec::new();
    for figure in &figures {
        let column = vmms.iter().position(|(label, version)| {
            (vmm(figure), figure.vmm.version.as_str()) == (label.clone(), *version)
        });
        let column = column.unwrap_or_default();
        let fits = |row: &&mut Vec<Option<&Figure>>| {
            row[column].is_none() && row.iter().flatten().all(|other| is_beside(figure, other))
        };
        match rows.iter_mut().find(fits) {
            Some(row) => row[column] = Some(figure),
            None => {
                let mut row = vec![None; vmms.len()];
                row[column] = Some(*figure);
                rows.push(row);
            }
        }
    }
    let firsts: Vec<&Figure> =
        rows.iter().filter_map(|row| row.iter().flatten().next().copied()).collect();
    let differing = Differing::between(&firsts);
    let labels: Vec<String> = firsts.iter().map(|first| differing.label(first, &firsts)).collect();
    let rows = labels.into_iter().zip(rows).map(|(label, cells)| Row { label, cells }).collect();
    let is_several = |label: &String| vmms.iter().filter(|(other, _)| other == label).count() > 1;
    let columns = vmms
        .iter()
        .map(|(label, version)| match is_several(label) {
            true => format!("{label} {version}"),
            false => label.clone(),
        })
        .collect();
    Plot { name, unit, method, columns, rows }
}

/// What the rows of a plot differ in: it is in their labels.
struct Differing {
    guest: bool,
    supply: bool,
    host: bool,
}

impl Differing {
    /// The first figure of each row.
    fn between(firsts: &[&Figure]) -> Self {
        let any = |differs: &dyn Fn(&Figure, &Figure) -> bool| {
            firsts.windows(2).any(|pair| differs(pair[0], pair[1]))
        };
        Self {
            guest: any(&|one, other| {
                (one.setting.memory_mib, one.setting.vcpus)
                    != (other.setting.memory_mib, other.setting.vcpus)
            }),
            supply: any(&|one, other| one.supply != other.supply),
            host: any(&|one, other| one.host != other.host),
        }
    }

    fn label(&self, own: &Figure, firsts: &[&Figure]) -> String {
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
        if firsts.iter().any(|other| is_beside(own, other) && other.setting.options != *options) {
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
        let values = |row: &Row<'_>| {
            row.cells.iter().map(|cell| cell.and_then(|cell| cell.value)).collect::<Vec<_>>()
        };
        assert_eq!(values(&exit.rows[0]), [Some(1.0), Some(2.0)]);
        assert_eq!(values(&exit.rows[1]), [None, Some(3.0)]);
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
