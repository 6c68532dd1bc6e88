//! Pause, resume, stop.

use agent::protocol::message::Operation;
use serde_json::json;

use crate::cli::{OfVm, ResumeArgs, StopArgs};
use crate::failure::Failure;
use crate::guest::connect::Vsock;
use crate::output::Form;
use crate::target::Target;
use crate::waiting::Waiting;

/// Holds the vCPUs.
///
/// # Errors
/// When the VM cannot be reached or refuses; so for those below.
pub fn pause(of: &OfVm, form: Form) -> Result<(), Failure> {
    Target::find(&of.vm)?.client()?.pause()?;
    form.outcome("paused")
}

/// Lets the vCPUs run again, and has the guest's clock set if that is wanted.
///
/// # Errors
/// See [`pause`]. The vCPUs run again where only the clock cannot be set.
pub fn resume(args: &ResumeArgs, form: Form) -> Result<(), Failure> {
    let target = Target::find(&args.of.vm)?;
    let mut client = target.client()?;
    if !args.set_clock {
        client.resume()?;
        return form.outcome("resumed");
    }
    // Without a way to the agent the VM stays as it is.
    let vsock = Vsock::in_any_state(&target)?;
    client.resume()?;
    let operated = vsock.operate(Operation::SetClock, args.timeout);
    let (_, accepted) = operated.map_err(|error| {
        let Failure { code, message } = error.into();
        Failure { code, message: format!("the VM runs, its clock is not set: {message}") }
    })?;
    let moved = accepted.clock_moved_ms.unwrap_or(0);
    let answer = json!({ "outcome": "resumed", "clock_moved_ms": moved });
    form.show(&answer, |_| format!("resumed; clock set, by {moved} ms\n"))
}

/// Ends the VM, and waits until it has gone.
///
/// # Errors
/// See [`pause`]; and when it has not gone in time.
pub fn stop(args: &StopArgs, form: Form) -> Result<(), Failure> {
    let target = Target::find(&args.of.vm)?;
    let mut client = target.client()?;
    match args.force {
        true => client.stop()?,
        false => client.press_power_key()?,
    }
    let waiting = Waiting::on(format!("{} is to stop", target.name()));
    client.wait_gone(args.timeout)?;
    drop(waiting);
    form.outcome("stopped")
}
