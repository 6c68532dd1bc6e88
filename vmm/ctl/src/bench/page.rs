//! The folder of a report: report.json, report.md, report.html, and a file for each plot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::aims::{Marks, verdicts};
use super::chart::draw;
use super::file::{MAX_BYTES, Report};
use super::table::{memory, sections};
use super::{html, markdown};

/// Letters of a plot's name in that of its file.
const NAME: usize = 60;

/// A plot.
pub(super) struct Drawn {
    /// Its file, in the folder of the report.
    pub(super) path: String,
    /// Of that file.
    alone: String,
    /// For a page that has the style sheet.
    pub(super) inline: String,
}

/// Writes a report to a folder, which is made; the files that it has of another are replaced.
///
/// # Errors
/// When they cannot be written, or report.json would have more than [`MAX_BYTES`]. Then nothing is written.
pub fn write(report: &Report, folder: &Path) -> io::Result<()> {
    let json = json(report, MAX_BYTES)?;
    let sections = sections(&report.figures);
    let verdicts = verdicts(&report.figures);
    let marks = Marks::of(&verdicts);
    let mut names = BTreeMap::new();
    let drawn: Vec<_> = sections
        .iter()
        .map(|section| {
            let plots = section.plots.iter().map(|plot| Drawn {
                path: format!("plots/{}.svg", file_name(&[section.bench, plot.name], &mut names)),
                alone: draw(plot, &marks, true),
                inline: draw(plot, &marks, false),
            });
            (section, plots.collect::<Vec<_>>())
        })
        .collect();
    fs::create_dir_all(folder.join("plots"))?;
    for plot in drawn.iter().flat_map(|(_, plots)| plots) {
        fs::write(folder.join(&plot.path), &plot.alone)?;
    }
    fs::write(folder.join("report.json"), json)?;
    fs::write(folder.join("report.md"), markdown::write(report, &drawn, &verdicts))?;
    fs::write(folder.join("report.html"), html::write(report, &drawn, &verdicts))
}

/// A report as a file of at most so many bytes: in lines for people, where there is room for that.
fn json(report: &Report, most: u64) -> io::Result<String> {
    let pretty = serde_json::to_string_pretty(report).map_err(io::Error::other)? + "\n";
    if pretty.len() as u64 <= most {
        return Ok(pretty);
    }
    let compact = serde_json::to_string(report).map_err(io::Error::other)? + "\n";
    match compact.len() as u64 <= most {
        true => Ok(compact),
        false => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it would have more than {} MiB: give the files of one run", most >> 20),
        )),
    }
}

/// What the figures were found on, a line each: the versions of the VMMs, then the machines.
pub(super) fn hosts(report: &Report) -> Vec<String> {
    let vmms: BTreeSet<String> = report
        .figures
        .iter()
        .map(|figure| format!("{}: {}", figure.vmm.name, figure.vmm.version))
        .collect();
    let hosts: BTreeSet<_> = report.figures.iter().map(|figure| &figure.host).collect();
    let hosts = hosts.into_iter().map(|host| match host.cpus {
        0 => format!("machine: {}", host.machine),
        cpus => format!(
            "host: {}; Linux {}; {}; {cpus} CPU",
            host.machine,
            host.kernel,
            memory(host.memory_mib)
        ),
    });
    vmms.into_iter().chain(hosts).collect()
}

/// A name of a file that no other plot has. `taken` has the names so far, each with how many plots wanted it.
fn file_name(words: &[&str], taken: &mut BTreeMap<String, usize>) -> String {
    let joined = words.join("-").to_lowercase();
    let plain: String = joined
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    let parts: Vec<&str> = plain.split('-').filter(|part| !part.is_empty()).collect();
    let mut name: String = parts.join("-").chars().take(NAME).collect();
    if name.is_empty() {
        name = "plot".to_owned();
    }
    let mut free = name.clone();
    let mut wanted = taken.get(&name).copied().unwrap_or_default();
    while taken.contains_key(&free) {
        wanted += 1;
        free = format!("{name}-{wanted}");
    }
    taken.insert(name, wanted.max(1));
    taken.entry(free.clone()).or_insert(1);
    free
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use roxmltree::Document;

    use super::super::file::{SCHEMA, parse, read};
    use super::super::samples::{at_most, dash, figure};
    use super::*;
    use crate::bench::Figure;

    fn report() -> Report {
        let own = Figure { aim: at_most(0.5, "QEMU", None), ..figure("tessera", 10.0) };
        let mut other = dash("QEMU", "<none> | & _nothing_");
        other.case = "restore".to_owned();
        Report {
            schema: SCHEMA,
            notes: [("commit".to_owned(), "<b>".to_owned())].into(),
            figures: vec![own, figure("QEMU", 30.0), other],
        }
    }

    #[test]
    fn a_folder_has_all_forms_and_its_json_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/report");
        write(&report(), &out).unwrap();
        write(&report(), &out).unwrap();

        assert_eq!(read(&out.join("report.json")).unwrap(), report());
        let text = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        let (page, markdown) = (text("report.html"), text("report.md"));
        let svg = text("plots/start-exec-to-exit.svg");
        Document::parse(&svg).unwrap();
        assert!(markdown.contains("(plots/start-exec-to-exit.svg)"), "{markdown}");
        assert!(
            markdown.contains("| 0.333 × | at most 0.5 × QEMU | pass, 33.3 % below |"),
            "{markdown}"
        );
        assert!(markdown.contains("– QEMU: \\<none\\> \\| \\& \\_nothing\\_"), "{markdown}");
        assert!(page.contains("<td class=\"met\">pass, 33.3 % below</td>"), "{page}");
        assert!(page.contains("– QEMU: &lt;none&gt; | &amp; _nothing_"), "{page}");
        assert!(!page.contains("<b>") && !page.contains("<none>"), "{page}");
    }

    #[test]
    fn the_file_of_a_report_is_never_more_than_is_read() {
        let pretty = json(&report(), MAX_BYTES).unwrap();
        let compact = json(&report(), pretty.len() as u64 - 1).unwrap();

        assert!(compact.len() < pretty.len());
        for text in [&pretty, &compact] {
            assert_eq!(parse(Path::new("file"), text.as_bytes()).unwrap(), report());
        }
        let error = json(&report(), compact.len() as u64 - 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn the_page_is_well_formed_but_for_tags_that_html_leaves_open() {
        let folder = tempfile::tempdir().unwrap();
        write(&report(), folder.path()).unwrap();

        let page = fs::read_to_string(folder.path().join("report.html")).unwrap();

        let page = page.strip_prefix("<!doctype html>").unwrap();
        let page = page.replace("<meta charset=\"utf-8\">", "");
        let page = page.replace("<meta name=\"viewport\" content=\"width=device-width\">", "");
        Document::parse(&page).unwrap();
    }

    /// As many VMMs as figures, each with an aim and a case, or each a plot, of its own.
    fn crowd(count: usize, change: fn(&mut Figure, String)) -> Report {
        let one = |at: usize| {
            let mut one = figure(&format!("vmm {at}"), at as f64);
            one.aim = at_most(0.5, "best peer", None);
            change(&mut one, at.to_string());
            one
        };
        Report { schema: SCHEMA, figures: (0..count).map(one).collect(), ..Report::default() }
    }

    /// With a look at each row and column for each figure this would take minutes, and the page hundreds of MiB.
    #[test]
    fn a_report_of_thousands_of_vmms_is_as_large_as_what_it_shows() {
        let changes: [fn(&mut Figure, String); 3] = [
            |figure, at| figure.case = at,
            |figure, at| figure.setting.options = at,
            |figure, at| figure.name = format!("one of many names {at}"),
        ];
        for change in changes {
            let bytes = [500, 2000].map(|count| {
                let folder = tempfile::tempdir().unwrap();
                write(&crowd(count, change), folder.path()).unwrap();
                let length = |name: &str| folder.path().join(name).metadata().unwrap().len();
                length("report.html") + length("report.md")
            });
            assert!(bytes[1] < 5 * bytes[0], "{bytes:?}");
        }
    }

    #[test]
    fn names_of_files_are_plain_and_differ() {
        let mut taken = BTreeMap::new();
        let mut name = |words: &[&str]| file_name(words, &mut taken);

        assert_eq!(name(&["io", "TCP to the host"]), "io-tcp-to-the-host");
        assert_eq!(name(&["io", "TCP: to the host!"]), "io-tcp-to-the-host-2");
        assert_eq!(name(&["../..", "/"]), "plot");
        assert_eq!(name(&["../..", "."]), "plot-2");
    }
}
