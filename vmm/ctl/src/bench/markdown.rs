//! A report as Markdown, its plots beside it.

use std::fmt::Write as _;

use super::aims::Verdict;
use super::figure::Figure;
use super::file::Report;
use super::number::short;
use super::page::{Drawn, hosts};
use super::table::{Plot, Section};

/// Text in a line or in a cell of a table.
fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if "\\`*_{}[]<>#|&~".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// The page.
pub(super) fn write(
    report: &Report,
    sections: &[(&Section<'_>, Vec<Drawn>)],
    verdicts: &[Verdict<'_>],
) -> String {
    let mut text = "# Benchmarks\n\n".to_owned();
    for (name, note) in &report.notes {
        let _ = writeln!(text, "- {}: {}", plain(name), plain(note));
    }
    for host in hosts(report) {
        let _ = writeln!(text, "- {}", plain(&host));
    }
    text.push_str("\nRaw data: [report.json](report.json). A dash is what a VMM cannot do.\n");
    aims(&mut text, verdicts);
    for (section, drawn) in sections {
        let _ = writeln!(text, "\n## {}", plain(section.bench));
        for (plot, drawn) in section.plots.iter().zip(drawn) {
            let _ = writeln!(
                text,
                "\n### {}\n\n![{}]({})\n",
                plain(plot.name),
                plain(plot.name),
                drawn.path
            );
            table(&mut text, plot);
        }
    }
    text
}

fn aims(text: &mut String, verdicts: &[Verdict<'_>]) {
    if verdicts.is_empty() {
        return;
    }
    text.push_str("\n## Aims\n\n| figure | found | aim | |\n|---|---|---|---|\n");
    for verdict in verdicts {
        let cells = [
            verdict.figure.key().to_string(),
            verdict.found(),
            verdict.wanted(),
            verdict.to_string(),
        ];
        let _ = writeln!(text, "| {} |", cells.map(|cell| plain(&cell)).join(" | "));
    }
}

fn table(text: &mut String, plot: &Plot<'_>) {
    let (heads, lines) = plot.table(in_table);
    let heads: Vec<String> = heads.into_iter().map(plain).collect();
    let _ = writeln!(text, "| {} | {} |", plain(plot.unit), heads.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(heads.len()));
    for (label, cells) in lines {
        let cells: Vec<String> = cells.iter().map(|cell| plain(cell)).collect();
        let _ = writeln!(text, "| {} | {} |", plain(label), cells.join(" | "));
    }
    for dash in plot.dashes() {
        let _ = writeln!(text, "\n{}", plain(&dash));
    }
    let _ = writeln!(text, "\nFound by: {}.", plot.method.words());
}

/// A figure in a table: a dash where there is none, and nothing where it was not measured.
pub(super) fn in_table(figure: Option<&Figure>) -> String {
    let value = |figure: &Figure| figure.value.map_or_else(|| "–".to_owned(), short);
    figure.map_or_else(String::new, value)
}
