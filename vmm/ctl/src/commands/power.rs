//! Pause, resume, stop.

use crate::cli::{OfVm, StopArgs};
use crate::failure::Failure;
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

/// Lets the vCPUs run again.
///
/// # Errors
/// See [`pause`].
pub fn resume(of: &OfVm, form: Form) -> Result<(), Failure> {
    Target::find(&of.vm)?.client()?.resume()?;
    form.outcome("resumed")
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
