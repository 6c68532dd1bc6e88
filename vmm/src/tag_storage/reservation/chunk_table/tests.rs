#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const CHUNK_0: ChunkIndex = ChunkIndex(0);

fn populated() -> ChunkTable {
    let mut table = ChunkTable::new(2);
    assert!(table.begin_populate(CHUNK_0));
    table.end_populate(CHUNK_0);
    table
}

#[test]
fn a_chunk_is_populated_and_discarded_and_so_on() {
    let mut table = ChunkTable::new(2);
    for _ in 0..2 {
        assert_eq!(table.touch(CHUNK_0), Touched::Absent);
        assert!(table.begin_populate(CHUNK_0));
        assert_eq!(table.state(CHUNK_0), Some(State::Populating));
        table.end_populate(CHUNK_0);
        assert_eq!((table.state(CHUNK_0), table.held()), (Some(State::Populated), 1));
        assert_eq!(table.begin_discard(CHUNK_0), Discard::Begun);
        assert_eq!((table.state(CHUNK_0), table.held()), (Some(State::Discarding), 1));
        assert!(!table.end_discard(CHUNK_0, true));
        assert_eq!((table.state(CHUNK_0), table.held()), (Some(State::Absent), 0));
    }
}

#[test]
fn a_second_populate_and_a_second_discard_change_nothing() {
    let mut table = populated();

    assert!(!table.begin_populate(CHUNK_0));
    assert_eq!(table.state(CHUNK_0), Some(State::Populated));
    assert_eq!(table.begin_discard(CHUNK_0), Discard::Begun);
    assert_eq!(table.begin_discard(CHUNK_0), Discard::Nothing);
    assert!(!table.end_discard(CHUNK_0, true));
    assert!(!table.end_discard(CHUNK_0, true));
    assert_eq!(table.begin_discard(CHUNK_0), Discard::Nothing);
    assert_eq!(table.held(), 0);
}

#[test]
fn a_touch_during_a_discard_is_told_at_its_end() {
    for gone in [true, false] {
        let mut table = populated();
        table.begin_discard(CHUNK_0);

        assert_eq!(table.touch(CHUNK_0), Touched::Busy);
        assert_eq!(table.touch(CHUNK_0), Touched::Busy);

        assert!(table.end_discard(CHUNK_0, gone));
        let expected = if gone { State::Absent } else { State::Populated };
        assert_eq!((table.state(CHUNK_0), table.held()), (Some(expected), u64::from(!gone)));
    }
}

#[test]
fn a_chunk_that_is_served_again_is_not_discarded_meanwhile() {
    let mut table = populated();

    assert_eq!(table.touch(CHUNK_0), Touched::Populated);
    assert_eq!(table.begin_discard(CHUNK_0), Discard::Populating);
    table.end_populate(CHUNK_0);

    assert_eq!(table.begin_discard(CHUNK_0), Discard::Begun);
}

#[test]
fn a_chunk_that_is_ahead_has_a_slot_and_is_touched_or_freed() {
    for touched in [true, false] {
        let mut table = ChunkTable::new(2);
        assert!(table.begin_populate(CHUNK_0));
        table.end_ahead(CHUNK_0);
        assert_eq!((table.state(CHUNK_0), table.held()), (Some(State::Ahead), 1));
        assert_eq!(table.ahead(), [CHUNK_0]);

        match touched {
            true => table.settle(CHUNK_0),
            false => {
                assert_eq!(table.begin_discard(CHUNK_0), Discard::Begun);
                assert!(!table.end_discard(CHUNK_0, true));
            }
        }

        let expected = if touched { State::Populated } else { State::Absent };
        assert_eq!((table.state(CHUNK_0), table.held()), (Some(expected), u64::from(touched)));
        assert!(table.ahead().is_empty());
    }
}

#[test]
fn a_chunk_that_was_ahead_before_a_discard_that_fails_is_so_again() {
    let mut table = ChunkTable::new(2);
    assert!(table.begin_populate(CHUNK_0));
    table.end_ahead(CHUNK_0);

    assert_eq!(table.begin_discard(CHUNK_0), Discard::Begun);
    assert!(!table.end_discard(CHUNK_0, false));

    assert_eq!((table.state(CHUNK_0), table.held()), (Some(State::Ahead), 1));
    table.settle(CHUNK_0);
    assert_eq!(table.begin_discard(CHUNK_0), Discard::Begun);
    assert!(!table.end_discard(CHUNK_0, false));
    assert_eq!(table.state(CHUNK_0), Some(State::Populated));
    assert!(table.ahead().is_empty());
}

#[test]
fn a_chunk_outside_is_nothing() {
    let mut table = populated();
    for chunk in [ChunkIndex(2), ChunkIndex(u64::MAX)] {
        assert_eq!(table.touch(chunk), Touched::Outside);
        assert!(!table.begin_populate(chunk));
        table.end_populate(chunk);
        assert_eq!(table.begin_discard(chunk), Discard::Nothing);
        assert!(!table.end_discard(chunk, true));
        assert_eq!(table.state(chunk), None);
    }
    assert_eq!((table.held(), table.len()), (1, 2));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Touch,
    BeginPopulate,
    EndPopulate,
    EndAhead,
    Settle,
    BeginDiscard,
    EndDiscard(bool),
    LeaveToLoader,
    BeginLoad,
    EndLoad,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        Just(Step::Touch),
        Just(Step::BeginPopulate),
        Just(Step::EndPopulate),
        Just(Step::EndAhead),
        Just(Step::Settle),
        Just(Step::BeginDiscard),
        any::<bool>().prop_map(Step::EndDiscard),
        Just(Step::LeaveToLoader),
        Just(Step::BeginLoad),
        Just(Step::EndLoad),
    ];
    prop::collection::vec((0..5u64, step), 0..200)
}

fn is_loaders(state: &State) -> bool {
    matches!(state, State::Unloaded | State::Loading)
}

/// What a chunk's state must be after a step.
fn follows(before: State, was_ahead: bool, step: Step) -> State {
    use State::{Absent, Ahead, Discarding, Loading, Populated, Populating, Unloaded};
    match (before, step) {
        (Absent, Step::BeginPopulate) | (Populated | Ahead, Step::Touch) => Populating,
        (Discarding, Step::EndDiscard(false)) if was_ahead => Ahead,
        (Populating, Step::EndPopulate) | (Discarding, Step::EndDiscard(false)) => Populated,
        (Populating, Step::EndAhead) => Ahead,
        (Ahead, Step::Settle) => Populated,
        (Populated | Ahead, Step::BeginDiscard) => Discarding,
        (Discarding, Step::EndDiscard(true)) => Absent,
        (Absent, Step::LeaveToLoader) => Unloaded,
        (Unloaded, Step::BeginLoad) => Loading,
        (Loading, Step::EndLoad) => Populated,
        (state, _) => state,
    }
}

proptest! {
    #[test]
    fn any_steps_leave_each_chunk_in_the_state_of_the_diagram(steps in steps()) {
        let mut table = ChunkTable::new(4);
        let mut model = [State::Absent; 4];
        // Ahead, or Discarding after that.
        let mut was_ahead = [false; 4];
        // Loading, and given back in part.
        let mut thinned = [false; 4];

        for (chunk, step) in steps {
            let at = ChunkIndex(chunk);
            match step {
                Step::Touch => drop(table.touch(at)),
                Step::BeginPopulate => {
                    let taken = table.begin_populate(at);
                    let absent = model.get(chunk as usize).is_some_and(|now| *now == State::Absent);
                    prop_assert_eq!(taken, absent);
                }
                Step::LeaveToLoader => table.leave_to_loader(at),
                Step::BeginLoad => {
                    let is_unloaded = model.get(chunk as usize) == Some(&State::Unloaded);
                    prop_assert_eq!(table.begin_load(at), is_unloaded);
                }
                Step::EndLoad => {
                    let is_thinned = thinned.get(chunk as usize) == Some(&true);
                    prop_assert_eq!(table.end_load(at), is_thinned);
                }
                Step::EndPopulate => table.end_populate(at),
                Step::EndAhead => table.end_ahead(at),
                Step::Settle => table.settle(at),
                Step::BeginDiscard => {
                    let is_loaders = model.get(chunk as usize).is_some_and(is_loaders);
                    prop_assert_eq!(table.begin_discard(at) == Discard::Loader, is_loaders);
                }
                Step::EndDiscard(gone) => drop(table.end_discard(at, gone)),
            }
            if let Some(now) = model.get_mut(chunk as usize) {
                let thinned = &mut thinned[chunk as usize];
                *thinned = *now == State::Loading
                    && (*thinned || matches!(step, Step::BeginDiscard))
                    && !matches!(step, Step::EndLoad);
                let was_ahead = &mut was_ahead[chunk as usize];
                *now = follows(*now, *was_ahead, step);
                *was_ahead = *now == State::Ahead || (*now == State::Discarding && *was_ahead);
            }
            for (index, state) in model.iter().enumerate() {
                prop_assert_eq!(table.state(ChunkIndex(index as u64)), Some(*state));
            }
            let has_slot = |state: &&State| !matches!(**state, State::Absent | State::Unloaded);
            let held = model.iter().filter(has_slot).count();
            prop_assert_eq!(table.held(), held as u64);
            let mut ahead: Vec<usize> = table.ahead().iter().map(|at| at.0 as usize).collect();
            ahead.sort_unstable();
            let all: Vec<usize> = (0..model.len()).filter(|index| was_ahead[*index]).collect();
            prop_assert_eq!(ahead, all);
            let loaded: Vec<u64> = table.loaded().into_iter().flat_map(|run| run.start.0..run.end.0).collect();
            let all: Vec<u64> = (0..4).filter(|at| !is_loaders(&model[*at as usize])).collect();
            prop_assert_eq!(loaded, all);
            let runs = table.loaded();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", runs);
        }
    }
}
