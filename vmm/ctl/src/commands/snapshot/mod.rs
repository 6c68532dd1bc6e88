//! A VM in the files of a folder.

mod files;
mod place;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arch::units::Bytes;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use vmm::api::model::{SnapshotCreate, State};

use self::place::Place;
use crate::cli::{SaveArgs, SnapshotArgs, SnapshotCommand};
use crate::client::{Client, DEFAULT_TIMEOUT};
use crate::failure::{EXIT_INTERRUPTED, Failure};
use crate::output::Form;
use crate::report;
use crate::target::Target;
use crate::waiting::Waiting;

/// Saves a VM, or looks at snapshots.
///
/// # Errors
/// When the VM cannot be reached or refuses, or the files cannot be had.
pub fn snapshot(args: &SnapshotArgs, form: Form) -> Result<(), Failure> {
    match &args.command {
        Some(SnapshotCommand::Info { folder }) => files::info(folder, form),
        Some(SnapshotCommand::Merge(args)) => files::merged(args, form),
        None => save(&args.save, form),
    }
}

/// Saves a VM. It does then what it did before, unless it is to do something else.
///
/// # Errors
/// When the VM cannot be reached or refuses, or the folder cannot be had. Then there is no snapshot that was not there
/// before, and the VM does what it did.
fn save(args: &SaveArgs, form: Form) -> Result<(), Failure> {
    let (Some(vm), Some(folder)) = (&args.vm, &args.folder) else {
        return Err(Failure::usage("name the VM and the folder"));
    };
    let target = Target::find(vm)?;
    let mut client = target.client_within(args.timeout)?;
    let place = Place::prepare(folder, args.replace)?;
    let stop = Stop::catch()?;
    let waiting = Waiting::on(format!("{} is to be saved", target.name()));
    let was_running = client.instance()?.state == State::Running;
    let start = Instant::now();
    if was_running {
        client.pause()?;
    }
    let saved = client.create_snapshot(&SnapshotCreate::full(place.files()));
    let paused_for = start.elapsed();
    if let Err(error) = saved {
        return Err(was_in_vain(error.into(), was_running, &target));
    }
    let runs = args.resume || (was_running && !args.keep_paused);
    if runs {
        client.resume()?;
    }
    drop(waiting);
    if stop.is_wanted() {
        let message = format!("stopped: {} is as it was, and was not saved", target.name());
        return Err(Failure { code: EXIT_INTERRUPTED, message });
    }
    let size = place.commit()?;
    show(folder, size, runs, paused_for, &target, form)
}

fn show(
    folder: &Path,
    size: Bytes,
    runs: bool,
    paused_for: Duration,
    target: &Target,
    form: Form,
) -> Result<(), Failure> {
    let state = if runs { State::Running } else { State::Paused };
    let answer = json!({
        "outcome": "saved",
        "path": folder,
        "bytes": size.get(),
        "state": state,
        "paused_nanoseconds": u64::try_from(paused_for.as_nanos()).unwrap_or(u64::MAX),
    });
    form.show(&answer, |_| {
        let (name, size) = (target.name(), report::size(size.get()));
        let then = match runs {
            true => format!("it runs again after {paused_for:.1?}"),
            false => "it is paused".to_owned(),
        };
        format!("saved {name} in {} ({size}); {then}\n", folder.display())
    })
}

/// Lets a VM run again that was not saved, and says so.
fn was_in_vain(mut failure: Failure, was_running: bool, target: &Target) -> Failure {
    if !was_running {
        return failure;
    }
    // The connection of the call may be of no further use.
    let resumed = target.client_within(DEFAULT_TIMEOUT).and_then(|mut client: Client| {
        client.resume()?;
        Ok(())
    });
    failure.message.push_str(match resumed {
        Ok(()) => "; the VM runs again",
        Err(_) => "; the VM may be paused: `tesseractl resume` lets it run again",
    });
    failure
}

/// A signal that asks to stop. The VM cannot stop within a save, and must not stay paused; a second signal ends the
/// process at once.
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn catch() -> Result<Self, Failure> {
        let stop = Self(Arc::default());
        for signal in [SIGINT, SIGTERM] {
            let at_once = flag::register_conditional_shutdown(
                signal,
                EXIT_INTERRUPTED.into(),
                Arc::clone(&stop.0),
            );
            at_once
                .and_then(|_| flag::register(signal, Arc::clone(&stop.0)))
                .map_err(|error| Failure::refused(format!("cannot catch signals: {error}")))?;
        }
        Ok(stop)
    }

    fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
