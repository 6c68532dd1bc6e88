//! `agent`: runs tessera-agent, so that tests can run commands in the guest.

use std::process::Command;

use serde_json::json;

use super::After;
use crate::{modules, report, system};

pub(super) const NAME: &str = "agent";
/// The archive that follows the initramfs brings it.
const PROGRAM: &str = "/bin/tessera-agent";

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    for failure in modules::load_all(modules::AGENT) {
        report::send(NAME, "module_failed", json!({ "message": failure }));
    }
    // This program has the power key.
    let agent =
        Command::new(PROGRAM).arg("--no-power-key").env_clear().spawn().map_err(|error| {
            format!("{PROGRAM}: {error}: does agent.cpio follow the initramfs?")
        })?;
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
