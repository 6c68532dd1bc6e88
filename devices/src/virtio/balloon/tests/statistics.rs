//! The one buffer of the statistics queue.

use super::*;

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [tag.to_le_bytes().as_slice(), &value.to_le_bytes()].concat()
}

fn free_memory(bench: &Bench) -> Option<u64> {
    bench.balloon.statistics().and_then(|statistics| statistics.free_memory)
}

#[test]
fn a_buffer_is_read_and_held() {
    let mut bench = Bench::new();

    bench.send_bytes(STATISTICS, &[entry(4, 1234), entry(99, 1)].concat()).unwrap();

    assert_eq!(free_memory(&bench), Some(1234));
    assert_eq!(bench.used(STATISTICS), []);
    assert_eq!(bench.counter(|counters| &counters.statistics), 1);
}

#[test]
fn statistics_go_with_the_balloon_of_their_moment() {
    let mut bench = Bench::new();
    bench.balloon.write_config(4, &300_u32.to_le_bytes());
    bench.send_bytes(STATISTICS, &entry(4, 1)).unwrap();

    bench.balloon.write_config(4, &700_u32.to_le_bytes());

    assert_eq!(bench.balloon.actual(), 700 << 12);
    assert_eq!(bench.balloon.actual_at_statistics(), 300 << 12);
    bench.balloon.reset();
    assert_eq!(bench.balloon.actual_at_statistics(), 0);
}

#[test]
fn a_request_returns_the_buffer_and_the_next_is_held_again() {
    let mut bench = Bench::new();
    bench.send_bytes(STATISTICS, &entry(4, 1)).unwrap();

    bench.balloon.request_statistics();
    bench.serve(STATISTICS).unwrap();
    let asked = bench.used(STATISTICS);
    bench.send_bytes(STATISTICS, &entry(4, 2)).unwrap();
    bench.serve(STATISTICS).unwrap();

    assert_eq!(asked, [(0, 0)]);
    assert_eq!(free_memory(&bench), Some(2));
    assert_eq!(bench.used(STATISTICS), [(0, 0)], "without a request it stays");
}

#[test]
fn a_request_with_no_buffer_held_is_answered_by_the_one_on_its_way() {
    let mut bench = Bench::new();

    bench.balloon.request_statistics();
    bench.serve(STATISTICS).unwrap();
    bench.send_bytes(STATISTICS, &entry(4, 5)).unwrap();

    assert_eq!(free_memory(&bench), Some(5));
    assert_eq!(bench.used(STATISTICS), []);
}

#[test]
fn of_several_buffers_the_newest_is_held() {
    let mut bench = Bench::new();
    for buffer in 0..3_u32 {
        let address = DATA + 64 * u64::from(buffer);
        bench.store(address, &entry(4, u64::from(buffer)));
        bench.post(STATISTICS, &[(address, 10, 0)]);
    }

    bench.serve(STATISTICS).unwrap();

    assert_eq!(free_memory(&bench), Some(2));
    assert_eq!(bench.used(STATISTICS), [(0, 0), (1, 0)]);
}

#[test]
fn a_second_buffer_in_another_call_replaces_the_first() {
    let mut bench = Bench::new();

    bench.send_bytes(STATISTICS, &entry(4, 1)).unwrap();
    bench.send_bytes(STATISTICS, &entry(4, 2)).unwrap();
    bench.balloon.request_statistics();
    bench.serve(STATISTICS).unwrap();

    assert_eq!(free_memory(&bench), Some(2));
    assert_eq!(bench.used(STATISTICS), [(0, 0), (1, 0)]);
}

#[test]
fn an_empty_buffer_is_held_and_says_nothing() {
    let mut bench = Bench::new();

    bench.send(STATISTICS, &[(0, 0, 0)]).unwrap();
    let first = bench.balloon.statistics().copied();
    bench.balloon.request_statistics();
    bench.serve(STATISTICS).unwrap();

    assert_eq!(first, None);
    assert_eq!(bench.used(STATISTICS), [(0, 0)]);
}

#[test]
fn a_new_buffer_says_all_there_is() {
    let mut bench = Bench::new();

    bench.send_bytes(STATISTICS, &[entry(4, 1), entry(5, 2)].concat()).unwrap();
    bench.send_bytes(STATISTICS, &entry(5, 3)).unwrap();

    let expected = Statistics { total_memory: Some(3), ..Statistics::default() };
    assert_eq!(bench.balloon.statistics(), Some(&expected));
}

#[test]
fn odd_sizes_give_the_whole_entries() {
    for length in 1..30 {
        let mut bench = Bench::new();
        bench.store(DATA, &[entry(4, 7), entry(5, 8), entry(6, 9)].concat());

        bench.send(STATISTICS, &[(DATA, length, 0)]).unwrap();

        let found = bench.balloon.statistics().unwrap();
        assert_eq!(found.free_memory.is_some(), length >= 10);
        assert_eq!(found.total_memory.is_some(), length >= 20);
        assert_eq!(found.available_memory, None);
    }
}

#[test]
fn entries_may_be_cut_anywhere() {
    let mut bench = Bench::new();
    bench.store(DATA, &[entry(4, 7), entry(5, 8)].concat());

    bench
        .send(STATISTICS, &[(DATA, 1, 0), (DATA + 1, 12, 0), (0, 9, WRITE), (DATA + 13, 7, 0)])
        .unwrap();

    let expected =
        Statistics { free_memory: Some(7), total_memory: Some(8), ..Statistics::default() };
    assert_eq!(bench.balloon.statistics(), Some(&expected));
}

#[test]
fn of_a_huge_buffer_the_first_256_entries_count() {
    let mut bench = Bench::new();
    let mut bytes = entry(99, 0).repeat(255);
    bytes.extend([entry(4, 1), entry(4, 2), entry(5, 3)].concat());
    bench.store(DATA, &bytes);

    bench.send(STATISTICS, &[(DATA, 0x40_0000, 0)]).unwrap();

    let expected = Statistics { free_memory: Some(1), ..Statistics::default() };
    assert_eq!(bench.balloon.statistics(), Some(&expected));
}

#[test]
fn a_buffer_for_the_device_to_write_says_nothing() {
    let mut bench = Bench::new();
    bench.store(DATA, &entry(4, 7));

    bench.send(STATISTICS, &[(DATA, 10, WRITE)]).unwrap();

    assert_eq!(bench.balloon.statistics(), None);
}
