//! `memory`: takes, checks and gives back memory as the lines on the console say, until `poweroff`.
//! Each command ends with one report:
//!
//! | Command | It | Report |
//! |---|---|---|
//! | `touch MIB` | takes memory and writes to each page | `touched` |
//! | `free` | checks what was written, gives all of it back | `freed` |
//! | `tag MIB` | takes memory with tags, checks data and tags, sets tags; then mistakes that MTE stops | `tagged` |
//! | `press MIB` | keeps taking, checking and freeing, at most so much at a time, some of it with tags | `pressing` |
//! | `relax` | ends that | `relaxed` |
//! | `fault SECONDS` | takes 128 MiB or half of what is free in huge pages and gives it back, over and over | `faulted` |
//! | `compact` | has the kernel empty its lists and move what is in use together | `compacted` |
//! | `figures` | reads the kernel's own figures | `figures` |

mod command;
mod held;
mod page_fault;
mod pressure;

use std::io::BufRead;

use serde_json::{Value, json};

use self::command::Command;
use self::held::Held;
use self::pressure::Pressure;
use super::{After, mte};
use crate::{machine, report, system};

pub(super) const NAME: &str = "memory";

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    let mut held = Vec::new();
    let mut pressure = None;
    report::send(NAME, "ready", figures());
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("cannot read the console: {error}"))?;
        match Command::parse(&line)? {
            Command::PowerOff => return Ok(After::PowerOff),
            command => obey(command, &mut held, &mut pressure)?,
        }
    }
    // A console that hangs up is no wish to end, nor to lose what was taken.
    std::mem::forget(held);
    Ok(After::Stay)
}

fn obey(
    command: Command,
    held: &mut Vec<Held>,
    pressure: &mut Option<Pressure>,
) -> Result<(), String> {
    let (event, fields) = match command {
        Command::Touch(size) => {
            let start = system::monotonic_ns();
            held.push(Held::touched(size)?);
            let took = system::monotonic_ns().saturating_sub(start);
            ("touched", with_figures(json!({ "took_ns": took })))
        }
        Command::Free => {
            let wrong: usize = held.drain(..).map(|held| held.wrong()).sum();
            ("freed", with_figures(json!({ "wrong": wrong })))
        }
        Command::Tag(size) => {
            let tagged = Held::tagged(size)?;
            let stops = mte::mistakes()?;
            let fields =
                json!({ "fresh": tagged.fresh(), "wrong": tagged.wrong(), "stops": stops });
            held.push(tagged);
            ("tagged", fields)
        }
        Command::Press(size) => {
            *pressure = Some(Pressure::start(size)?);
            ("pressing", figures())
        }
        Command::Relax => {
            let done = pressure.take().map(Pressure::stop).transpose()?;
            ("relaxed", with_figures(done.unwrap_or(json!({}))))
        }
        Command::Fault(time) => ("faulted", page_fault::run(time)?),
        Command::Compact => {
            std::fs::write("/proc/sys/vm/compact_memory", "1")
                .map_err(|error| format!("/proc/sys/vm/compact_memory: {error}"))?;
            ("compacted", figures())
        }
        Command::Figures => ("figures", figures()),
        // Handled by the caller.
        Command::PowerOff => return Ok(()),
    };
    report::send(NAME, event, fields);
    Ok(())
}

/// What the kernel says of its memory and its balloon.
fn figures() -> Value {
    let counter = |name| machine::counter(name).unwrap_or(0);
    let in_balloon = counter("balloon_inflate").saturating_sub(counter("balloon_deflate"));
    let page = u64::try_from(system::page_size()).unwrap_or(0);
    json!({
        "monotonic_ns": system::monotonic_ns(),
        "total_kib": machine::memory_kib("MemTotal"),
        "free_kib": machine::memory_kib("MemFree"),
        "balloon_bytes": in_balloon.saturating_mul(page),
        "balloon_pages_ever": counter("balloon_inflate"),
        "balloon_pages_back": counter("balloon_deflate"),
        "in_lists_bytes": machine::pages_in_lists().saturating_mul(page),
        "killed": counter("oom_kill"),
    })
}

fn with_figures(mut fields: Value) -> Value {
    if let (Some(fields), Value::Object(figures)) = (fields.as_object_mut(), figures()) {
        fields.extend(figures);
    }
    fields
}
