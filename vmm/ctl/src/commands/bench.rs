//! Figures of benches: a report of them, and what has moved between two.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use vmm::error::{chain, printable};

use crate::bench::model::figures::{self, Plan};
use crate::bench::model::validation::{Validation, validate};
use crate::bench::{
    Change, Comparison, Outcome, Report, SCHEMA, compare, line, merge, read, verdicts, write,
};
use crate::cli::{BenchCommand, BenchCompareArgs, BenchModelArgs, BenchReportArgs};
use crate::failure::Failure;
use crate::output::{Form, note, print, say};

/// Two reports differ, or the model and what was measured.
const EXIT_MOVED: u8 = 1;

/// Does what is asked; the exit status.
///
/// # Errors
/// When a file is no such file, or cannot be written.
pub fn bench(command: &BenchCommand, form: Form) -> Result<u8, Failure> {
    match command {
        BenchCommand::Report(args) => report(args, form).map(|()| 0),
        BenchCommand::Compare(args) => differences(args, form),
        BenchCommand::Model(args) => match &args.validate {
            Some(report) => compared(report, args.tolerance, form),
            None => model(args).map(|()| 0),
        },
    }
}

/// Prints figures as `bench report` reads them, and how long they took as messages: that is not the same each time.
fn model(args: &BenchModelArgs) -> Result<(), Failure> {
    let &BenchModelArgs { hosts, modelled, days, load, seed, .. } = args;
    let plan = Plan { hosts, modelled: modelled.min(hosts), days, load, seed };
    let start = Instant::now();
    let found =
        figures::model(&plan, note).map_err(|error| Failure::refused(printable(&chain(&error))))?;
    let lines: String = found.figures.iter().map(|figure| line(figure) + "\n").collect();
    // It stands at the top of a report.
    let best = json!({ "schema": SCHEMA, "notes": { "model": found.best }, "figures": [] });
    print(&format!("{lines}{best}\n"))?;
    say(&found.best);
    let (took, (placed, refused)) = (start.elapsed(), found.vms);
    let each = took.as_nanos() / u128::from(found.reserved.max(1));
    say(&format!(
        "{placed} VMs placed, {refused} refused; {} events and {} reserved chunks in {:.1} s, {each} ns a chunk",
        found.events,
        found.reserved,
        took.as_secs_f64()
    ));
    Ok(())
}

/// Shows what a bench measured beside what the model says.
fn compared(report: &Path, tolerance: f64, form: Form) -> Result<u8, Failure> {
    let found = validate(&load(report)?, tolerance)
        .map_err(|error| Failure::data(printable(&chain(&error))))?;
    form.show(&found, pairs)?;
    Ok(if found.disagree() > 0 { EXIT_MOVED } else { 0 })
}

fn pairs(found: &Validation) -> String {
    let mut text = String::new();
    for pair in &found.pairs {
        let agrees = if pair.agrees { "agrees" } else { "is off" };
        let [measured, modelled] = [pair.measured, pair.modelled].map(number);
        let percent =
            pair.percent.map_or_else(String::new, |percent| format!(" ({percent:+.2} %)"));
        let unit = pair.unit;
        let figure = printable(&pair.figure);
        text += &format!(
            "{agrees}  {figure}: measured {measured}, modelled {modelled} {unit}{percent}\n"
        );
    }
    let (all, off) = (found.pairs.len(), found.disagree());
    text + &format!("{off} of {all} figures are off by more than {} %\n", found.tolerance)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

fn load(path: &Path) -> Result<Report, Failure> {
    read(path).map_err(|error| Failure::data(printable(&chain(&error))))
}

fn report(args: &BenchReportArgs, form: Form) -> Result<(), Failure> {
    let notes: BTreeMap<String, String> = args.notes.iter().cloned().collect();
    let mut reports = vec![Report { notes, ..Report::default() }];
    for file in &args.files {
        reports.push(load(file)?);
    }
    let whole = merge(reports).map_err(|error| Failure::data(printable(&error.to_string())))?;
    write(&whole, &args.out).map_err(|error| {
        Failure::refused(format!(
            "cannot write the report to {:?} ({error}): may this user write there?",
            args.out
        ))
    })?;
    let verdicts = verdicts(&whole.figures);
    let count = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let (met, missed) = (count(Outcome::Met), count(Outcome::Missed));
    let page = printable(&args.out.join("report.html").display().to_string());
    let answer = json!({
        "figures": whole.figures.len(),
        "aims_met": met,
        "aims_missed": missed,
        "aims_unknown": count(Outcome::Unknown),
        "page": page,
    });
    form.show(&answer, |_| {
        let mut text = String::new();
        for verdict in &verdicts {
            let line = format!(
                "{}: {}; aim: {}: {verdict}",
                verdict.figure.key(),
                verdict.found(),
                verdict.wanted()
            );
            text += &format!("{}\n", printable(&line));
        }
        let (figures, aims) = (whole.figures.len(), verdicts.len());
        text + &format!("{figures} figures; {met} of {aims} aims met, {missed} missed: {}\n", page)
    })
}

fn differences(args: &BenchCompareArgs, form: Form) -> Result<u8, Failure> {
    let [before, after] = [load(&args.before)?, load(&args.after)?];
    let comparison = compare(&before, &after, args.tolerance);
    form.show(&comparison, table)?;
    let is_moved = comparison
        .moved
        .iter()
        .any(|moved| !args.worse || matches!(moved.change, Change::Worse | Change::Gone));
    Ok(if is_moved { EXIT_MOVED } else { 0 })
}

fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    for moved in &comparison.moved {
        let change = match moved.change {
            Change::Better => "better",
            Change::Worse => "worse",
            Change::Gone => "gone",
            Change::New => "new",
        };
        let percent =
            moved.percent.map_or_else(String::new, |percent| format!(" ({percent:+.2} %)"));
        let line = format!(
            "{change:6}  {}: {} -> {} {}{percent}",
            moved.figure,
            number(moved.before),
            number(moved.after),
            moved.unit
        );
        text += &format!("{}\n", printable(&line));
    }
    let (moved, both) = (comparison.moved.len(), comparison.in_both);
    text + &format!("{moved} of the figures moved, came or went; {both} are in both\n")
}
