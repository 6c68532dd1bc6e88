//! `agent`: runs tessera-agent, so that tests can run commands in the guest. `agent-key` leaves the power key
//! to it.

use std::process::Command;
use std::thread;

use serde_json::json;

use super::After;
use crate::{modules, report, system};

pub(super) const NAME: &str = "agent";
/// The archive that follows the initramfs brings it.
const PROGRAM: &str = "/bin/tessera-agent";

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    // This program has the power key.
    with(&["--no-power-key"])
}

/// With the power key, and an init that powers off as that of busybox does: at SIGUSR2.
pub(super) fn run_with_key(_: Option<&str>) -> Result<After, String> {
    let asked = system::PowerOffSignal::block().map_err(|error| format!("SIGUSR2: {error}"))?;
    thread::spawn(move || {
        asked.wait();
        report::send(NAME, "asked_to_power_off", json!({}));
        system::end(system::End::PowerOff)
    });
    with(&[])
}

fn with(arguments: &[&str]) -> Result<After, String> {
    for failure in modules::load_all(modules::AGENT) {
        report::send(NAME, "module_failed", json!({ "message": failure }));
    }
    let agent =
        Command::new(PROGRAM).args(arguments).env_clear().env("PATH", "/bin").spawn().map_err(
            |error| format!("{PROGRAM}: {error}: does agent.cpio follow the initramfs?"),
        )?;
    report::send(NAME, "started", json!({ "pid": agent.id() }));
    // What commands leave behind is PID 1's to wait for, too.
    let status = loop {
        match system::wait_for_any().map_err(|error| format!("no child: {error}"))? {
            (pid, status) if u32::try_from(pid) == Ok(agent.id()) => break status,
            _ => {}
        }
    };
    report::send(NAME, "ended", json!({ "status": status }));
    Ok(After::PowerOff)
}
