//! Ctrl-C and its kin: the child of the moment ends, and every destructor runs.

use std::io;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Tells the whole program that it was asked to stop. Clones share one state.
///
/// A signal never ends the process by itself: it ends the child that the program waits for, and the
/// waiting code then returns an error, so that temporary files go the ordinary way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    raised: AtomicBool,
    /// The child to end; only ever one that has not been waited for, so the number is still its own.
    child: Mutex<Option<Pid>>,
}

/// The program was asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

impl Interrupt {
    /// Starts to listen for SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(crate) fn listen() -> io::Result<Self> {
        let interrupt = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let shared = interrupt.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for _ in signals.forever() {
                shared.raise();
            }
        })?;
        Ok(interrupt)
    }

    /// What a signal does.
    pub(crate) fn raise(&self) {
        self.0.raised.store(true, Ordering::SeqCst);
        self.end_child(Signal::TERM);
    }

    /// # Errors
    /// [`Interrupted`] once a signal has arrived.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.0.raised.load(Ordering::SeqCst) {
            return Err(Interrupted);
        }
        Ok(())
    }

    /// Makes `child` the one that a signal ends, until the guard is dropped.
    pub(crate) fn watch<'a>(&'a self, child: &Child) -> Watch<'a> {
        *self.child() = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // The signal may have come between the start of the child and this line.
        if self.check().is_err() {
            self.end_child(Signal::TERM);
        }
        Watch(self)
    }

    /// Sends the child of the moment a signal, if there is one.
    pub(crate) fn end_child(&self, signal: Signal) {
        if let Some(pid) = *self.child() {
            // A child that is gone already is what we want.
            let _ = kill_process(pid, signal);
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child that a signal ends. Drop it before waiting for the child.
#[derive(Debug)]
pub(crate) struct Watch<'a>(&'a Interrupt);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *self.0.child() = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_raised_interrupt_ends_the_watched_child() {
        let interrupt = Interrupt::default();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let watch = interrupt.watch(&child);

        interrupt.raise();

        drop(watch);
        assert_eq!(child.wait().unwrap().signal(), Some(SIGTERM));
        assert!(interrupt.check().is_err());
    }

    #[test]
    fn a_child_started_after_the_signal_ends_too() {
        let interrupt = Interrupt::default();
        interrupt.raise();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();

        drop(interrupt.watch(&child));

        assert_eq!(child.wait().unwrap().signal(), Some(SIGTERM));
    }
}
