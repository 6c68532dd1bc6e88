//! `tessera run`: from a configuration to a guest that has ended.

mod broker_events;
mod controller;
mod draft_controller;
mod entry;
mod error;
mod event_loop;
mod exit_reason;
mod exit_watcher;
mod files;
mod jail;
mod launch;
mod metrics_file;
mod power_key;
mod shutdown;
mod signal_watcher;
mod snapshots;
mod start;
mod tag_events;
mod watch;

pub use error::Error;
pub use exit_reason::ExitReason;
pub use jail::{Ended, run_in_jail};
pub use shutdown::ShutdownRequest;
pub use snapshots::{LoadError, Restore, Saved, saved_config};

use std::path::Path;

use crate::config::{self, CommandLineOnly, Config, RunArgs};
use crate::hypervisor::Hypervisor;
use crate::registry::Entry;
#[cfg(target_arch = "aarch64")]
use crate::sandbox;
use crate::spec::{Draft, Spec};

/// Runs a guest to its end.
///
/// # Errors
/// When it cannot be started; nothing is left behind then.
pub fn run(args: &RunArgs) -> Result<ExitReason, Error> {
    let request = Request::of(args)?;
    run_request(args, request, entry::publish)
}

/// Runs what the command line asks for, with an entry in the registry that `publish` makes.
fn run_request<'a>(
    args: &'a RunArgs,
    request: Request<'a>,
    publish: impl FnOnce(&Request<'_>, CommandLineOnly<'_>) -> Result<Option<Entry>, Error>,
) -> Result<ExitReason, Error> {
    #[cfg(target_arch = "aarch64")]
    {
        let flags = args.command_line_only();
        let host = crate::kvm::Host::open().map_err(crate::machine::Error::from)?;
        let entry = publish(&request, flags)?;
        let files = files::of_the_process(flags, &args.allow, entry.as_ref());
        sandbox::begin(&args.sandbox, files)?;
        run_listed(&host, request, entry)
    }
    #[cfg(not(target_arch = "aarch64"))]
    {
        drop((args, request, publish));
        Err(Error::NotArm64)
    }
}

/// When a guest starts.
pub enum Request<'a> {
    /// At once, by this description.
    Start {
        /// The description.
        spec: Box<Spec>,
        /// Where the control socket is to be.
        api_sock: Option<&'a Path>,
    },
    /// As the VM of a snapshot, by the description that it has here.
    Restore {
        /// The description.
        spec: Box<Spec>,
        /// The snapshot.
        restore: Box<Restore>,
        /// Where the control socket is to be.
        api_sock: Option<&'a Path>,
    },
    /// When a client of the control socket says so, by this configuration as clients have changed it.
    Wait(Box<Waiting<'a>>),
}

impl<'a> Request<'a> {
    /// What the command line asks for, checked as far as it can be without the host.
    // Not a part of `run`: its stack is then that of the running VM, too.
    #[inline(never)]
    fn of(args: &'a RunArgs) -> Result<Self, Error> {
        let flags = args.command_line_only();
        if let Some(request) = args.restore_request().map_err(config::Error::from)? {
            let (spec, restore) = snapshots::prepare(request, flags)?;
            let (spec, restore) = (Box::new(spec), Box::new(restore));
            return Ok(Self::Restore { spec, restore, api_sock: flags.api_sock });
        }
        let config = args.merge()?;
        Ok(match flags.api_sock {
            Some(api_sock) if !config.has_kernel() => {
                let draft = Draft::new(config.clone(), flags)?;
                Self::Wait(Box::new(Waiting { config, draft, flags, api_sock }))
            }
            api_sock => Self::Start { spec: Box::new(Spec::new(config, flags)?), api_sock },
        })
    }
}

/// A VM that clients of the control socket configure.
pub struct Waiting<'a> {
    /// The configuration that it begins with.
    pub config: Config,
    /// The same, checked.
    pub draft: Draft,
    /// What no configuration can say.
    pub flags: CommandLineOnly<'a>,
    /// Where the control socket is to be.
    pub api_sock: &'a Path,
}

/// Runs a guest on this hypervisor to its end.
///
/// # Errors
/// As [`run`].
pub fn run_on(hypervisor: &dyn Hypervisor, request: Request<'_>) -> Result<ExitReason, Error> {
    run_listed(hypervisor, request, None)
}

/// As [`run_on`], with an entry in the registry.
fn run_listed(
    hypervisor: &dyn Hypervisor,
    request: Request<'_>,
    entry: Option<Entry>,
) -> Result<ExitReason, Error> {
    let entry = entry::Listed::new(entry);
    match request {
        Request::Start { spec, api_sock } => start::start(hypervisor, spec, None, api_sock, entry),
        Request::Restore { spec, restore, api_sock } => {
            start::start(hypervisor, spec, Some(restore), api_sock, entry)
        }
        Request::Wait(waiting) => start::start_on_request(hypervisor, waiting, entry),
    }
}

#[cfg(test)]
mod tests;
