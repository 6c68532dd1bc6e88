//! Clients that mean harm, or know no better.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::*;
use crate::tag_storage::broker::protocol::limits::{MAX_MESSAGE, MAX_SLOTS};
use crate::tag_storage::broker::protocol::refusal::Reason;
use crate::tag_storage::broker::server::ServerError;
use crate::tag_storage::pool::FORGET_AFTER;

fn reason(reply: Option<Reply>) -> Reason {
    match reply {
        Some(Reply::Refused(refusal)) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn garbage_ends_the_connection_that_it_comes_from_and_no_other() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let good = connect(&path, "good");
    good.reserve(5).unwrap();
    let whole = opening("half").encode();
    let messages: [&[u8]; 7] = [
        &[0],
        &[0xff; 64],
        &[0; MAX_MESSAGE],
        &[1; MAX_MESSAGE + 1],
        &[2; 100_000],
        &whole[..whole.len() / 2],
        b"GET / HTTP/1.1\r\n\r\n",
    ];

    for message in messages {
        let raw = Raw::connect(&path);
        seqpacket::send(&raw.0, message).unwrap();
        assert_eq!(reason(raw.receive()), Reason::Protocol);
        assert_eq!(raw.receive(), None);
    }

    // Then one with a lease, which goes with its connection.
    let raw = Raw::open(&path);
    raw.reserve(7);
    seqpacket::send(&raw.0, b"nonsense").unwrap();
    assert_eq!(reason(raw.receive()), Reason::Protocol);
    assert_eq!(raw.receive(), None);
    broker.wait_reserved(5);
    assert_eq!(broker.report().traffic.violations, 8);
    assert_eq!(good.reserve(1).unwrap().len(), 1);
}

fn reserve(least: u32, chunks: u32) -> Request {
    Request::Reserve { chunks, least }
}

#[test]
fn requests_for_another_moment_are_refused() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 64);
    for request in
        [reserve(1, 1), Request::Free(vec![SlotIndex(0)]), Request::Adopt(vec![SlotIndex(0)])]
    {
        let raw = Raw::connect(&path);
        raw.say(&request);
        assert_eq!(reason(raw.receive()), Reason::Protocol);
    }
    for request in [opening("again"), reserve(0, 0), reserve(0, 1), reserve(2, 1)] {
        let raw = Raw::open(&path);
        raw.say(&request);
        assert_eq!(reason(raw.receive()), Reason::Protocol);
    }
    let raw = Raw::connect(&path);
    let terms = terms("old");
    let (role, returning) = (Role::Holder, false);
    raw.say(&Request::Open(Open { version: 0, role, returning, terms }));
    assert_eq!(reason(raw.receive()), Reason::Version(VERSION));
}

#[test]
fn nobody_frees_what_another_holds() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let victim = connect(&path, "victim");
    victim.reserve(20).unwrap();
    let raw = Raw::open(&path);
    let own = raw.reserve(2);

    let all: Vec<SlotIndex> = (0..64).map(SlotIndex).chain([SlotIndex(u32::MAX)]).collect();
    raw.say(&Request::Free(all.clone()));
    raw.say(&Request::Free(own));
    raw.say(&Request::Free(all));

    broker.wait("the frees", |report| report.traffic.foreign_frees == 63 + 2 + 65);
    assert_eq!(broker.report().pool.chunks.reserved, 20);
    assert_eq!(broker.report().pool.counters.metadata_reserve_free, 2);
}

#[test]
fn adopting_what_another_holds_gives_other_slots_or_none() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 32);
    let victim = connect(&path, "victim");
    victim.reserve(20).unwrap();
    let raw = Raw::open(&path);

    raw.say(&Request::Adopt((0..20).map(SlotIndex).collect()));

    let Some(Reply::Adopted(slots)) = raw.receive() else { panic!("refused") };
    assert_eq!(slots.iter().flatten().count(), 12);
    broker.wait_reserved(32);
    drop(raw);
    broker.wait_reserved(20);
    victim.reserve(12).unwrap();
}

#[test]
fn a_million_requests_keep_nobody_out() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let raw = Raw::open(&path);
    let enough = Arc::new(AtomicBool::new(false));
    let beside = enough.clone();
    let flood = std::thread::spawn(move || {
        let slot = raw.reserve(1)[0];
        // A million at least, and until the client has had its turns.
        let mut sent = 0;
        while sent < 1_000_000 / 2 || !beside.load(Ordering::Relaxed) {
            sent += 1;
            // One that is answered by nothing, and one that makes work of it.
            raw.say(&Request::Free(vec![SlotIndex(63)]));
            raw.say(&Request::Free(vec![slot; 2]));
        }
    });

    let client = connect(&path, "vm");
    for round in 0.. {
        let slots = client.reserve(3).unwrap();
        slots.into_iter().for_each(|slot| client.free(slot));
        enough.store(round >= 100, Ordering::Relaxed);
        if flood.is_finished() {
            break;
        }
    }

    flood.join().unwrap();
    broker.wait_reserved(0);
}

#[test]
fn who_never_reads_is_held_up_alone() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let raw = Raw::open(&path);

    // Until neither side has room: the broker waits for its reader, and takes nothing more.
    let message = Request::Report { version: VERSION }.encode();
    until("a full socket", || seqpacket::send_now(&raw.0, &message) == Err(Errno::AGAIN));

    let client = connect(&path, "vm");
    client.reserve(64).unwrap();
    drop(client);
    broker.wait_reserved(0);
    drop(raw);
    broker.wait("the end", |report| report.traffic.connections == 1);
}

#[test]
fn descriptors_that_come_along_are_dropped() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);
    let raw = Raw::connect(&path);
    let (sent, kept) = seqpacket::pair().unwrap();

    seqpacket::send_fd(&raw.0, &opening("gift").encode(), sent.as_fd()).unwrap();
    assert!(matches!(raw.receive(), Some(Reply::Opened(_))));
    for _ in 0..100 {
        let message = Request::Free(vec![SlotIndex(9)]).encode();
        seqpacket::send_fd(&raw.0, &message, sent.as_fd()).unwrap();
    }
    raw.reserve(1);

    // With the last copy closed the other end is alone.
    drop(sent);
    let mut buffer = [0; BUFFER];
    assert_eq!(seqpacket::receive(&kept, &mut buffer), Ok(None));
    broker.wait_reserved(1);
}

#[test]
fn a_client_cut_off_at_any_step_leaves_nothing() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 3 * MAX_SLOTS as u64);
    let slots = |range: std::ops::Range<u32>| range.map(SlotIndex).collect::<Vec<_>>();
    let steps = [
        opening("cut"),
        Request::Adopt(slots(0..100)),
        reserve(2 * MAX_SLOTS as u32, 2 * MAX_SLOTS as u32),
        Request::Free(slots(0..500)),
        reserve(1, 7),
        reserve(u32::MAX, u32::MAX),
        Request::Report { version: VERSION },
        Request::Free(slots(100..900)),
    ];
    let before = broker.report().pool;

    for cut in 0..=steps.len() {
        for listens in [false, true] {
            let raw = Raw::connect(&path);
            steps[..cut].iter().for_each(|step| raw.say(step));
            if listens && cut > 0 {
                raw.receive();
            }
            drop(raw);
            broker.wait("the totals", |report| {
                let pool = &report.pool;
                (&pool.blocks, &pool.chunks, &pool.leases)
                    == (&before.blocks, &before.chunks, &before.leases)
                    && report.traffic.connections == 1
            });
        }
    }

    let counters = broker.report().pool.counters;
    assert_eq!(counters.metadata_reserve_success, counters.metadata_reserve_free);
}

#[test]
fn connections_beyond_the_places_are_told_so() {
    let (_directory, path) = place();
    let broker = Broker::with_places(&path, 64, 8);
    let mut taken: Vec<Raw> = (0..8).map(|_| Raw::open(&path)).collect();

    for _ in 0..100 {
        let error = Client::connect(&path, terms("late")).unwrap_err();
        assert!(error.to_string().contains("8 connections"), "{error}");
    }

    // One for the report, and one that is free again.
    taken.truncate(6);
    until("a place", || Client::connect(&path, terms("late")).is_ok());
    // Its place is free again, too, but not at once.
    until("a report", || {
        crate::tag_storage::broker::report(&path)
            .is_ok_and(|report| report.traffic.turned_away >= 100)
    });
    drop(broker);
}

#[test]
fn a_live_broker_is_named_and_a_dead_one_replaced() {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 64);

    let error = Server::bind(&path, server_resources(64)).err().unwrap();
    let own = std::process::id();
    assert!(matches!(error, ServerError::Taken { pid, .. } if pid == own), "{error}");
    connect(&path, "not disturbed").reserve(1).unwrap();
    drop(broker);
    assert!(!path.exists());

    // What a killed broker leaves.
    let left = path.with_file_name("left");
    std::mem::forget(Server::bind(&left, server_resources(64)).unwrap());
    assert!(Server::bind(&left, server_resources(64)).is_err());
    let stale = path.with_file_name("stale");
    let kind = rustix::net::SocketType::SEQPACKET;
    let dead = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
    rustix::net::bind(&dead, &rustix::net::SocketAddrUnix::new(&stale).unwrap()).unwrap();
    drop(dead);
    let _broker = Broker::start(&stale, 64);
    connect(&stale, "vm");
}

#[test]
fn a_path_with_something_else_is_left_alone() {
    let (directory, path) = place();
    std::fs::write(&path, "precious").unwrap();
    let stream = directory.path().join("stream");
    let _listener = UnixListener::bind(&stream).unwrap();

    for taken in [&path, &stream] {
        assert!(Server::bind(taken, server_resources(64)).is_err());
        assert!(taken.exists());
    }
}

#[test]
fn the_socket_is_for_owner_and_group_and_goes_to_no_child() {
    let (_directory, path) = place();
    let _broker = Broker::start(&path, 64);

    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & !0o660, 0);
    assert_eq!(mode & 0o600, 0o600);
}

#[test]
fn nobody_at_the_path_is_said_with_the_path() {
    let (_directory, path) = place();

    let error = Client::connect(&path, terms("vm")).unwrap_err();

    let text = crate::error::chain(&error);
    assert!(text.contains(path.to_str().unwrap()) && text.contains("tessera broker"), "{text}");
}

/// Has a VM that holds nothing wait for the last slot of a pool while another says that it had all of them
/// before. Returns what that one adopted, and whether the VM may have fallen silent for too long meanwhile.
fn adopt_what_another_waits_for() -> (Vec<Option<SlotIndex>>, bool) {
    let (_directory, path) = place();
    let broker = Broker::start(&path, 4);
    let (holder, waiting) = (connect(&path, "holder"), connect(&path, "waiting"));
    let liar = Raw::open(&path);
    let chunks = holder.reserve(4).unwrap();
    let asked = Instant::now();
    waiting.reserve(1).unwrap_err();
    holder.free(chunks[0]);
    broker.wait_reserved(3);

    liar.say(&Request::Adopt((0..4).map(SlotIndex).collect()));

    let Some(Reply::Adopted(slots)) = liar.receive() else { panic!("refused") };
    (slots, asked.elapsed() >= FORGET_AFTER)
}

#[test]
fn a_client_that_claims_what_it_never_had_comes_before_nobody() {
    let slots = loop {
        let (slots, silent) = adopt_what_another_waits_for();
        if !silent {
            break slots;
        }
    };

    assert_eq!(slots, [None; 4]);
}
