//! The file of counters: a JSON object on a line each minute, at the end, and when a client asks for one.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fd::AsRawFd;
use serde_json::Value;

use super::error::Error;
use crate::api::ControlError;
use crate::machine::Machine;
use crate::spec::{MetricsSpec, Spec};
use crate::sys::append;
use crate::sys::nonblocking::NonBlocking;
use crate::sys::timer::Timer;

/// How often the counters are written without a request, as in Firecracker.
const EVERY: Duration = Duration::from_secs(60);

/// The file of counters. Clones are the same file.
#[derive(Clone)]
pub(super) struct MetricsFile(Rc<Open>);

struct Open {
    output: NonBlocking,
    id: Option<String>,
    /// Whether the last line has its first part alone.
    is_cut: Cell<bool>,
}

impl MetricsFile {
    /// Opens the file that a description names, if it names one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn of(spec: &Spec) -> Result<Option<Self>, Error> {
        let Some(MetricsSpec { path, with_id }) = &spec.metrics else { return Ok(None) };
        let output = append::open(path).map_err(|source| Error::Output {
            path: path.clone(),
            what: "counters",
            source,
        })?;
        let id = with_id.then(|| spec.id.clone());
        Ok(Some(Self(Rc::new(Open {
            output: NonBlocking::own(output),
            id,
            is_cut: Cell::default(),
        }))))
    }

    /// Writes the counters.
    ///
    /// # Errors
    /// When the file takes no whole line now.
    pub(super) fn write(&self, mut metrics: Value) -> Result<(), ControlError> {
        let failed = |error| ControlError::failed("write the counters to their file", error);
        if let Some(id) = &self.0.id {
            metrics["id"] = Value::from(id.as_str());
        }
        // A part of a line is not the beginning of the next.
        let before = if self.0.is_cut.get() { "\n" } else { "" };
        let line = format!("{before}{metrics}\n");
        let written = self.0.output.write(line.as_bytes()).map_err(failed)?;
        self.0.is_cut.set(written < line.len() && (written > 0 || self.0.is_cut.get()));
        match written == line.len() {
            true => Ok(()),
            false => Err(failed(io::ErrorKind::WriteZero.into())),
        }
    }
}

/// Writes the counters again and again.
pub(super) struct MetricsTimer {
    file: MetricsFile,
    machine: Weak<RefCell<Machine>>,
    timer: Timer,
}

impl MetricsTimer {
    /// # Errors
    /// When the host gives no timer.
    pub(super) fn new(file: MetricsFile, machine: &Rc<RefCell<Machine>>) -> io::Result<Self> {
        let timer = Timer::new()?;
        timer.every(EVERY)?;
        Ok(Self { file, machine: Rc::downgrade(machine), timer })
    }

    fn write(&self) {
        let Some(machine) = self.machine.upgrade() else { return };
        // What has no room is not worth waiting for: the next counters have all that these have.
        let _ = self.file.write(machine.borrow().metrics());
    }
}

impl MutEventSubscriber for MetricsTimer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without its event there are counters at the end, and on request.
        let _ = ops.add(Events::new_raw(self.timer.as_raw_fd(), EventSet::IN));
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if self.timer.take() {
            self.write();
        }
    }
}

impl Drop for MetricsTimer {
    fn drop(&mut self) {
        self.write();
    }
}
