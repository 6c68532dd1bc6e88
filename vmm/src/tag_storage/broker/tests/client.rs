//! What a client does that its broker's answers alone do not show.

use super::*;
use crate::tag_storage::broker::protocol::limits::MAX_SLOTS;
use crate::tag_storage::broker::testing::{Scripted, Side};

/// Reserves for so many chunks.
fn reserve(client: &Client, side: &Side, count: u64) -> Vec<ChunkIndex> {
    let chunks: Vec<ChunkIndex> = (0..count).map(ChunkIndex).collect();
    client.request(&chunks, chunks.len()).unwrap();
    assert_eq!(u64::from(side.serve(0)), count);
    loop {
        match client.answer() {
            Some(answer) => break assert_eq!(answer.unwrap() as u64, count),
            None => std::thread::yield_now(),
        }
    }
    chunks
}

fn freed(side: &Side) -> Vec<SlotIndex> {
    match side.receive() {
        Some(Request::Free(slots)) => slots,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_large_report_is_freed_in_as_few_messages_as_can_be() {
    let (client, side) = Scripted::new().client();
    // Those of a guest that gives a GiB back are 512; here it is 5 GiB.
    let chunks = reserve(&client, &side, 2560);

    client.free(&chunks);

    let sizes = [(); 3].map(|()| freed(&side).len());
    assert_eq!(sizes, [MAX_SLOTS, MAX_SLOTS, 2560 - 2 * MAX_SLOTS]);
    assert_eq!(client.status().chunks, 0);
}

#[test]
fn what_is_freed_while_the_socket_is_full_is_sent_when_it_has_room() {
    let (client, side) = Scripted::new().client();
    let chunks = reserve(&client, &side, 20_000);
    // One by one, so that no socket has room for all.
    chunks.iter().for_each(|chunk| client.free(&[*chunk]));

    let received = std::thread::spawn(move || {
        let mut all = Vec::new();
        while all.len() < 20_000 {
            all.extend(freed(&side));
        }
        all.sort();
        (all, side)
    });
    // As an event loop does; the VM neither reserves nor frees any more.
    while !received.is_finished() {
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&client, PollFlags::IN)], Some(&limit)).unwrap() > 0 {
            client.handle_events(|event| panic!("{event:?}"));
        } else {
            assert!(received.is_finished(), "nothing announces room in the socket");
        }
    }

    let (all, _side) = received.join().unwrap();
    assert!(all.iter().copied().eq((0..20_000).map(SlotIndex)));
}

#[test]
fn a_request_waits_for_nothing_and_is_answered_later() {
    let (client, side) = Scripted::new().client();
    let chunks = [ChunkIndex(3), ChunkIndex(8)];

    client.request(&chunks, chunks.len()).unwrap();
    assert!(client.answer().is_none() && client.answer().is_none());
    assert!(matches!(client.request(&[ChunkIndex(1)], 1), Err(Error::Busy)));
    assert_eq!(client.status().chunks, 0);
    side.serve(70);
    let Some(awaited) = client.awaited() else { panic!("nothing is awaited") };
    poll(&mut [PollFd::new(&awaited.socket, awaited.events)], None).unwrap();

    assert!(matches!(client.answer(), Some(Ok(2))));
    assert_eq!(client.status().chunks, 2);
    client.free(&[ChunkIndex(8)]);
    assert_eq!(freed(&side), [SlotIndex(71)]);
}

#[test]
fn a_request_ends_with_its_connection() {
    for hangs_up in [true, false] {
        let (client, side) = Scripted::new().client();
        client.request(&[ChunkIndex(3)], 1).unwrap();

        let _side = (!hangs_up).then_some(side);
        if !hangs_up {
            client.give_up();
        }

        let Some(awaited) = client.awaited() else { panic!("nothing is awaited") };
        poll(&mut [PollFd::new(&awaited.socket, awaited.events)], None).unwrap();
        assert!(matches!(client.answer(), Some(Err(Error::Lost { .. }))));
        assert_eq!(client.status().attached, !hangs_up);
    }
}

#[test]
fn an_answer_with_other_than_the_wanted_slots_ends_the_connection() {
    for (left, count) in [(0, 3), (1, 2), (0, 1)] {
        let (client, side) = Scripted::new().client();
        client.request(&[ChunkIndex(3), ChunkIndex(4)], 2).unwrap();

        let slots = (0..count).map(SlotIndex).collect();
        side.send(&Reply::Reserved { left, slots });

        until("the answer", || match client.answer() {
            None => false,
            Some(answer) => {
                assert!(matches!(answer, Err(Error::Answer(_))), "{answer:?}");
                true
            }
        });
        assert!(!client.status().attached);
    }
}

/// Answers the next request with slots from 70 on, so many in each part.
fn give(side: &Side, parts: &[u32]) {
    assert_eq!(side.receive(), Some(Request::Reserve { chunks: 5, least: 2 }));
    let mut left: u32 = parts.iter().sum();
    let mut slots = (70..).map(SlotIndex);
    for part in parts {
        left -= part;
        let slots = slots.by_ref().take(*part as usize).collect();
        side.send(&Reply::Reserved { left, slots });
    }
}

#[test]
fn a_request_is_answered_for_all_or_for_the_least() {
    for (parts, given) in [
        (&[5][..], Some(5)),
        (&[2, 3], Some(5)),
        (&[2], Some(2)),
        (&[1, 1], Some(2)),
        (&[3], None),
        (&[1], None),
    ] {
        let (client, side) = Scripted::new().client();
        let chunks = [4, 7, 1, 2, 3].map(ChunkIndex);
        client.request(&chunks, 2).unwrap();
        give(&side, parts);
        let mut answer = None;
        until("the answer", || {
            answer = client.answer();
            answer.is_some()
        });

        assert_eq!(answer.unwrap().ok(), given, "{parts:?}");
        if let Some(given) = given {
            client.free(&chunks);
            let slots: Vec<_> = (70..70 + given as u32).map(SlotIndex).collect();
            assert_eq!(freed(&side), slots, "those of the first chunks");
        }
    }
}
