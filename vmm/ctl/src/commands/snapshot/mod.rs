//! A VM in the files of a folder.

mod files;
mod place;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arch::units::Bytes;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use vmm::api::model::{SnapshotConfirm, SnapshotCreate, SnapshotType, State};
use vmm::error::{chain, printable};

use self::place::Place;
use crate::cli::{SaveArgs, SnapshotArgs, SnapshotCommand};
use crate::client::{Client, DEFAULT_TIMEOUT, Error};
use crate::failure::{EXIT_INTERRUPTED, Failure};
use crate::output::Form;
use crate::process::ignored_signals;
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
        None => {
            let saved = save(&args.save)?;
            saved.show(form)?;
            saved.check()
        }
    }
}

/// A VM that was saved.
pub(crate) struct Saved {
    folder: PathBuf,
    size: Bytes,
    runs: bool,
    paused_for: Duration,
    target: Target,
    /// Whether the user asked to stop when it was too late for that.
    stopped: bool,
    /// Why the VM's next diff does not build on it, if that is so.
    unconfirmed: Option<Error>,
}

/// Saves a VM. It does then what it did before, unless it is to do something else.
///
/// # Errors
/// When the VM cannot be reached or refuses, or the folder cannot be had: then there is no snapshot that was not there
/// before, and a VM that ran is resumed. When a VM that was saved is not resumed: the snapshot is there then.
pub(crate) fn save(args: &SaveArgs) -> Result<Saved, Failure> {
    let (Some(vm), Some(folder)) = (&args.vm, &args.folder) else {
        return Err(Failure::usage("name the VM and the folder"));
    };
    let target = Target::find(vm)?;
    refuse_other_users(&target)?;
    let mut client = target.client_within(args.timeout)?;
    let place = Place::prepare(folder, args.replace)?;
    let stop = Stop::catch()?;
    let waiting = Waiting::on(format!("{} is to be saved", target.name()));
    let was_running = client.instance()?.state == State::Running;
    let tracks = client.vm_config()?["machine-config"]["track_dirty_pages"] == true;
    let what = if args.diff { SnapshotType::Diff } else { SnapshotType::Full };
    let start = Instant::now();
    if was_running {
        // Without an answer it may be paused a moment later.
        let paused = client.pause();
        paused.map_err(|error| not_saved(error.into(), was_running, &target))?;
    }
    let files = place.files();
    let confirmation = SnapshotConfirm { snapshot_path: files.state.clone() };
    // Until it is in its place, the VM's next diff builds on the one before.
    let create = SnapshotCreate { provisional: tracks, ..SnapshotCreate::new(files, what) };
    let saved = client.create_snapshot(&create);
    let paused_for = start.elapsed();
    let stopped = || Failure {
        code: EXIT_INTERRUPTED,
        message: format!("stopped: {} was not saved", target.name()),
    };
    // In its place before anything else can fail.
    let placed = match saved {
        Err(error) if is_of_an_older_vm(&error) => Err(older(&target)),
        Err(error) => Err(error.into()),
        Ok(()) if stop.is_wanted() => Err(stopped()),
        Ok(()) => place.commit(),
    };
    let size = placed.map_err(|failure| not_saved(failure, was_running, &target))?;
    let confirmed = if tracks { client.confirm_snapshot(&confirmation) } else { Ok(()) };
    let unconfirmed = confirmed.err();
    let runs = args.resume || (was_running && !args.keep_paused);
    if runs {
        // A connection that has failed is of no further use.
        let resumed = match unconfirmed {
            None => client.resume().map_err(Failure::from),
            Some(_) => resume(&target),
        };
        resumed.map_err(|failure| not_resumed(failure, folder))?;
    }
    drop(waiting);
    let stopped = stop.is_wanted();
    Ok(Saved { folder: folder.clone(), size, runs, paused_for, target, stopped, unconfirmed })
}

impl Saved {
    /// Checks that the VM's next diff builds on it, and that the user did not ask to stop when it was in its place.
    ///
    /// # Errors
    /// When that is not so.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if let Some(error) = &self.unconfirmed {
            let name = self.target.name();
            let reason = printable(&chain(error));
            // Without an answer the VM may have confirmed it all the same.
            if !matches!(error, Error::Refused { .. }) {
                return Err(Failure::refused(format!(
                    "the snapshot is whole, but whether the next diff of {name} builds on it is not known: `tesseractl \
                     snapshot info` of that diff shows what it builds on: {reason}"
                )));
            }
            return Err(Failure::refused(format!(
                "the snapshot is whole, but the next diff of {name} builds on the one before, and has all changes \
                 since: leave this one out of a merge with it, or make a full one if that is not there any more: \
                 {reason}"
            )));
        }
        match self.stopped {
            false => Ok(()),
            true => Err(Failure {
                code: EXIT_INTERRUPTED,
                message: "the snapshot was in its place already, and was kept".to_owned(),
            }),
        }
    }

    fn show(&self, form: Form) -> Result<(), Failure> {
        let Self { folder, size, runs, paused_for, target, .. } = self;
        let state = if *runs { State::Running } else { State::Paused };
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
}

/// Refuses to save a VM of another user: its process could not write into a folder of this one.
fn refuse_other_users(target: &Target) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    match target {
        Target::Listed(vm) if vm.uid() != own => Err(Failure::refused(format!(
            "{} is a VM of user {}, whose process may not write into a folder of yours: save it with PUT \
             /snapshot/create, in a folder of its own",
            target.name(),
            vm.uid()
        ))),
        _ => Ok(()),
    }
}

/// Whether a VM that tracks changes does not know the field that keeps its next diff from building on a snapshot that
/// is lost before it is in its place.
fn is_of_an_older_vm(error: &Error) -> bool {
    matches!(error, Error::Refused { status: 400, message } if message.contains("unknown field `provisional`"))
}

fn older(target: &Target) -> Failure {
    Failure::refused(format!(
        "{} is of an older version of tessera, and tracks changes in a way that this tesseractl does not know: save it \
         with the tesseractl of its version, or with PUT /snapshot/create",
        target.name()
    ))
}

/// The VM was saved, and could not be resumed.
fn not_resumed(mut failure: Failure, folder: &Path) -> Failure {
    failure.message.push_str(&format!(
        "; the snapshot is in {}, and the VM may be paused: `tesseractl resume` lets it run again",
        folder.display()
    ));
    failure
}

/// Lets a VM run again that was not saved, and says so.
fn not_saved(mut failure: Failure, was_running: bool, target: &Target) -> Failure {
    if !was_running {
        return failure;
    }
    // The connection of the call may be of no further use.
    failure.message.push_str(match resume(target) {
        Ok(()) => "; the VM runs again",
        Err(_) => "; the VM may be paused: `tesseractl resume` lets it run again",
    });
    failure
}

/// Lets a VM run again, over a connection of its own.
fn resume(target: &Target) -> Result<(), Failure> {
    let mut client: Client = target.client_within(DEFAULT_TIMEOUT)?;
    client.resume()?;
    Ok(())
}

/// A signal that asks to stop. The VM cannot stop within a save, and must not stay paused; a second signal ends the
/// process at once. One that was ignored when the process started stays so, for example by `trap '' TERM` of a shell.
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn catch() -> Result<Self, Failure> {
        let stop = Self(Arc::default());
        let ignored = ignored_signals();
        for signal in
            [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| !ignored.contains(signal))
        {
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
