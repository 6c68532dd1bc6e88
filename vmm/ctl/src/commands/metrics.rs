//! Counters: those of one VM for people and programs, those of all for Prometheus.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use vmm::api::model::State;
use vmm::prometheus::Text;
use vmm::registry::Vm;

use crate::cli::MetricsArgs;
use crate::failure::Failure;
use crate::fleet::{Silence, ask_all, connect, silent};
use crate::output::{Form, print};
use crate::process::Usage;
use crate::report;
use crate::target::{Target, live_vms};

/// Shows or writes them.
///
/// # Errors
/// When a VM cannot be reached, or the file not be written.
pub fn metrics(args: &MetricsArgs, form: Form) -> Result<(), Failure> {
    if let Some(vm) = &args.vm {
        return form.show(&Target::find(vm)?.client()?.metrics()?, report::metrics);
    }
    let vms = live_vms()?;
    let text = merged(&ask_all(&vms, figures));
    match &args.output {
        None => print(&text),
        Some(path) => replace(path, &text).map_err(|error| {
            Failure::refused(format!(
                "cannot write {path:?} ({error}): does its directory exist, and may this user write to it?"
            ))
        }),
    }
}

/// Those of one VM, as lines.
fn figures(vm: &Vm) -> String {
    let name = [("vm", vm.record.name.as_str())];
    let mut text = Text::default();
    let answer = ask(vm);
    let state = answer.as_ref().map(|(state, _)| *state);
    text.add_all(&json!({ "up": state.is_ok(), "paused": state == Ok(State::Paused) }), &name);
    if let Some(usage) = Usage::of(&vm.record) {
        text.add("process_resident_bytes", &name, usage.resident.get());
        text.add("process_cpu_seconds_total", &name, usage.cpu.as_secs_f64());
    }
    if let Ok((_, figures)) = answer {
        text.add_all(&figures, &name);
    }
    text.finish()
}

fn ask(vm: &Vm) -> Result<(State, Value), Silence> {
    let mut client = connect(vm)?;
    let state = client.instance().map_err(silent)?.state;
    Ok((state, client.metrics().map_err(silent)?))
}

/// One text of several, in which all lines of a name follow each other, as the format has it.
fn merged(texts: &[String]) -> String {
    let mut names: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for text in texts {
        let mut kind = "";
        for line in text.lines() {
            if line.starts_with('#') {
                kind = line;
                continue;
            }
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            names.entry(name).or_insert((kind, Vec::new())).1.push(line);
        }
    }
    let groups = names.into_values().flat_map(|(kind, lines)| std::iter::once(kind).chain(lines));
    groups.map(|line| format!("{line}\n")).collect()
}

/// Replaces a file at once, so that no reader sees a part of it. Its name ends otherwise until then: what collects
/// files by their names leaves it alone.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = File::create(&new).and_then(|mut file| file.write_all(text.as_bytes()));
    let replaced = written.and_then(|()| std::fs::rename(&new, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    replaced
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn text(vm: &str, exits: u64) -> String {
        let mut text = Text::default();
        text.add_all(&json!({ "exits_total": exits, "memory": { "bytes": 1 } }), &[("vm", vm)]);
        text.finish()
    }

    #[test]
    fn lines_of_one_name_follow_each_other() {
        assert_eq!(
            merged(&[text("a", 1), text("b{ }", 2)]),
            "# TYPE tessera_exits_total counter\n\
             tessera_exits_total{vm=\"a\"} 1\n\
             tessera_exits_total{vm=\"b{ }\"} 2\n\
             # TYPE tessera_memory_bytes gauge\n\
             tessera_memory_bytes{vm=\"a\"} 1\n\
             tessera_memory_bytes{vm=\"b{ }\"} 1\n"
        );
        assert_eq!(merged(&[]), "");
    }

    #[test]
    fn a_file_is_replaced_or_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tessera.prom");
        replace(&path, "1\n").unwrap();
        replace(&path, "2\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
        // A name that cannot be given to a file.
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::fs::write(folder.path().join("folder/x"), "").unwrap();
        assert!(replace(&folder.path().join("folder"), "3\n").is_err());

        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
