//! `tessera run`: from a configuration to a guest that has ended.

mod broker_events;
mod controller;
mod error;
mod event_loop;
mod exit_reason;
mod exit_watcher;
mod power_key;
mod shutdown;
mod start;
mod tag_events;
mod watch;

pub use error::Error;
pub use exit_reason::ExitReason;
pub use shutdown::ShutdownRequest;

use std::path::Path;

use crate::config::RunArgs;
use crate::hypervisor::Hypervisor;
use crate::spec::Spec;

/// Runs a guest to its end.
///
/// # Errors
/// When it cannot be started; nothing is left behind then.
pub fn run(args: &RunArgs) -> Result<ExitReason, Error> {
    let spec = Spec::new(args.merge()?, args.command_line_only())?;
    #[cfg(target_arch = "aarch64")]
    {
        let host = crate::kvm::Host::open().map_err(crate::machine::Error::from)?;
        run_on(&host, &spec, args.api_sock.as_deref())
    }
    #[cfg(not(target_arch = "aarch64"))]
    {
        drop(spec);
        Err(Error::NotArm64)
    }
}

/// Runs the guest of a description on this hypervisor to its end.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    hypervisor: &dyn Hypervisor,
    spec: &Spec,
    api_sock: Option<&Path>,
) -> Result<ExitReason, Error> {
    start::start(hypervisor, spec, api_sock)
}

#[cfg(test)]
mod tests;
