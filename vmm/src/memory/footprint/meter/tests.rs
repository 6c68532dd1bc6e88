#![allow(clippy::unwrap_used)]

use std::sync::mpsc::{self, Receiver, Sender};

use arch::units::Bytes;

use super::*;

/// How long a test waits for what takes milliseconds, before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn footprint(bytes: u64) -> Footprint {
    let (resident, huge) = (Bytes::new(bytes), Bytes::ZERO);
    let (swapped, took) = (None, Duration::ZERO);
    Footprint { resident, swapped, huge, shared: None, tagged: Err(Error::NoTags), took }
}

/// A meter whose counts end when the test says so.
struct Bench {
    meter: Meter,
    begun: Receiver<()>,
    end: Sender<Result<Footprint, Error>>,
}

impl Bench {
    fn new(patience: Duration) -> Self {
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let ended = Mutex::new(ended);
        let count = move |_: &AtomicBool| {
            begin.send(()).unwrap();
            ended.lock().unwrap().recv().unwrap_or(Err(Error::Stopped))
        };
        Self { meter: Meter::of(count, patience), begun, end }
    }

    /// Waits until the count that was begun has ended.
    fn wait_for_the_end(&self) {
        let shared = &self.meter.shared;
        let asked = |state: &mut State| state.asked;
        let (state, waited) =
            shared.changed.wait_timeout_while(shared.lock(), DEADLINE, asked).unwrap();
        drop(state);
        assert!(!waited.timed_out());
    }
}

#[test]
fn a_call_counts_anew() {
    let bench = Bench::new(DEADLINE);
    for bytes in [4096, 8192] {
        bench.end.send(Ok(footprint(bytes))).unwrap();
        let found = bench.meter.footprint().unwrap();
        assert_eq!(found.resident, Bytes::new(bytes));
        // However long that took: the next one is to count anew.
        bench.meter.shared.lock().latest = None;
    }
    bench.end.send(Err(Error::NoFrames)).unwrap();
    assert!(matches!(bench.meter.footprint(), Err(Error::NoFrames)));
}

#[test]
fn a_long_count_is_waited_for_once_and_returned_later() {
    let bench = Bench::new(Duration::from_millis(1));
    assert!(matches!(bench.meter.footprint(), Err(Error::Counting)));
    bench.begun.recv_timeout(DEADLINE).unwrap();

    // They do not wait: one call has for this count.
    for _ in 0..100_000 {
        assert!(matches!(bench.meter.footprint(), Err(Error::Counting)));
    }
    bench.end.send(Ok(footprint(4096))).unwrap();
    bench.wait_for_the_end();

    assert_eq!(bench.meter.footprint().unwrap().resident, Bytes::new(4096));
    assert!(bench.begun.try_recv().is_err(), "one count only");
}

#[test]
fn a_count_that_ended_long_ago_is_not_the_footprint_now() {
    let mut bench = Bench::new(Duration::from_millis(1));
    assert!(matches!(bench.meter.footprint(), Err(Error::Counting)));
    bench.begun.recv_timeout(DEADLINE).unwrap();
    bench.end.send(Ok(footprint(4096))).unwrap();
    bench.wait_for_the_end();
    (bench.meter.patience, bench.meter.keep) = (DEADLINE, Duration::ZERO);

    bench.end.send(Ok(footprint(8192))).unwrap();

    assert_eq!(bench.meter.footprint().unwrap().resident, Bytes::new(8192));
}

#[test]
fn calls_in_a_row_share_one_count() {
    let bench = Bench::new(DEADLINE);
    bench.end.send(Ok(footprint(4096))).unwrap();
    bench.meter.footprint().unwrap();
    {
        let mut state = bench.meter.shared.lock();
        let latest = state.latest.as_mut().unwrap();
        (latest.at, latest.took) = (Instant::now(), DEADLINE);
    }

    for _ in 0..160 {
        assert_eq!(bench.meter.footprint().unwrap().resident, Bytes::new(4096));
    }

    assert_eq!(bench.begun.try_iter().count(), 1);
}

#[test]
fn a_count_that_panics_fails_alone() {
    let first = AtomicBool::new(true);
    let count = move |_: &AtomicBool| {
        assert!(!first.swap(false, Ordering::Relaxed), "part of a test");
        Ok(footprint(4096))
    };
    let meter = Meter::of(count, Duration::from_millis(1));
    assert!(matches!(meter.footprint(), Err(Error::Counting)));

    let deadline = Instant::now() + DEADLINE;
    while meter.footprint().is_err() {
        assert!(Instant::now() < deadline, "it does not count again");
        std::thread::yield_now();
    }
}

#[test]
fn a_meter_that_goes_stops_its_count() {
    let (begin, begun) = mpsc::channel();
    let count = move |stop: &AtomicBool| {
        begin.send(()).unwrap();
        while !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        Err(Error::Stopped)
    };
    let meter = Meter::of(count, Duration::from_millis(1));
    assert!(meter.footprint().is_err());
    begun.recv_timeout(DEADLINE).unwrap();

    drop(meter);

    // The thread has gone, and its count with it.
    assert!(begun.try_recv().is_err());
}
