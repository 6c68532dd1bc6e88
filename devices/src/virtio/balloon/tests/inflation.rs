//! What inflating and deflating do.

use super::*;

#[test]
fn inflated_pages_are_discarded_in_as_few_ranges_as_possible() {
    let mut bench = Bench::new();
    let mut pages: Vec<u32> = (0..250).map(|page| FIRST + 500 + page).collect();
    pages.extend([FIRST + 3, FIRST + 500, FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 900]);
    pages.reverse();

    bench.send_pages(INFLATE, pages).unwrap();

    assert_eq!(
        bench.discarded(),
        [page_range(FIRST + 1, 3), page_range(FIRST + 500, 250), page_range(FIRST + 900, 1)]
    );
    assert_eq!(bench.inflated(), 254 * PAGE);
    assert_eq!(bench.counter(|counters| &counters.discarded), 254 * PAGE);
    assert_eq!(bench.used(INFLATE), [(0, 0)]);
}

#[test]
fn a_list_may_be_cut_anywhere() {
    let mut bench = Bench::new();
    let bytes: Vec<u8> = (FIRST..FIRST + 8).flat_map(u32::to_le_bytes).collect();
    bench.store(DATA, &bytes);

    bench
        .send(
            INFLATE,
            &[
                (DATA, 3, 0),
                (DATA + 3, 0, 0),
                (DATA + 3, 10, 0),
                (0, 64, WRITE),
                (DATA + 13, 19, 0),
            ],
        )
        .unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST, 8)]);
}

#[test]
fn a_list_may_come_through_a_table() {
    let mut bench = Bench::new();
    bench.store(DATA, &FIRST.to_le_bytes());
    bench.store(DATA + 4, &(FIRST + 1).to_le_bytes());
    bench.descriptor(DATA + 0x100, (DATA, 4, NEXT), 1);
    bench.descriptor(DATA + 0x110, (DATA + 4, 4, 0), 0);

    bench.send(INFLATE, &[(DATA + 0x100, 32, INDIRECT)]).unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST, 2)]);
}

#[test]
fn the_host_page_is_discarded_when_its_last_part_comes() {
    for page_size in [16 * KIB, 64 * KIB, 2 * MIB] {
        let parts = u32::try_from(page_size / PAGE).unwrap();
        let mut bench = Bench::with(EVERYTHING, page_size);

        bench.send_pages(INFLATE, (FIRST..FIRST + parts).skip(1)).unwrap();
        let early = bench.discarded();
        bench.send_pages(INFLATE, [FIRST]).unwrap();

        assert_eq!(early, []);
        assert_eq!(bench.discarded(), [range(RAM.start.0, page_size)]);
        assert_eq!(bench.counter(|counters| &counters.discarded), page_size);
        assert_eq!(bench.inflated(), page_size);
    }
}

#[test]
fn a_driver_that_does_not_wait_gives_host_pages_in_one_chain_only() {
    let mut bench = Bench::idle(EVERYTHING, 16 * KIB);
    bench.balloon.activate(Features::VERSION_1);

    bench.send_pages(INFLATE, [FIRST, FIRST + 1]).unwrap();
    bench.send_pages(INFLATE, [FIRST + 2, FIRST + 3]).unwrap();
    bench.send_pages(INFLATE, FIRST + 4..FIRST + 8).unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST + 4, 4)]);
    assert_eq!(bench.inflated(), 32 * KIB);
}

#[test]
fn inflating_and_deflating_again_and_again_is_exact() {
    for page_size in [4 * KIB, 16 * KIB, 64 * KIB] {
        let mut bench = Bench::with(EVERYTHING, page_size);
        for _ in 0..20 {
            bench.send_pages(INFLATE, FIRST..FIRST + 256).unwrap();
            assert_eq!(bench.discarded(), [range(RAM.start.0, MIB)]);
            assert_eq!(bench.inflated(), MIB);

            bench.send_pages(DEFLATE, FIRST..FIRST + 100).unwrap();
            assert_eq!(bench.inflated(), 156 * PAGE);

            bench.send_pages(INFLATE, FIRST..FIRST + 100).unwrap();
            let whole = 100 * PAGE;
            assert_eq!(bench.discarded(), [range(RAM.start.0, whole.next_multiple_of(page_size))]);

            bench.send_pages(DEFLATE, (FIRST..FIRST + 256).rev()).unwrap();
            assert_eq!(bench.inflated(), 0);
        }
    }
}

#[test]
fn a_page_that_is_in_the_balloon_is_not_inflated_twice() {
    let mut bench = Bench::new();

    bench.send_pages(INFLATE, [FIRST, FIRST]).unwrap();
    bench.send_pages(INFLATE, [FIRST, FIRST + 1]).unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST, 1), page_range(FIRST + 1, 1)]);
    assert_eq!(bench.inflated(), 2 * PAGE);
}

#[test]
fn deflating_what_was_never_inflated_changes_nothing() {
    let mut bench = Bench::new();

    bench.send_pages(DEFLATE, FIRST..FIRST + 10).unwrap();
    bench.send_pages(INFLATE, [FIRST]).unwrap();
    bench.send_pages(DEFLATE, [FIRST + 1, FIRST, FIRST, FIRST]).unwrap();

    assert_eq!(bench.inflated(), 0);
    assert_eq!(bench.used(DEFLATE).len(), 2);
}

#[test]
fn pages_outside_guest_memory_are_counted_and_ignored() {
    let mut bench = Bench::new();
    let outside = [0, 1, FIRST - 1, FIRST + 2048, u32::MAX];

    bench.send_pages(INFLATE, outside.into_iter().chain([FIRST + 7])).unwrap();
    bench.send_pages(DEFLATE, outside).unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST + 7, 1)]);
    assert_eq!(bench.inflated(), PAGE);
    assert_eq!(bench.counter(|counters| &counters.outside), 10 * PAGE);
    assert_eq!((bench.used(INFLATE).len(), bench.used(DEFLATE).len()), (1, 1));
}

#[test]
fn what_the_host_refuses_is_counted_and_the_driver_is_answered() {
    let mut bench = Bench::new();
    bench.refuses.store(true, Ordering::Relaxed);

    bench.send_pages(INFLATE, [FIRST]).unwrap();

    assert_eq!(bench.counter(|counters| &counters.failed), PAGE);
    assert_eq!(bench.counter(|counters| &counters.discarded), 0);
    assert_eq!((bench.inflated(), bench.used(INFLATE).len()), (PAGE, 1));
}

#[test]
fn inflated_pages_are_discarded_whatever_the_poison() {
    let mut bench = Bench::idle(EVERYTHING, 4 * KIB);
    bench.balloon.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
    bench.balloon.activate(Features::BALLOON_PAGE_POISON);

    bench.send_pages(INFLATE, [FIRST]).unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST, 1)]);
}

#[test]
fn inflated_pages_are_discarded_while_reporting_is_off() {
    let mut bench = Bench::new();
    bench.balloon.set_reporting(false);

    bench.send_pages(INFLATE, [FIRST]).unwrap();

    assert_eq!(bench.discarded(), [page_range(FIRST, 1)]);
}

#[test]
fn while_pages_are_discarded_the_driver_has_no_answer() {
    let mut bench = Bench::new();
    for (chain, page) in [(0, FIRST), (1, FIRST + 2)] {
        let address = DATA + 64 * chain;
        bench.store(address, &[page, page + 10].map(u32::to_le_bytes).concat());
        bench.post(INFLATE, &[(address, 8, 0)]);
    }

    bench.serve(INFLATE).unwrap();

    let calls = bench.calls.lock().unwrap().clone();
    let seen: Vec<u16> = calls.iter().map(|call| call.used[INFLATE]).collect();
    assert_eq!(seen, [0, 0, 1, 1]);
    assert_eq!(bench.used(INFLATE).len(), 2);
}
