//! Pages that wait for the rest of their huge page.

use super::*;

const HUGE: u64 = 2 * MIB;

/// Where a driver says what it has.
const ACTUAL: u64 = 4;

/// A balloon that is to have this much, of a driver that has acknowledged these features.
fn bench(target: u64, acked: Features) -> Bench {
    let mut bench = Bench::on(BalloonConfig { target, ..EVERYTHING }, 4 * KIB, Some(HUGE));
    bench.balloon.activate(acked.with(Features::VERSION_1));
    bench
}

fn waiting() -> Bench {
    bench(6 * MIB, Features::BALLOON_MUST_TELL_HOST)
}

/// The n-th MiB of guest memory, as Linux lists it.
fn mib(number: u32) -> std::ops::Range<u32> {
    FIRST + number * 256..FIRST + (number + 1) * 256
}

/// Returns the queue that is to be served for it.
fn write_actual(bench: &mut Bench, mib: u32) -> Option<usize> {
    bench.balloon.write_config(ACTUAL, &(mib * 256).to_le_bytes())
}

fn say_actual(bench: &mut Bench, mib: u32) {
    if let Some(queue) = write_actual(bench, mib) {
        bench.serve(queue).unwrap();
    }
}

#[test]
fn a_write_of_the_driver_gives_nothing_back_itself() {
    let mut bench = waiting();
    bench.send_pages(INFLATE, mib(2)).unwrap();

    let due = [1, 1, 1].map(|actual| write_actual(&mut bench, actual));

    // A vCPU's thread writes, which may not make the calls that a discard takes.
    assert_eq!((due, bench.discarded()), ([None, Some(INFLATE), Some(INFLATE)], vec![]));
    bench.serve(INFLATE).unwrap();
    assert_eq!(bench.discarded(), [range(RAM.start.0 + 2 * MIB, MIB)]);
    assert_eq!(write_actual(&mut bench, 1), None);
}

#[test]
fn a_huge_page_is_given_back_in_one_piece() {
    let mut bench = waiting();

    bench.send_pages(INFLATE, mib(2)).unwrap();
    say_actual(&mut bench, 1);
    let first = bench.discarded();
    bench.send_pages(INFLATE, mib(3)).unwrap();

    assert_eq!((first, bench.discarded()), (vec![], vec![range(RAM.start.0 + 2 * MIB, HUGE)]));
    assert_eq!(bench.inflated(), 2 * MIB);
    assert_eq!(bench.counter(|counters| &counters.discarded), 2 * MIB);
}

#[test]
fn nothing_waits_behind_a_list_that_is_not_full() {
    let mut bench = waiting();

    bench.send_pages(INFLATE, mib(0)).unwrap();
    bench.send_pages(INFLATE, [FIRST + 300]).unwrap();

    assert_eq!(bench.discarded(), [range(RAM.start.0, MIB), page_range(FIRST + 300, 1)]);
}

#[test]
fn nothing_waits_once_the_target_is_reached() {
    let mut bench = bench(3 * MIB, Features::BALLOON_MUST_TELL_HOST);

    (0..3).for_each(|number| bench.send_pages(INFLATE, mib(number)).unwrap());

    assert_eq!(bench.discarded(), [range(RAM.start.0, HUGE), range(RAM.start.0 + HUGE, MIB)]);
}

#[test]
fn nothing_waits_once_no_more_is_asked_for() {
    let mut bench = waiting();

    bench.send_pages(INFLATE, mib(0)).unwrap();
    let first = bench.discarded();
    bench.balloon.set_target(MIB);

    assert_eq!((first, bench.discarded()), (vec![], vec![range(RAM.start.0, MIB)]));
}

#[test]
fn nothing_waits_when_the_driver_has_found_no_more() {
    let mut bench = waiting();

    bench.send_pages(INFLATE, mib(0)).unwrap();
    say_actual(&mut bench, 1);
    let first = bench.discarded();
    say_actual(&mut bench, 1);

    assert_eq!((first, bench.discarded()), (vec![], vec![range(RAM.start.0, MIB)]));
}

#[test]
fn pages_are_given_back_before_any_is_the_drivers_again() {
    let mut bench = waiting();

    bench.send_pages(INFLATE, mib(0)).unwrap();
    bench.send_pages(DEFLATE, [FIRST]).unwrap();
    let used = bench.calls.lock().unwrap()[0].used[DEFLATE];
    let discarded = bench.discarded();
    say_actual(&mut bench, 1);

    assert_eq!((discarded, used), (vec![range(RAM.start.0, MIB)], 0));
    assert_eq!(bench.discarded(), []);
}

#[test]
fn a_reset_gives_nothing_back_that_waited() {
    let mut bench = waiting();

    bench.send_pages(INFLATE, mib(0)).unwrap();
    bench.restart(Features::BALLOON_MUST_TELL_HOST.with(Features::VERSION_1));
    say_actual(&mut bench, 0);

    assert_eq!(bench.discarded(), []);
}

#[test]
fn pages_of_a_driver_that_does_not_wait_go_at_once() {
    let mut bench = bench(6 * MIB, Features::default());

    bench.send_pages(INFLATE, mib(0)).unwrap();

    assert_eq!(bench.discarded(), [range(RAM.start.0, MIB)]);
}

/// The same as [`waiting`], on a host whose huge pages have two pages.
fn of_two_pages() -> Bench {
    let mut bench = Bench::on(EVERYTHING, 4 * KIB, Some(2 * PAGE));
    bench.balloon.activate(Features::BALLOON_MUST_TELL_HOST.with(Features::VERSION_1));
    bench
}

#[test]
fn a_huge_page_that_went_in_pieces_is_renewed_once_all_of_it_has_gone() {
    let mut bench = of_two_pages();

    bench.send_pages(INFLATE, [FIRST, FIRST + 2, FIRST + 3]).unwrap();
    let first = bench.renewed.lock().unwrap().drain(..).collect::<Vec<_>>();
    bench.send_pages(INFLATE, [FIRST + 1]).unwrap();

    assert_eq!(first, [page_range(FIRST + 2, 2)]);
    assert_eq!(*bench.renewed.lock().unwrap(), [page_range(FIRST, 2)]);
}

#[test]
fn huge_pages_are_renewed_up_to_a_number_in_a_turn() {
    let mut bench = of_two_pages();

    bench.send_pages(INFLATE, FIRST..FIRST + 2).unwrap();
    for (first, at) in [(FIRST + 4, DATA), (FIRST + 516, DATA + 4 * KIB)] {
        let pages: Vec<u8> = (first..first + 510).flat_map(u32::to_le_bytes).collect();
        bench.store(at, &pages);
        bench.post(INFLATE, &[(at, 4 * 510, 0)]);
    }
    bench.serve(INFLATE).unwrap();

    let renewed = bench.renewed.lock().unwrap().drain(..).collect::<Vec<_>>();
    let (second, third) = (page_range(FIRST + 4, 510), page_range(FIRST + 516, 2));
    assert_eq!(renewed, [page_range(FIRST, 2), second, third]);
}
