//! A table of all VMs that is renewed, as top(1). Where standard output is no terminal it is printed once.

mod screen;
mod table;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm::tag_storage::broker::BrokerReport;

use self::screen::{Key, Screen};
use crate::cli::TopArgs;
use crate::commands::pool;
use crate::failure::Failure;
use crate::fleet::{Depth, Sight, survey};
use crate::output::{Form, print};
use crate::target::listing;

/// Between two looks at the keys.
const TICK: Duration = Duration::from_millis(100);
/// The width of a table that is printed.
const WIDTH: usize = 100;

/// What one look has found.
#[derive(Debug)]
pub(super) struct View {
    sights: Vec<Sight>,
    /// The pool, if one was asked for.
    pool: Option<Result<BrokerReport, Failure>>,
    at: Instant,
}

/// Shows the table until the user presses q.
///
/// # Errors
/// When the registry cannot be read, or the terminal not be set up.
pub fn top(args: &TopArgs, form: Form) -> Result<(), Failure> {
    let broker = args.broker.clone();
    let look = move || look(broker.as_deref());
    if form == Form::Json {
        return form.show(&document(&look()?), |_| String::new());
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let lines = table::lines(&look()?, None, WIDTH);
        return print(&(lines.join("\n") + "\n"));
    }
    let failed = |error: io::Error| Failure::refused(format!("cannot use the terminal: {error}"));
    // One look fails before the screen is another.
    let mut view = look()?;
    let mut before = None;
    let (asked, answers) = looker(look);
    let mut screen = Screen::enter().map_err(failed)?;
    let interval = args.interval.max(TICK);
    let mut is_asked = false;
    loop {
        if let Some(answer) = next(&answers) {
            let newer = answer?;
            before = Some(std::mem::replace(&mut view, newer));
            is_asked = false;
        }
        if !is_asked && view.at.elapsed() >= interval {
            is_asked = asked.send(()).is_ok();
        }
        let (width, height) = screen.size();
        let lines = table::lines(&view, before.as_ref(), width);
        screen.draw(&lines, height).map_err(failed)?;
        if screen.key(TICK).map_err(failed)? == Some(Key::Quit) {
            return Ok(());
        }
    }
}

/// A thread that looks when it is asked, so that keys are heeded meanwhile.
fn looker(
    look: impl Fn() -> Result<View, Failure> + Send + 'static,
) -> (Sender<()>, Receiver<Result<View, Failure>>) {
    let (asked, requests) = channel();
    let (sender, answers) = channel();
    thread::spawn(move || {
        while requests.recv().is_ok() {
            if sender.send(look()).is_err() {
                return;
            }
        }
    });
    (asked, answers)
}

fn next<T>(answers: &Receiver<T>) -> Option<T> {
    answers.try_recv().ok()
}

fn look(broker: Option<&Path>) -> Result<View, Failure> {
    let sights = survey(listing()?.vms, Depth::Memory);
    Ok(View { sights, pool: broker.map(pool::ask), at: Instant::now() })
}

/// The same for programs.
fn document(view: &View) -> Value {
    let vms: Vec<Value> = view
        .sights
        .iter()
        .map(|sight| {
            let answer = sight.answer.as_ref().ok();
            json!({
                "name": sight.vm.record.name,
                "pid": sight.vm.record.pid,
                "state": sight.state(),
                "memory_bytes": answer.and_then(|it| it.memory_mib).map(|mib| mib.saturating_mul(1 << 20)),
                "resident_bytes": sight.usage.map(|usage| usage.resident.get()),
                "cpu_nanoseconds": sight.usage.map(|usage| u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX)),
                "balloon": answer.and_then(|it| it.balloon.as_ref()),
                "tag_storage": answer.and_then(|it| it.tags.as_ref()),
            })
        })
        .collect();
    let pool = view.pool.as_ref().map(|pool| match pool {
        Ok(report) => serde_json::to_value(report).unwrap_or_default(),
        Err(failure) => json!({ "error": failure.message }),
    });
    json!({ "vms": vms, "pool": pool })
}
