use std::io::{ErrorKind, Read, Write};
use std::num::NonZero;
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;

use super::super::events::Due;
use super::*;
use crate::spec::{BucketChange, BucketSpec, RateLimiterChange, RateLimiterSpec};

/// A place where a peer listens.
struct Place {
    folder: TempDir,
    listener: UnixListener,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("peer")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { folder, listener }
    }

    fn spec(&self) -> NetSpec {
        spec(NetBackendSpec::Stream(self.folder.path().join("peer")))
    }

    fn accept(&self) -> Option<UnixStream> {
        let stream = self.listener.accept().ok()?.0;
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    }

    fn connected(&self) -> (Bench, UnixStream) {
        let bench = Bench::new(&self.spec(), features::MRG_RXBUF).unwrap();
        (bench, self.accept().unwrap())
    }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// Adds what there is to read.
fn read(stream: &mut UnixStream, into: &mut Vec<u8>) {
    let mut bytes = vec![0; 1 << 16];
    match stream.read(&mut bytes) {
        Ok(count) => into.extend(&bytes[..count]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
}

#[test]
fn frames_go_both_ways_in_pieces_of_any_size() {
    let place = Place::new();
    let (mut bench, mut peer) = place.connected();
    (0..8).for_each(|_| bench.offer(RECEIVE, None));
    let frames = [frame(60, 1), frame(14, 2), frame(1514, 3)];
    for byte in frames.iter().flat_map(|frame| framed(frame)) {
        peer.write_all(&[byte]).unwrap();
        bench.settle();
    }
    for expected in &frames {
        assert_eq!(bench.take_frame().as_ref(), Some(expected));
        bench.send(expected);
    }
    let expected: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    let mut sent = Vec::new();

    bench.until("frames", |_| {
        read(&mut peer, &mut sent);
        (sent.len() >= expected.len()).then_some(())
    });

    assert_eq!(sent, expected);
    assert_eq!((bench.metric("tx_frames_total"), bench.metric("rx_frames_total")), (3, 3));
}

#[test]
fn a_peer_that_vanishes_is_a_link_that_is_down_until_it_is_back() {
    let place = Place::new();
    let (mut bench, mut peer) = place.connected();
    for round in 1..4 {
        bench.offer(RECEIVE, None);
        // In the middle of a frame.
        peer.write_all(&framed(&frame(100, 0))[..50]).unwrap();
        bench.settle();
        drop(peer);
        bench.until("link that is down", |bench| (!bench.link_up()).then_some(()));
        bench.send(&frame(60, 0));
        bench.until("dropped frame", |bench| bench.take_used(TRANSMIT));
        assert_eq!(bench.metric("tx_unlinked_total"), round);

        peer = bench.until("connection", |_| place.accept());
        bench.until("link that is up", |bench| bench.link_up().then_some(()));
        peer.write_all(&framed(&frame(80, 5))).unwrap();
        let received = bench.until("frame", Bench::take_frame);
        assert_eq!(received, frame(80, 5));
        assert_eq!(bench.metric("link_changes_total"), 2 * round);
    }
}

#[test]
fn a_peer_that_vanishes_is_noticed_without_a_driver() {
    let place = Place::new();
    let (mut bench, peer) = place.connected();
    bench.settle();
    driver::write(&bench.transport, 0x070, 0);
    drop(peer);

    bench.until("link that is down", |bench| (!bench.link_up()).then_some(()));
    bench.until("connection", |_| place.accept());
}

#[test]
fn a_peer_that_is_away_for_long_is_tried_again_and_costs_nothing_else() {
    let place = Place::new();
    let (mut bench, peer) = place.connected();
    drop(peer);
    let path = place.folder.path().join("peer");
    std::fs::remove_file(&path).unwrap();
    bench.until("link that is down", |bench| (!bench.link_up()).then_some(()));
    bench.settle();
    let until = Instant::now() + Duration::from_millis(500);
    let mut rounds = 0;
    while Instant::now() < until {
        rounds += bench.events.run_with_timeout(50).unwrap();
    }
    assert!(rounds <= 4, "{rounds} events of attempts in half a second");

    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    bench.until("connection", |_| listener.accept().ok());
}

#[test]
fn a_length_that_no_frame_has_ends_the_connection() {
    for length in [0_u32, 65551, u32::MAX] {
        let place = Place::new();
        let (mut bench, mut peer) = place.connected();
        bench.offer(RECEIVE, None);
        peer.write_all(&length.to_be_bytes()).unwrap();
        bench.until("link that is down", |bench| (!bench.link_up()).then_some(()));
        bench.until("new connection", |_| place.accept());
    }
}

#[test]
fn a_peer_that_does_not_read_holds_the_guest_up_and_loses_nothing() {
    let place = Place::new();
    let (mut bench, mut peer) = place.connected();
    let (mut expected, mut number) = (Vec::new(), 0);
    while bench.metric("tx_blocked_total") == 0 {
        while bench.has_room(TRANSMIT) {
            let next = frame(1000 + number % 9000, number);
            bench.send(&next);
            expected.extend(framed(&next));
            number += 1;
        }
        bench.settle();
        while bench.take_used(TRANSMIT).is_some() {}
    }
    // The loop is idle while nothing can be sent.
    bench.settle();
    let mut sent = Vec::new();

    bench.until("frames", |_| {
        read(&mut peer, &mut sent);
        (sent.len() >= expected.len()).then_some(())
    });

    assert!(sent == expected, "{} bytes", sent.len());
}

/// That the peer has gone may be found by a read, before its descriptor says so: no event follows then.
#[test]
fn frames_that_wait_for_a_peer_are_dropped_with_it() {
    let place = Place::new();
    let (mut bench, peer) = place.connected();
    bench.settle();
    while bench.metric("tx_blocked_total") == 0 {
        while bench.has_room(TRANSMIT) {
            bench.send(&frame(9000, 1));
        }
        bench.settle();
        while bench.take_used(TRANSMIT).is_some() {}
    }
    drop(peer);
    let due = Due { rx: true, ..Due::default() };
    bench.offer(RECEIVE, None);
    let doorbell = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let doorbells = QueueDoorbells::from(vec![doorbell(), doorbell()]);
    let gate = bench.gate.clone();
    let transport = bench.transport.clone();
    let queues = QueueEvents::new("network", transport, doorbells, gate, EventLog::default());
    NetEvents::new(queues).unwrap().turn(due, false);

    assert!(!bench.link_up());
    let (available, mut used) = (bench.driver[TRANSMIT].0, bench.driver[TRANSMIT].1);
    while bench.take_used(TRANSMIT).is_some() {
        used += 1;
    }
    assert_eq!(used, available);
}

#[test]
fn a_guest_without_buffers_leaves_the_peer_blocked_and_the_loop_idle() {
    let place = Place::new();
    let (mut bench, mut peer) = place.connected();
    let mut flood = (0..).map(|number| framed(&frame(3000, number))).flat_map(Vec::into_iter);
    let mut pending: Vec<u8> = flood.by_ref().take(1 << 20).collect();
    let all = pending.clone();
    let mut pour = |peer: &mut UnixStream| match peer.write(&pending) {
        Ok(count) => {
            pending.drain(..count);
            true
        }
        Err(_) => false,
    };
    while pour(&mut peer) {
        bench.settle();
    }
    bench.settle();
    assert_eq!(bench.metric("rx_frames_total"), 0);
    let mut received = Vec::new();

    bench.until("frames", |bench| {
        pour(&mut peer);
        while bench.has_room(RECEIVE) {
            bench.offer(RECEIVE, None);
        }
        while let Some(frame) = bench.take_frame() {
            received.extend(framed(&frame));
        }
        (received.len() + 3004 > all.len()).then_some(())
    });

    assert!(all.starts_with(&received));
}

#[test]
fn a_closed_gate_holds_frames_back_and_loses_none() {
    let place = Place::new();
    let (mut bench, mut peer) = place.connected();
    (0..2).for_each(|_| bench.offer(RECEIVE, None));
    bench.settle();
    bench.gate.close();
    peer.write_all(&framed(&frame(60, 1))).unwrap();
    bench.send(&frame(70, 2));
    bench.settle();
    assert_eq!((bench.take_frame(), bench.take_used(TRANSMIT)), (None, None));

    bench.gate.open();

    assert_eq!(bench.until("frame", Bench::take_frame), frame(60, 1));
    bench.until("sent frame", |bench| bench.take_used(TRANSMIT));
}

#[test]
fn limits_hold_frames_back_until_there_are_tokens_and_can_be_changed() {
    let place = Place::new();
    let ops = Some(BucketSpec {
        size: NonZero::new(2).unwrap(),
        refill_time_ms: NonZero::new(86_400_000).unwrap(),
        one_time_burst: 0,
    });
    let limits = RateLimiterSpec { ops, bandwidth: None };
    let spec = NetSpec { rx_limits: limits, tx_limits: limits, ..place.spec() };
    let mut bench = Bench::new(&spec, features::MRG_RXBUF).unwrap();
    let mut peer = place.accept().unwrap();
    for number in 0..4 {
        bench.offer(RECEIVE, None);
        bench.send(&frame(60, number));
        peer.write_all(&framed(&frame(60, number))).unwrap();
    }
    bench.settle();
    assert_eq!((bench.metric("tx_frames_total"), bench.metric("rx_frames_total")), (2, 2));
    assert_eq!((bench.metric("tx_throttled_total"), bench.metric("rx_throttled_total")), (1, 1));

    let ops = ops.map(|ops| BucketSpec { size: NonZero::new(1000).unwrap(), ..ops });
    let rx = RateLimiterChange { ops: BucketChange::Set(ops.unwrap()), ..Default::default() };
    let tx = RateLimiterChange { ops: BucketChange::Lift, ..Default::default() };
    bench.control.limit(rx, tx);
    assert_eq!(bench.control.spec().rx_limits, RateLimiterSpec { ops, bandwidth: None });
    assert_eq!(bench.control.spec().tx_limits, RateLimiterSpec::default());

    bench.until("frames", |bench| {
        let counts = (bench.metric("tx_frames_total"), bench.metric("rx_frames_total"));
        (counts == (4, 4)).then_some(())
    });
}

/// A turn may wait for tag storage, and the main thread must not.
#[test]
fn figures_and_limits_do_not_wait_for_a_turn_of_the_device() {
    let place = Place::new();
    let (mut bench, _peer) = place.connected();
    let transport = bench.transport.clone();
    let _turn = transport.lock().unwrap();

    assert_eq!(bench.metric("link_changes_total"), 0);
    bench.control.limit(RateLimiterChange::default(), RateLimiterChange::default());
}

#[test]
fn a_peer_that_is_not_there_is_named() {
    let spec = spec(NetBackendSpec::Stream("/nowhere/peer".into()));
    let error = Port::open(&spec).unwrap_err();
    assert!(error.to_string().contains("/nowhere/peer"), "{error}");
}

#[test]
fn a_peer_that_leaves_again_and_again_leaks_no_descriptor() {
    let place = Place::new();
    let (mut bench, peer) = place.connected();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let ours = |bench: &Bench| bench.transport.lock().unwrap().device().port().watch().port;
    drop(peer);
    let first = bench.until("connection", |_| place.accept());
    let before = ours(&bench);
    drop(first);
    for _ in 0..4 {
        drop(bench.until("connection", |_| place.accept()));
    }
    bench.until("connection", |_| place.accept());
    bench.until("link that is up", |bench| bench.link_up().then_some(()));
    // Other tests in this process have descriptors of their own, so it is the number that tells.
    assert!(ours(&bench).is_some() && before.is_some() && open() < 900);
}
