#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::PauseReason::{Request, TagStorage};
use super::*;

/// A state that has been brought to where it is to be.
fn settled(mut state: RunState) -> RunState {
    while let Some(change) = state.pending() {
        state.done(change);
    }
    state
}

fn running() -> RunState {
    let mut state = RunState::new();
    state.release(Request);
    settled(state)
}

#[test]
fn a_new_guest_waits_for_a_request() {
    let mut state = RunState::new();
    assert!(!state.is_running());
    assert_eq!(state.pending(), None);

    state.release(Request);

    assert_eq!(state.pending(), Some(Change::Unquiesce));
    assert!(settled(state).is_running());
}

#[test]
fn it_runs_once_the_last_reason_is_gone() {
    let mut state = running();
    state.pause_for(Request, "");
    state.pause_for(TagStorage, "none left");
    let mut state = settled(state);
    assert!(!state.is_running());

    state.release(Request);
    assert_eq!(state.pending(), None);
    assert_eq!(state.reason(TagStorage), Some("none left"));

    state.release(TagStorage);
    assert_eq!(state.pending(), Some(Change::Unquiesce));
}

#[test]
fn a_change_that_failed_stays_pending() {
    let mut state = running();
    state.pause_for(TagStorage, "none left");
    assert_eq!(state.pending(), Some(Change::Quiesce));
    assert_eq!(state.pending(), Some(Change::Quiesce));
    assert!(state.is_running());

    // The reason goes before the change was ever made: nothing is left to do.
    state.release(TagStorage);
    assert_eq!(state.pending(), None);
}

#[test]
fn a_reason_is_one_however_often_it_is_given() {
    let mut state = running();
    state.pause_for(TagStorage, "first");
    state.pause_for(TagStorage, "second");
    assert_eq!(state.reason(TagStorage), Some("second"));

    state.release(TagStorage);

    assert_eq!(state.reason(TagStorage), None);
    assert_eq!(state.pending(), None);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pause(PauseReason),
    Release(PauseReason),
    /// The pending change is tried; `false`: it fails.
    Try(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let reason = || prop_oneof![Just(Request), Just(TagStorage)];
    prop_oneof![
        reason().prop_map(Step::Pause),
        reason().prop_map(Step::Release),
        any::<bool>().prop_map(Step::Try),
    ]
}

proptest! {
    #[test]
    fn it_is_always_one_change_away_from_where_it_is_to_be(
        steps in prop::collection::vec(step(), 0..64),
    ) {
        let mut state = RunState::new();
        let (mut request, mut exhausted) = (true, false);
        let mut changes = Vec::new();
        for step in steps {
            match step {
                Step::Pause(Request) => request = true,
                Step::Pause(TagStorage) => exhausted = true,
                Step::Release(Request) => request = false,
                Step::Release(TagStorage) => exhausted = false,
                Step::Try(_) => {}
            }
            match step {
                Step::Pause(reason) => state.pause_for(reason, "why"),
                Step::Release(reason) => state.release(reason),
                Step::Try(succeeds) => {
                    if let Some(change) = state.pending().filter(|_| succeeds) {
                        state.done(change);
                        changes.push(change);
                    }
                }
            }
            prop_assert_eq!(state.pending().is_none(), state.is_running() != (request || exhausted));
        }
        // The machine is never quiesced twice, nor released twice.
        prop_assert!(changes.iter().step_by(2).all(|change| *change == Change::Unquiesce));
        prop_assert!(changes.iter().skip(1).step_by(2).all(|change| *change == Change::Quiesce));
        let state = settled(state);
        prop_assert_eq!(state.is_running(), !request && !exhausted);
    }
}
