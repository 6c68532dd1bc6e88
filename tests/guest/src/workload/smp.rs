//! `smp`: runs a thread on each online processor.

use std::thread;

use serde_json::json;

use super::After;
use crate::{machine, report, system};

pub(super) const NAME: &str = "smp";

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    let cpus = machine::online_cpus();
    let mut ran = 0usize;
    for cpu in &cpus {
        let cpu = *cpu;
        let ran_on = thread::spawn(move || system::run_on(cpu))
            .join()
            .map_err(|_| format!("the thread for processor {cpu} panicked"))?
            .map_err(|error| format!("processor {cpu}: {error}"))?;
        report::send(NAME, "cpu", json!({ "cpu": cpu, "ran_on": ran_on }));
        ran = ran.saturating_add(usize::from(ran_on == cpu));
    }
    report::send(NAME, "done", json!({ "cpus": cpus.len(), "ran": ran, "ok": ran == cpus.len() }));
    Ok(After::PowerOff)
}
