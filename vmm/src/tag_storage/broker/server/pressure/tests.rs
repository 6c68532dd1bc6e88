//! Rounds of asking, at times that the tests choose.
#![allow(clippy::unwrap_used)]

use arch::mte::geometry::Geometry;
use arch::units::Bytes;
use rustix::io::Errno;

use super::*;
use crate::tag_storage::broker::protocol::limits::BUFFER;
use crate::tag_storage::pool::LeaseTerms;
use crate::tag_storage::supply::Ledger;

/// A pool of 16 chunks and the leases in it, each with the other end of its notices.
struct Bench {
    pool: Pool,
    notifier: PressureNotifier,
    clients: Vec<(LeaseId, OwnedFd)>,
}

impl Bench {
    /// Leases that hold so many chunks each.
    fn new(held: &[u32]) -> Self {
        let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
        let pool = Pool::new(geometry, Bytes::mib(1), Box::new(Ledger)).unwrap();
        let notifier = PressureNotifier::default();
        let mut clients = Vec::new();
        for (number, chunks) in (0..).zip(held) {
            let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::ZERO, max: Bytes::MAX };
            let lease = pool.open_lease(terms).unwrap();
            pool.reserve_many(lease, *chunks).unwrap();
            let (ours, theirs) = seqpacket::pair().unwrap();
            notifier.add(number, Holder { lease, pid: 0 }, ours);
            clients.push((lease, theirs));
        }
        Self { pool, notifier, clients }
    }

    fn lacking(&self, number: Number, chunks: u32, now: Instant) {
        self.notifier.lacking(&self.pool, number, chunks, now);
    }

    /// What a client was sent.
    fn sent(&self, number: usize) -> Vec<Notice> {
        let mut sent = Vec::new();
        let mut buffer = [0; BUFFER];
        loop {
            match seqpacket::receive_now(&self.clients[number].1, &mut buffer) {
                Ok(Some(message)) => sent.push(Notice::decode(message).unwrap()),
                Err(Errno::AGAIN) => return sent,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn ask(chunks: u32) -> Vec<Notice> {
    vec![Notice::RequestReclaim { chunks }]
}

#[test]
fn one_round_asks_for_all_that_is_lacking_and_the_next_comes_later() {
    let bench = Bench::new(&[12, 4, 0, 0]);
    let now = Instant::now();

    bench.lacking(2, 3, now);
    bench.lacking(3, 1, now);
    assert_eq!((bench.sent(0), bench.sent(1)), (ask(2), ask(1)));
    bench.lacking(2, 3, now + ASK_EVERY - Duration::from_millis(1));
    assert_eq!((bench.sent(0), bench.sent(1)), (vec![], vec![]));

    bench.lacking(2, 3, now + ASK_EVERY);

    assert_eq!((bench.sent(0), bench.sent(1)), (ask(3), ask(1)));
    assert_eq!((bench.sent(2), bench.sent(3)), (vec![], vec![]));
}

#[test]
fn one_that_gives_nothing_is_left_out_for_a_round() {
    let bench = Bench::new(&[12, 4, 0]);
    let now = Instant::now();

    bench.lacking(2, 1, now);
    assert_eq!((bench.sent(0), bench.sent(1)), (ask(1), vec![]));
    bench.lacking(2, 1, now + ASK_EVERY);
    assert_eq!((bench.sent(0), bench.sent(1)), (vec![], ask(1)));
    bench.lacking(2, 1, now + ASK_EVERY * 2);

    assert_eq!((bench.sent(0), bench.sent(1)), (ask(1), vec![]));
}

#[test]
fn one_that_waits_itself_is_to_give_nothing_of_its_entitlement() {
    // Each is entitled to 5.
    let bench = Bench::new(&[12, 4, 0]);
    let now = Instant::now();
    bench.lacking(2, 4, now);
    assert_eq!((bench.sent(0), bench.sent(1)), (ask(3), ask(1)));

    bench.lacking(1, 1, now);
    bench.lacking(1, 1, now + ASK_EVERY);

    assert_eq!(bench.sent(1), [Notice::StopReclaim]);
}

#[test]
fn one_above_its_entitlement_is_asked_although_it_waits() {
    // Each is entitled to 8: one guest leaks memory, and its neighbour starts.
    let bench = Bench::new(&[16, 0]);
    let now = Instant::now();
    bench.lacking(0, 1, now);
    bench.lacking(1, 3, now);
    assert_eq!(bench.sent(0), []);

    bench.lacking(0, 1, now + ASK_EVERY);
    assert_eq!(bench.sent(0), ask(3));
    // It asks for more all the time.
    bench.lacking(0, 1, now + ASK_EVERY);
    assert_eq!(bench.sent(0), []);

    // There is none any more that it could give for.
    let (lease, _) = bench.clients[1];
    bench.pool.close_lease(lease).unwrap();
    bench.lacking(0, 1, now + ASK_EVERY);
    assert_eq!(bench.sent(0), [Notice::StopReclaim]);
}

#[test]
fn one_with_nothing_left_to_give_is_to_give_no_more() {
    let bench = Bench::new(&[1, 15, 0]);
    let now = Instant::now();
    bench.lacking(2, 16, now);
    assert_eq!((bench.sent(0), bench.sent(1)), (ask(1), ask(15)));
    let (lease, _) = bench.clients[0];
    let mut slots = (0..16).map(crate::tag_storage::pool::SlotIndex);
    slots.find(|slot| bench.pool.free(lease, *slot).is_ok()).unwrap();

    bench.lacking(2, 16, now + ASK_EVERY);

    assert_eq!(bench.sent(0), [Notice::StopReclaim]);
    assert_eq!(bench.sent(1), ask(15));
}

#[test]
fn a_waiting_vm_that_falls_silent_ends_the_asking() {
    let bench = Bench::new(&[16, 0]);
    let now = Instant::now();
    bench.lacking(1, 1, now);
    assert_eq!(bench.sent(0), ask(1));

    bench.notifier.tick(&bench.pool, now + Duration::from_secs(1));
    assert_eq!(bench.sent(0), []);
    bench.notifier.tick(&bench.pool, now + Duration::from_secs(10));

    assert_eq!(bench.sent(0), [Notice::StopReclaim]);
    assert_eq!(bench.sent(1), []);
}

#[test]
fn only_those_that_can_be_served_are_to_retry_and_once() {
    let bench = Bench::new(&[16, 0, 0]);
    let now = Instant::now();
    bench.lacking(1, 1, now);
    bench.lacking(2, 1, now);
    let (lease, _) = bench.clients[0];

    bench.pool.free(lease, crate::tag_storage::pool::SlotIndex(0)).unwrap();
    bench.notifier.freed(&bench.pool);
    bench.notifier.freed(&bench.pool);

    assert_eq!((bench.sent(1), bench.sent(2)), (vec![Notice::Retry], vec![]));
}
