//! `tessera run`: from a configuration to a guest that has ended.

#[cfg(target_arch = "aarch64")]
mod broker_events;
#[cfg(target_arch = "aarch64")]
mod controller;
mod error;
#[cfg(target_arch = "aarch64")]
mod event_loop;
mod exit_reason;
#[cfg(target_arch = "aarch64")]
mod exit_watcher;
#[cfg(target_arch = "aarch64")]
mod power_key;
mod shutdown;
#[cfg(target_arch = "aarch64")]
mod start;
#[cfg(target_arch = "aarch64")]
mod tag_events;
#[cfg(target_arch = "aarch64")]
mod watch;

pub use error::Error;
pub use exit_reason::ExitReason;
pub use shutdown::ShutdownRequest;

use crate::config::RunArgs;
use crate::spec::Spec;

/// Runs a guest to its end.
///
/// # Errors
/// When it cannot be started; nothing is left behind then.
pub fn run(args: &RunArgs) -> Result<ExitReason, Error> {
    let spec = Spec::new(args.merge()?, args.command_line_only())?;
    #[cfg(target_arch = "aarch64")]
    return start::start(&spec, args.api_sock.as_deref());
    #[cfg(not(target_arch = "aarch64"))]
    {
        drop(spec);
        Err(Error::NotArm64)
    }
}

#[cfg(test)]
mod tests;
