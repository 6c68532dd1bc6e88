//! `tessera run`: from a configuration to a guest that has ended.

#[cfg(target_arch = "aarch64")]
mod broker_events;
mod ending;
#[cfg(target_arch = "aarch64")]
mod endings;
mod error;
#[cfg(target_arch = "aarch64")]
mod event_loop;
mod finish;
#[cfg(target_arch = "aarch64")]
mod handle;
#[cfg(target_arch = "aarch64")]
mod power_key;
#[cfg(target_arch = "aarch64")]
mod start;
#[cfg(target_arch = "aarch64")]
mod tag_events;
#[cfg(target_arch = "aarch64")]
mod watch;

pub use ending::Ending;
pub use error::Error;
pub use finish::Finish;

use crate::config::RunArgs;
use crate::spec::Spec;

/// Runs a guest to its end.
///
/// # Errors
/// When it cannot be started; nothing is left behind then.
pub fn run(args: &RunArgs) -> Result<Ending, Error> {
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
