//! Waiting for a VM.

use std::time::{Duration, Instant};

use vmm::api::model::State;

use crate::cli::{Condition, WaitArgs};
use crate::failure::{EXIT_UNREACHABLE, EXIT_USAGE, Failure};
use crate::fleet::PATIENCE;
use crate::guest::connect::Vsock;
use crate::output::Form;
use crate::target::Target;
use crate::waiting::Waiting;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits for a VM, which need not be there yet.
///
/// # Errors
/// When the time is over, or what is waited for cannot come.
pub fn wait(args: &WaitArgs, form: Form) -> Result<(), Failure> {
    let deadline = Deadline { start: Instant::now(), timeout: args.timeout };
    let name = args.of.vm.to_string_lossy().into_owned();
    let (word, done) = match args.condition {
        Condition::Started => ("start", "started"),
        Condition::Agent => ("have an agent that answers", "agent"),
        Condition::Stopped => ("end", "stopped"),
    };
    let waiting = Waiting::on(format!("{name} is to {word}"));
    match args.condition {
        Condition::Started => started(args, deadline)?,
        Condition::Agent => agent(args, deadline)?,
        Condition::Stopped => stopped(args, deadline)?,
    }
    drop(waiting);
    form.outcome(done)
}

#[derive(Clone, Copy)]
struct Deadline {
    start: Instant,
    timeout: Duration,
}

impl Deadline {
    fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.start.elapsed())
    }

    /// Nothing, after a pause; when the time is over, why it was waited in vain.
    fn pause(&self, reason: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.left().is_zero() {
            let timeout = self.timeout;
            return Err(Failure::refused(format!("not within {timeout:?}: {}", reason())));
        }
        std::thread::sleep(PAUSE.min(self.left()));
        Ok(())
    }
}

/// Whether there may be something else later: a VM that is not there yet, or does not answer now.
fn may_come(failure: &Failure) -> bool {
    failure.code == EXIT_UNREACHABLE
}

fn started(args: &WaitArgs, deadline: Deadline) -> Result<(), Failure> {
    loop {
        let state = Target::find(&args.of.vm)
            .and_then(|target| Ok(target.client_within(PATIENCE)?.instance()?.state));
        let reason = match state {
            Ok(State::Running | State::Paused) => return Ok(()),
            Ok(State::NotStarted) => "the VM waits to be configured and started".to_owned(),
            Err(failure) if may_come(&failure) => failure.message,
            Err(failure) => return Err(failure),
        };
        deadline.pause(|| reason)?;
    }
}

fn agent(args: &WaitArgs, deadline: Deadline) -> Result<(), Failure> {
    use agent::protocol::message::Operation;

    loop {
        let answer = Target::find(&args.of.vm)
            .and_then(|target| Vsock::of(&target))
            .and_then(|vsock| Ok(vsock.operate(Operation::Info, deadline.left().min(PATIENCE))?));
        match answer {
            Ok(_) => return Ok(()),
            Err(failure) if may_come(&failure) => deadline.pause(|| failure.message)?,
            Err(failure) => return Err(failure),
        }
    }
}

fn stopped(args: &WaitArgs, deadline: Deadline) -> Result<(), Failure> {
    let target = match Target::find(&args.of.vm) {
        Ok(target) => target,
        // None of this name runs.
        Err(failure) if failure.code == EXIT_UNREACHABLE => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let late = || {
        let timeout = args.timeout;
        Failure::refused(format!("not within {timeout:?}: {} still runs", target.name()))
    };
    if target.listed().is_ok() {
        return match target.process() {
            Ok(process) => match process.has_ended(deadline.left()) {
                true => Ok(()),
                false => Err(late()),
            },
            Err(failure) => match Target::find(&args.of.vm) {
                Ok(_) => Err(failure),
                Err(_) => Ok(()),
            },
        };
    }
    match target.client() {
        Ok(client) => client.wait_gone(deadline.left()).map_err(|_| late()),
        Err(failure) if failure.code == EXIT_USAGE => Err(failure),
        Err(_) => Ok(()),
    }
}
