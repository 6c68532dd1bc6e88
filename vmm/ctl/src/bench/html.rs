//! A report as one HTML page that needs no other file.

use std::fmt::Write as _;

use super::aims::{Outcome, Verdict};
use super::chart::{escape, style};
use super::file::Report;
use super::markdown::in_table;
use super::number::whole;
use super::page::{Drawn, hosts};
use super::table::{Plot, Section};

const SHEET: &str = "\
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--less:#5a626c;--line:#d4d9df;--met:#2f6b3a;--missed:#b3261e}\
@media screen and (prefers-color-scheme:dark){:root{--back:#16191d;--text:#e6e9ed;--less:#9aa4b0;--line:#343b44;\
--met:#86c06f;--missed:#ff8a80}}\
body{font:15px/1.5 system-ui,'DejaVu Sans',sans-serif;background:var(--back);color:var(--text);max-width:900px;\
margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:.6em 0 1.6em;font-size:13px}\
th,td{border-bottom:1px solid var(--line);padding:.25em .8em .25em 0;text-align:left;vertical-align:top}\
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
.met{color:var(--met)}.missed{color:var(--missed);font-weight:600}.unknown,.small{color:var(--less)}\
svg{max-width:100%;height:auto;display:block}summary{cursor:pointer;color:var(--less)}\
h2{border-bottom:1px solid var(--line);margin-top:2em}.wide{overflow-x:auto}\
@media print{body{max-width:none;margin:0}svg,tr{break-inside:avoid}h2,h3{break-after:avoid}}";

/// The page.
pub(super) fn write(
    report: &Report,
    sections: &[(&Section<'_>, Vec<Drawn>)],
    verdicts: &[Verdict<'_>],
) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Tessera: benchmarks</title>\
         <style>{SHEET}{}</style></head><body>\n<h1>Benchmarks</h1>\n<ul class=\"small\">\n",
        style()
    );
    let notes = report.notes.iter().map(|(name, note)| format!("{name}: {note}"));
    for line in notes.chain(hosts(report)) {
        let _ = writeln!(page, "<li>{}</li>", escape(&line));
    }
    page.push_str("</ul>\n<p class=\"small\">A dash is what a VMM cannot do. Raw data is at the end, and in report.json.</p>\n");
    aims(&mut page, verdicts);
    for (section, drawn) in sections {
        let _ = writeln!(page, "<h2>{}</h2>", escape(section.bench));
        for (plot, drawn) in section.plots.iter().zip(drawn) {
            page.push_str(&drawn.inline);
            table(&mut page, plot);
        }
    }
    raw(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

fn aims(page: &mut String, verdicts: &[Verdict<'_>]) {
    if verdicts.is_empty() {
        return;
    }
    page.push_str("<h2>Aims</h2>\n<table><tr><th>figure</th><th class=\"n\">found</th><th>aim</th><th></th></tr>\n");
    for verdict in verdicts {
        let class = match verdict.outcome {
            Outcome::Met => "met",
            Outcome::Missed => "missed",
            Outcome::Unknown => "unknown",
        };
        let [figure, found, wanted, says] = [
            verdict.figure.key().to_string(),
            verdict.found(),
            verdict.wanted(),
            verdict.to_string(),
        ]
        .map(|text| escape(&text));
        let _ = writeln!(
            page,
            "<tr><td>{figure}</td><td class=\"n\">{found}</td><td>{wanted}</td><td class=\"{class}\">{says}</td></tr>"
        );
    }
    page.push_str("</table>\n");
}

fn table(page: &mut String, plot: &Plot<'_>) {
    let _ = write!(page, "<div class=\"wide\"><table><tr><th>{}</th>", escape(plot.unit));
    let (heads, lines) = plot.table(in_table);
    for head in heads {
        let _ = write!(page, "<th class=\"n\">{}</th>", escape(head));
    }
    page.push_str("</tr>\n");
    for (label, cells) in lines {
        let _ = write!(page, "<tr><td>{}</td>", escape(label));
        for cell in cells {
            let _ = write!(page, "<td class=\"n\">{}</td>", escape(&cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
    for dash in plot.dashes() {
        let _ = writeln!(page, "<p class=\"small\">{}</p>", escape(&dash));
    }
}

/// All figures with all their digits.
fn raw(page: &mut String, report: &Report) {
    page.push_str("<h2>Raw data</h2>\n<details><summary>");
    let _ =
        write!(page, "{} figures</summary><div class=\"wide\"><table><tr>", report.figures.len());
    for head in
        ["figure", "version", "value", "unit", "method", "supply", "guest", "options", "made of"]
    {
        let _ = write!(page, "<th>{head}</th>");
    }
    page.push_str("</tr>\n");
    for figure in &report.figures {
        let samples: Vec<String> = figure.samples.iter().copied().map(whole).collect();
        let guest = &figure.setting;
        let cells = [
            figure.key().to_string(),
            figure.vmm.version.clone(),
            figure.value.map_or_else(|| "–".to_owned(), whole),
            figure.unit.clone(),
            figure.method.words().to_owned(),
            figure.supply.clone().unwrap_or_default(),
            format!("{} MiB, {} vCPU", guest.memory_mib, guest.vcpus),
            guest.options.clone(),
            samples.join(" "),
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = writeln!(page, "<tr>{cells}</tr>");
    }
    page.push_str("</table></div></details>\n");
}
