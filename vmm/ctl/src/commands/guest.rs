//! What works in a guest.

use std::ffi::OsStr;

use agent::protocol::message::{Exec, Operation};
use serde_json::json;
use vmm::error::printable;

use crate::failure::{EXIT_REFUSED, Failure};
use crate::guest::args::{AgentArgs, CopyArgs, ExecArgs, ProxyArgs, Reach, ShellArgs};
use crate::guest::connect::Vsock;
use crate::guest::copy::{self, Side};
use crate::guest::{EXIT_OWN, exec as session, proxy as connection};
use crate::output::{Form, say};
use crate::target::Target;

/// Runs a command; its exit status.
pub fn exec(args: ExecArgs) -> u8 {
    let (reach, request) = args.into_request();
    command(&reach, request)
}

/// Runs a shell; its exit status.
pub fn shell(args: ShellArgs) -> u8 {
    let (reach, request) = args.into_request();
    command(&reach, request)
}

/// Whatever fails, the exit status is none that a command may have.
fn command(reach: &Reach, request: Exec) -> u8 {
    let vsock = match vsock(&reach.vm) {
        Ok(vsock) => vsock,
        Err(failure) => {
            say(&failure.message);
            return EXIT_OWN;
        }
    };
    session::run(&vsock, request, reach.timeout()).unwrap_or_else(|error| {
        say(&error.line());
        error.exec_status()
    })
}

/// Copies; the exit status.
///
/// # Errors
/// When the guest cannot be reached, or nothing is copied whole.
pub fn copy(args: &CopyArgs) -> Result<u8, Failure> {
    let vsock = vsock(&args.reach.vm)?;
    let (from, to) = (Side::new(&args.from), Side::new(&args.to));
    let summary = copy::run(&vsock, &from, &to, args.reach.timeout())?;
    if summary.failed == 0 {
        return Ok(0);
    }
    say(&format!("{} entries could not be copied whole", summary.failed));
    Ok(EXIT_REFUSED)
}

/// Carries a connection to a port.
///
/// # Errors
/// When the guest cannot be reached.
pub fn proxy(args: &ProxyArgs) -> Result<(), Failure> {
    let vsock = vsock(&args.reach.vm)?;
    Ok(connection::run(&vsock, args.port, args.reach.timeout())?)
}

/// Shows the guest's agent, or has it set the clock.
///
/// # Errors
/// When the guest cannot be reached, or its agent refuses.
pub fn agent(args: &AgentArgs, form: Form) -> Result<(), Failure> {
    let operation = if args.set_clock { Operation::SetClock } else { Operation::Info };
    let (_, accepted) = vsock(&args.reach.vm)?.operate(operation, args.reach.timeout())?;
    let agent = printable(&accepted.agent);
    let answer = json!({
        "agent": agent,
        "operations": accepted.operations,
        "clock_moved_ms": accepted.clock_moved_ms,
    });
    form.show(&answer, |_| match accepted.clock_moved_ms {
        Some(moved) => format!("clock set, by {moved} ms\n"),
        None => format!("{agent}, operations: {}\n", accepted.operations.unwrap_or(0)),
    })
}

/// The way into the guest that is meant.
fn vsock(vm: &OsStr) -> Result<Vsock, Failure> {
    Vsock::of(&Target::find(vm)?)
}
