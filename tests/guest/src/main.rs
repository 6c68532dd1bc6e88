//! `guest-init`: PID 1 of test guests. It mounts what programs expect, loads the modules of its initramfs,
//! runs the workload that the kernel's command line names (`workload=NAME[,ARGUMENT]`), and reports each
//! result as one line `REPORT {json}` on the console. It never panics the guest by accident: whatever goes
//! wrong is reported, and the guest powers off.

mod command_line;
mod console;
mod machine;
mod modules;
mod pmu;
mod power_key;
mod region;
mod report;
mod sockets;
mod system;
mod vectors;
mod workload;

use std::panic;
use std::process::{ExitCode, id};

use serde_json::json;

use crate::command_line::Request;
use crate::workload::After;

/// The name reports of this file carry.
const NAME: &str = "init";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some(workload::mte::CHILD), Some(act)) => return workload::mte::child(&act),
        (Some(workload::unserved::CHILD), Some(act)) => return workload::unserved::child(&act),
        _ => {}
    }
    if id() != 1 {
        eprintln!(
            "guest-init is the first program of a test guest (PID 1); elsewhere it would power off the machine"
        );
        return ExitCode::from(2);
    }
    panic::set_hook(Box::new(|panic| {
        report::send(NAME, "error", json!({ "message": panic.to_string() }));
        system::end(system::End::PowerOff);
    }));
    let after = live().unwrap_or_else(|message| {
        report::send(NAME, "error", json!({ "message": message }));
        After::PowerOff
    });
    match after {
        After::PowerOff => system::end(system::End::PowerOff),
        After::Reboot => system::end(system::End::Reboot),
        After::Stay => system::sleep_forever(),
    }
}

/// The guest's life up to the end of its workload.
fn live() -> Result<After, String> {
    let mounted = system::mount_all();
    report::send(
        NAME,
        "start",
        json!({
            "monotonic_ns": system::monotonic_ns(),
            "kernel": machine::kernel_release(),
            "cpus": machine::online_cpus().len(),
            "mte": machine::has_mte(),
        }),
    );
    mounted.map_err(|error| format!("cannot mount: {error}"))?;
    console::plain();
    for failure in modules::load_all(modules::ALL_GUESTS) {
        report::send(NAME, "module_failed", json!({ "message": failure }));
    }
    let request = Request::from_command_line(&machine::command_line());
    let run = workload::find(&request.name).ok_or_else(|| {
        let known: Vec<_> = workload::names().collect();
        format!("no workload '{}': one of {}", request.name, known.join(", "))
    })?;
    if run.power_key
        && let Err(message) = power_key::listen()
    {
        report::send(NAME, "no_power_key", json!({ "message": message }));
    }
    (run.start)(request.argument.as_deref())
}
