#![allow(clippy::unwrap_used)]

use std::io::{Seek, Write};
use std::os::fd::OwnedFd;

use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;

use super::*;
use crate::console::fake::{guest_reads, pipe, serial, settle, turn_until, waiting};

fn typed(pieces: &[&[u8]]) -> (Vec<u8>, Option<Verb>) {
    let mut keys = Keys::default();
    let mut guest = Vec::new();
    for piece in pieces {
        let (bytes, verb) = keys.take(piece);
        guest.extend(bytes);
        if verb.is_some() {
            return (guest, verb);
        }
    }
    (guest, None)
}

#[test]
fn ordinary_keys_are_the_guests() {
    assert_eq!(typed(&[b"ls\r\x03\x1b[A"]), (b"ls\r\x03\x1b[A".to_vec(), None));
}

#[test]
fn control_a_x_quits_and_what_was_typed_before_still_counts() {
    for x in [b'x', b'X'] {
        assert_eq!(typed(&[&[b'l', 1, x, b'z']]), (b"l".to_vec(), Some(Verb::Quit)));
    }
}

#[test]
fn control_a_twice_sends_one() {
    assert_eq!(typed(&[&[1, 1, b'x']]), (vec![1, b'x'], None));
}

#[test]
fn control_a_before_another_key_sends_both() {
    assert_eq!(typed(&[&[1, b'c']]), (vec![1, b'c'], None));
}

#[test]
fn control_a_is_held_back_until_the_next_key() {
    assert_eq!(typed(&[&[1]]), (vec![], None));
    assert_eq!(typed(&[&[1], b"x"]), (vec![], Some(Verb::Quit)));
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_how_the_keys_arrive(
        keys in proptest::collection::vec(prop_oneof![Just(1u8), Just(b'x'), any::<u8>()], 0..40),
        cuts in proptest::collection::vec(0usize..40, 0..5),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(keys.len())).collect();
        cuts.extend([0, keys.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &keys[cut[0]..cut[1]]).collect();
        prop_assert_eq!(typed(&pieces), typed(&[&keys]));
    }

    #[test]
    fn the_guest_never_gets_more_than_was_typed_and_held_back(
        keys in proptest::collection::vec(prop_oneof![Just(1u8), any::<u8>()], 0..64),
    ) {
        prop_assert!(typed(&[&keys]).0.len() <= keys.len());
    }
}

type Verbs = Arc<Mutex<Vec<Verb>>>;
type Events = EventManager<Box<dyn MutEventSubscriber>>;

/// An input on an event loop of its own, and the serial port that it feeds.
fn feeding(source: impl Into<OwnedFd>, keys: Option<Keys>) -> (Events, Arc<Mutex<Serial>>, Verbs) {
    let (serial, verbs) = (serial(), Verbs::default());
    let noted = Arc::clone(&verbs);
    let on_verb = move |verb| noted.lock().unwrap().push(verb);
    let source = File::from(source.into());
    let input = Input::reading(source, Arc::clone(&serial), keys, on_verb).unwrap();
    let mut events = Events::new().unwrap();
    events.add_subscriber(Box::new(input));
    (events, serial, verbs)
}

/// What a guest reads that empties its FIFO whenever it is full or no more is expected.
fn all_input(events: &mut Events, serial: &Mutex<Serial>, expected: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < expected {
        let missing = expected - read.len();
        // With escape keys, room for one byte is kept back.
        turn_until(events, || waiting(serial) >= missing.min(63));
        read.extend(guest_reads(serial));
    }
    read
}

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|n| b'a' + (n % 26) as u8).collect()
}

#[test]
fn bytes_from_a_pipe_reach_the_guest() {
    let (reader, mut writer) = pipe();
    let (mut events, serial, _) = feeding(reader, None);
    writer.write_all(b"hello").unwrap();
    assert_eq!(all_input(&mut events, &serial, 5), b"hello");
}

#[test]
fn escape_keys_are_found_only_where_they_are_looked_for() {
    for (keys, quits) in [(None, 0), (Some(Keys::default()), 1)] {
        let (reader, mut writer) = pipe();
        let (mut events, serial, verbs) = feeding(reader, keys);
        writer.write_all(b"a\x01x").unwrap();
        turn_until(&mut events, || waiting(&serial) > 0);
        assert_eq!(verbs.lock().unwrap().len(), quits);
        assert_eq!(
            guest_reads(&serial),
            if quits == 1 { b"a".to_vec() } else { b"a\x01x".to_vec() }
        );
    }
}

#[test]
fn a_guest_that_reads_slowly_loses_nothing() {
    for keys in [None, Some(Keys::default())] {
        let (reader, mut writer) = pipe();
        let (mut events, serial, _) = feeding(reader, keys);
        let sent = text(1000);
        writer.write_all(&sent).unwrap();
        assert_eq!(all_input(&mut events, &serial, 1000), sent);
    }
}

#[test]
fn a_guest_that_does_not_read_leaves_the_loop_idle_and_the_input_in_the_pipe() {
    let (reader, mut writer) = pipe();
    let (mut events, serial, _) = feeding(reader, None);
    writer.write_all(&text(1000)).unwrap();
    settle(&mut events);
    assert_eq!(waiting(&serial), 64);
    assert_eq!(rustix::io::ioctl_fionread(&writer).unwrap(), 1000 - 64);
    assert_eq!(settle(&mut events), 0, "a full FIFO must not wake the loop again");
}

#[test]
fn what_a_writer_left_behind_still_arrives() {
    for keys in [None, Some(Keys::default())] {
        let (reader, mut writer) = pipe();
        let (mut events, serial, _) = feeding(reader, keys);
        let sent = text(300);
        writer.write_all(&sent).unwrap();
        settle(&mut events);
        drop(writer);
        settle(&mut events);
        assert_eq!(all_input(&mut events, &serial, 300), sent);
    }
}

#[test]
fn a_writer_that_has_gone_does_not_keep_the_loop_busy() {
    let (reader, writer) = pipe();
    let (mut events, _, _) = feeding(reader, None);
    drop(writer);
    assert!(settle(&mut events) > 0, "the end of the input is noticed");
    assert_eq!(settle(&mut events), 0);
}

#[test]
fn a_byte_held_back_has_room_when_it_comes_out_with_the_next() {
    let (reader, mut writer) = pipe();
    let (mut events, serial, _) = feeding(reader, Some(Keys::default()));
    writer.write_all(&[1]).unwrap();
    settle(&mut events);
    writer.write_all(&text(64)).unwrap();
    settle(&mut events);
    let read = all_input(&mut events, &serial, 65);
    assert_eq!(read, [&[1], &text(64)[..]].concat());
}

#[test]
fn a_regular_file_is_read_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    let sent = text(500);
    file.write_all(&sent).unwrap();
    file.rewind().unwrap();
    let (mut events, serial, _) = feeding(file, None);
    assert_eq!(all_input(&mut events, &serial, 500), sent);
    assert_eq!(settle(&mut events), 1, "the guest's last read is the last event");
    assert_eq!(settle(&mut events), 0);
}

#[test]
fn an_empty_source_is_no_input() {
    for path in ["/dev/null", "/proc/self/mem"] {
        let (mut events, serial, _) = feeding(File::open(path).unwrap(), None);
        settle(&mut events);
        assert_eq!(waiting(&serial), 0, "{path}");
    }
}
