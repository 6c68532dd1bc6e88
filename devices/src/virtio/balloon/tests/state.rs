//! A balloon that is saved and restored.

use proptest::prelude::*;

use super::*;
use crate::state::{RestoreError, Stateful};
use crate::testing::through_a_file;
use crate::virtio::balloon::pages::{Run, Saved};

/// Another balloon, with a driver that has acknowledged the same, and the state of this one.
fn migrated(bench: &Bench) -> Result<Bench, RestoreError> {
    let mut other = Bench::new();
    other.balloon.reset();
    if let Some(acked) = bench.balloon.driver_features() {
        other.balloon.activate(acked);
    }
    other.balloon.restore(through_a_file(&bench.balloon.save()))?;
    Ok(other)
}

fn empty() -> State {
    Bench::new().balloon.save()
}

fn one_run(first: u32, count: u64) -> State {
    State { pages: Saved::Runs(vec![Run { first, count }]), ..empty() }
}

#[test]
fn pages_target_and_switches_go_along() {
    let mut bench = Bench::new();
    bench.balloon.set_target(3 * MIB);
    bench.balloon.set_reporting(false);
    bench.balloon.write_config(4, &77_u32.to_le_bytes());
    bench.send_pages(INFLATE, (FIRST..FIRST + 70).chain([FIRST + 128, FIRST + 2047])).unwrap();

    let other = migrated(&bench).unwrap();

    assert_eq!(other.balloon.target(), 3 * MIB);
    assert_eq!(other.balloon.actual(), 77 * PAGE);
    assert!(!other.balloon.reporting());
    assert_eq!(other.inflated(), 72 * PAGE);
    let runs = [(FIRST, 70), (FIRST + 128, 1), (FIRST + 2047, 1)];
    let runs = runs.map(|(first, count)| Run { first, count });
    assert_eq!(other.balloon.save().pages, Saved::Runs(runs.to_vec()));
    assert!(other.discarded().is_empty());
}

#[test]
fn pages_that_went_along_can_be_deflated() {
    let mut bench = Bench::new();
    bench.send_pages(INFLATE, FIRST..FIRST + 4).unwrap();

    let mut other = migrated(&bench).unwrap();
    other.send_pages(DEFLATE, FIRST + 1..FIRST + 4).unwrap();

    assert_eq!(other.inflated(), PAGE);
}

#[test]
fn the_buffer_for_statistics_stays_taken() {
    let mut bench = Bench::new();
    bench.send_bytes(STATISTICS, &[4, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    bench.balloon.request_statistics();

    let mut other = migrated(&bench).unwrap();
    assert_eq!(other.balloon.statistics(), bench.balloon.statistics());
    other.serve(STATISTICS).unwrap();

    assert_eq!(other.used(STATISTICS), [(0, 0)]);
}

#[test]
fn an_idle_balloon_goes_along() {
    let bench = Bench::idle(EVERYTHING, 4 * KIB);

    assert_eq!(migrated(&bench).unwrap().balloon.save(), bench.balloon.save());
}

#[test]
fn what_guest_memory_does_not_hold_is_another_configuration() {
    let mut target = empty();
    target.space.num_pages = 2049;
    let outside = [(0, 1), (FIRST - 1, 2), (FIRST, 2049), (FIRST + 2048, 1), (u32::MAX, u64::MAX)];
    let outside = outside.map(|(first, count)| one_run(first, count));
    // The memory has 2048 pages.
    let maps = [vec![[0; 8]; 31], vec![[0; 8]; 33], Vec::new()];
    let maps = maps.map(|map| State { pages: Saved::Map(map), ..empty() });

    for state in outside.into_iter().chain(maps).chain([target]) {
        let error = Bench::new().balloon.restore(state).unwrap_err();

        assert!(matches!(error, RestoreError::Configuration { .. }), "{error}");
    }
}

#[test]
fn runs_that_touch_overlap_or_go_back_are_refused() {
    for runs in [[(0, 2), (2, 1)], [(0, 2), (1, 2)], [(4, 1), (0, 1)], [(0, 1), (4, 0)]] {
        let runs = runs.map(|(first, count)| Run { first: FIRST + first, count }).to_vec();
        let mut bench = Bench::new();
        bench.send_pages(INFLATE, [FIRST + 9]).unwrap();
        let before = bench.balloon.save();

        let pages = Saved::Runs(runs);
        let error = bench.balloon.restore(State { pages, ..empty() }).unwrap_err();

        assert!(matches!(error, RestoreError::Damaged { .. }), "{error}");
        assert_eq!(bench.balloon.save(), before);
    }
}

#[test]
fn what_only_a_driver_brings_needs_one() {
    let pages = one_run(FIRST, 1);
    let map = State { pages: Saved::Map([[[0; 8]; 31].as_slice(), &[[1; 8]]].concat()), ..empty() };
    let held = State { held: Some(Head(0)), ..empty() };
    let statistics = State { statistics: Some(Statistics::default()), ..empty() };

    for state in [pages, map, held, statistics] {
        let mut bench = Bench::idle(EVERYTHING, 4 * KIB);
        assert!(matches!(bench.balloon.restore(state), Err(RestoreError::Damaged { .. })));
    }
}

#[test]
fn a_held_buffer_that_the_queue_does_not_have_breaks_the_device_at_most() {
    let refused = Bench::new().balloon.restore(State { held: Some(Head(128)), ..empty() });
    assert!(refused.is_err());

    let mut bench = Bench::new();
    bench.queues[STATISTICS].set_size(16);
    bench.balloon.restore(State { held: Some(Head(127)), requested: true, ..empty() }).unwrap();

    assert_eq!(bench.serve(STATISTICS), Err(Broken::Used));
}

fn run() -> impl Strategy<Value = Run> {
    let first = prop_oneof![8 => FIRST..FIRST + 2048, 1 => any::<u32>()];
    let count = prop_oneof![8 => 0_u64..300, 1 => any::<u64>()];
    (first, count).prop_map(|(first, count)| Run { first, count })
}

proptest! {
    #[test]
    fn a_hostile_state_is_refused_or_gives_a_balloon_that_works(
        space: (u16, u32, u32),
        mut pages in prop::collection::vec(run(), 0..5),
        sorted: bool,
        held in prop::option::of(0_u16..200),
        switches: (bool, bool),
    ) {
        if sorted {
            pages.sort_unstable_by_key(|run| run.first);
        }
        let state = State {
            space: Space { num_pages: (space.0 % 2200).into(), actual: space.1, poison_val: space.2 },
            reporting: switches.0,
            requested: switches.1,
            held: held.map(Head),
            statistics: None,
            pages: Saved::Runs(pages),
        };
        let mut bench = Bench::new();
        if bench.balloon.restore(state.clone()).is_err() {
            return Ok(());
        }

        prop_assert_eq!(bench.balloon.save(), state);
        prop_assert!(bench.inflated() <= RAM.length);
        for queue in [INFLATE, DEFLATE] {
            bench.send_pages(queue, FIRST..FIRST + 2048).unwrap();
        }
        prop_assert_eq!(bench.inflated(), 0);
        bench.serve(STATISTICS).unwrap();
    }

    #[test]
    fn a_map_of_pages_is_taken_as_it_is(words in prop::collection::vec(any::<[u8; 8]>(), 32)) {
        let mut bench = Bench::new();

        bench.balloon.restore(State { pages: Saved::Map(words.clone()), ..empty() }).unwrap();

        let bits: u32 = words.as_flattened().iter().map(|byte| byte.count_ones()).sum();
        prop_assert_eq!(bench.inflated(), u64::from(bits) * PAGE);
        prop_assert_eq!(migrated(&bench).unwrap().balloon.save(), bench.balloon.save());
    }

    #[test]
    fn any_set_of_pages_goes_along(pages in prop::collection::vec(FIRST..FIRST + 2048, 0..300)) {
        let mut bench = Bench::new();
        bench.send_pages(INFLATE, pages).unwrap();

        let other = migrated(&bench).unwrap();

        prop_assert_eq!(other.balloon.save(), bench.balloon.save());
        prop_assert_eq!(other.inflated(), bench.inflated());
    }
}
