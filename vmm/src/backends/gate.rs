//! Whether devices serve the guest.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::queues::QueueDoorbells;

/// Whether devices serve the guest: not while the VM is paused, so that its memory does not change.
/// Clones are one gate, closed at first.
///
/// What serves a device, in whichever thread, [enters](Self::enter) for each turn.
#[derive(Clone, Default)]
pub struct QueueGate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    idle: Condvar,
    doorbells: Mutex<Vec<QueueDoorbells>>,
}

#[derive(Default)]
struct State {
    open: bool,
    /// How many threads are inside.
    turns: usize,
    /// Since when it has been closed after it was open.
    closed: Option<Instant>,
    /// How long it was closed before.
    closed_before: Duration,
}

/// A turn of a device. The gate is not drained before it is dropped.
#[must_use]
pub struct Turn<'a>(&'a QueueGate);

impl QueueGate {
    /// Begins a turn, or refuses one. What comes from the host's side of a device then waits for its doorbell,
    /// which is signalled when the gate opens.
    pub fn enter(&self) -> Option<Turn<'_>> {
        let mut state = self.state();
        state.open.then(|| {
            state.turns += 1;
            Turn(self)
        })
    }

    /// Lets no further turn begin.
    pub fn close(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.open, false) {
            state.closed = Some(Instant::now());
        }
    }

    /// How long it has been closed in all since it was first opened.
    pub fn time_closed(&self) -> Duration {
        let state = self.state();
        state.closed_before + state.closed.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Waits until no turn is under way, but no longer than `patience`; whether that is so. The gate is closed.
    pub fn drain(&self, patience: Duration) -> bool {
        let state = self.state();
        let drained = self.0.idle.wait_timeout_while(state, patience, |state| state.turns > 0);
        drained.unwrap_or_else(PoisonError::into_inner).0.turns == 0
    }

    /// Opens the gate and signals every queue, because notifications are dropped while it is closed.
    pub fn open(&self) {
        let mut state = self.state();
        state.open = true;
        if let Some(since) = state.closed.take() {
            state.closed_before += since.elapsed();
        }
        drop(state);
        for doorbells in self.doorbells().iter() {
            doorbells.signal_all();
        }
    }

    /// Has these doorbells signalled when the gate opens.
    pub(super) fn watch(&self, doorbells: QueueDoorbells) {
        self.doorbells().push(doorbells);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doorbells(&self) -> MutexGuard<'_, Vec<QueueDoorbells>> {
        self.0.doorbells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.turns -= 1;
        if state.turns == 0 && !state.open {
            self.0.0.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_closed_gate_lets_no_turn_begin() {
        let gate = QueueGate::default();
        assert!(gate.enter().is_none());
        gate.open();
        assert!(gate.enter().is_some());
        gate.close();
        assert!(gate.enter().is_none());
        assert!(gate.drain(LONG));
    }

    #[test]
    fn a_gate_knows_how_long_it_was_closed() {
        let gate = QueueGate::default();
        assert_eq!(gate.time_closed(), Duration::ZERO);
        gate.open();
        assert_eq!(gate.time_closed(), Duration::ZERO);
        let start = Instant::now();
        gate.close();
        while gate.time_closed() < Duration::from_millis(2) {}
        gate.close();
        gate.open();
        let closed = gate.time_closed();
        assert!((Duration::from_millis(2)..=start.elapsed()).contains(&closed), "{closed:?}");

        assert_eq!(gate.time_closed(), closed);
    }

    #[test]
    fn a_gate_is_drained_when_the_last_turn_ends() {
        let gate = QueueGate::default();
        gate.open();
        let (inside, entered) = channel();
        let (end, ended) = channel::<()>();
        let other = gate.clone();
        let thread = thread::spawn(move || {
            let _turn = other.enter().unwrap();
            inside.send(()).unwrap();
            let _ = ended.recv();
        });
        entered.recv().unwrap();

        gate.close();
        assert!(!gate.drain(Duration::ZERO));
        drop(end);

        assert!(gate.drain(LONG));
        thread.join().unwrap();
    }
}
