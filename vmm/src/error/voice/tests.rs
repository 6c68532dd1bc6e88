#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::*;

/// How long a test waits for what takes milliseconds, before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// A voice whose pipe has so many bytes of a page in it, and the pipe's other end.
fn voice(bytes: usize, pages: usize) -> (Voice, File) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&writer, pages * PIPE_BUF).unwrap();
    File::from(writer.try_clone().unwrap()).write_all(&vec![b'.'; bytes]).unwrap();
    let output = Some(NonBlocking::shared(writer));
    (Voice { output, ..Voice::new() }, reader.into())
}

fn read(reader: &mut File, bytes: usize) -> String {
    let mut text = vec![0; bytes];
    reader.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn rest(voice: Voice, mut reader: File) -> String {
    drop(voice);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_full_pipe_stops_nothing_and_what_was_dropped_is_counted() {
    let (mut voice, mut reader) = voice(PIPE_BUF, 1);
    voice.say("the first", Duration::ZERO);
    voice.say("the second", Duration::ZERO);
    read(&mut reader, PIPE_BUF);

    voice.say("the third", Duration::ZERO);
    voice.say("the fourth", Duration::ZERO);

    let dropped = "tessera: 2 messages were dropped here: nothing read standard error\n";
    let said = format!("{dropped}tessera: the third\ntessera: the fourth\n");
    assert_eq!(rest(voice, reader), said);
}

#[test]
fn a_message_that_is_cut_ends_its_line_and_counts() {
    let (mut voice, mut reader) = voice(0, 1);
    voice.say(&"long ".repeat(PIPE_BUF / 4), Duration::ZERO);
    let part = read(&mut reader, PIPE_BUF);
    assert!(part.starts_with("tessera: long long") && !part.contains('\n'), "{part}");

    voice.say("short", Duration::ZERO);

    let dropped = "\ntessera: one message was dropped here: nothing read standard error\n";
    assert_eq!(rest(voice, reader), format!("{dropped}tessera: short\n"));
}

#[test]
fn the_last_message_waits_for_room() {
    let (mut voice, mut reader) = voice(PIPE_BUF, 1);
    let message = "why it ends, at length ".repeat(1000);
    let expected = format!("tessera: {message}\n");
    let length = expected.len();
    let reader = std::thread::spawn(move || read(&mut reader, PIPE_BUF + length));

    voice.say(&message, DEADLINE);

    assert!(reader.join().unwrap().ends_with(&expected));
}

#[test]
fn a_reader_that_takes_a_piece_now_and_then_does_not_prolong_the_wait() {
    let (mut voice, mut reader) = voice(PIPE_BUF, 1);
    let patience = Duration::from_millis(200);
    // All of the message takes it eight times the patience, each piece a quarter.
    let message = "x".repeat(32 * PIPE_BUF);
    let reader = std::thread::spawn(move || {
        while reader.read(&mut [0; PIPE_BUF]).unwrap() > 0 {
            std::thread::sleep(patience / 4);
        }
    });

    voice.say(&message, patience);

    assert!(voice.cut);
    drop(voice);
    reader.join().unwrap();
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let (mut voice, reader) = voice(0, 1);
    drop(reader);

    voice.say("unheard", LAST);

    assert_eq!(voice.dropped, 1);
}
