#![allow(clippy::unwrap_used)]

use std::io::{self, Read};

use proptest::collection::vec;
use proptest::prelude::*;

use super::frame::{self, Decoder, Frame, HEADER, Kind};
use super::limits::MAX_PAYLOAD;
use super::message::{
    Accepted, CopyIn, Exec, Exit, Hello, Operation, Reason, Refusal, Size, Source, SourceKind,
};
use super::text::Text;
use super::*;

/// A stream that ends here and hands out pieces of these lengths.
struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: Vec<usize>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.lengths.pop().unwrap_or(usize::MAX).max(1);
        let length = length.min(buffer.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.bytes = later;
        Ok(length)
    }
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let kind = prop::sample::select(Kind::ALL);
    let payload = prop_oneof![9 => vec(any::<u8>(), 0..32), 1 => vec(any::<u8>(), 0..=MAX_PAYLOAD)];
    vec((kind, payload).prop_map(|(kind, payload)| Frame { kind, payload }), 0..6)
}

fn written(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame::push(&mut bytes, frame.kind, &frame.payload));
    bytes
}

/// All frames of `bytes`, which arrive in pieces.
fn decoded(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame()? {
            found.push(frame);
        }
    }
    Ok(found)
}

proptest! {
    #[test]
    fn frames_survive_any_split(frames in frames(), piece in 1..100_000_usize) {
        prop_assert_eq!(decoded(&written(&frames), piece).unwrap(), frames);
    }

    #[test]
    fn frames_are_read_from_any_split(frames in frames(), lengths in vec(1..9000_usize, 0..64)) {
        let bytes = written(&frames);
        let mut pieces = Pieces { bytes: &bytes, lengths };
        let mut found = Vec::new();
        while let Some(frame) = frame::read(&mut pieces).unwrap() {
            found.push(frame);
        }
        prop_assert_eq!(found, frames);
    }

    /// Whatever arrives: no panic, and no more memory than what was pushed.
    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in vec(any::<u8>(), 0..400), piece in 1..50_usize) {
        let whole = decoded(&bytes, bytes.len().max(1));
        let split = decoded(&bytes, piece);

        prop_assert_eq!(whole.is_ok(), split.is_ok());
        if let (Ok(whole), Ok(split)) = (whole, split) {
            prop_assert_eq!(whole, split);
        }
        let _ = frame::read(&bytes[..]);
        let frame = Frame { kind: Kind::Hello, payload: bytes };
        let _ = (frame.json::<Hello>(), frame.json::<Accepted>(), frame.number(), frame.size());
    }

    #[test]
    fn text_survives_whatever_its_bytes_are(bytes in vec(any::<u8>(), 0..40)) {
        let text = Text::new(bytes);
        let json = serde_json::to_string(&text).unwrap();
        prop_assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
    }

    #[test]
    fn a_stream_that_ends_in_a_frame_is_an_error(frames in frames(), cut in any::<usize>()) {
        let bytes = written(&frames);
        let cut = cut % bytes.len().max(1);
        let boundaries: Vec<usize> = frames.iter().scan(0, |at, frame| {
            *at += HEADER + frame.payload.len();
            Some(*at)
        }).collect();
        let is_whole = cut == 0 || boundaries.contains(&cut);

        let mut stream = &bytes[..cut];
        let end = loop {
            match frame::read(&mut stream) {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        prop_assert_eq!(matches!(end, Some(Error::Ended)), !is_whole, "{:?}", end);
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_payload_arrives() {
    let mut head = frame::header(Kind::Data, MAX_PAYLOAD).to_vec();
    assert!(matches!(decoded(&head, 1), Ok(frames) if frames.is_empty()));

    head[1] = 1;
    assert!(matches!(decoded(&head, 1), Err(Error::Length(65_537))));
    let huge = [&[Kind::Data as u8][..], &[0xff; 4]].concat();
    assert!(matches!(frame::read(&huge[..]), Err(Error::Length(u32::MAX))));
}

#[test]
fn a_kind_that_is_unknown_is_refused() {
    for kind in [0, Kind::ALL.len() as u8 + 1, 255] {
        assert!(
            matches!(decoded(&[kind, 0, 0, 0, 0], 5), Err(Error::Kind(found)) if found == kind)
        );
    }
}

#[test]
fn messages_survive() {
    let exec = Exec {
        arguments: vec!["ls".into(), Text::new([0xff, 0x41])],
        environment: vec![("A".into(), "b=c".into())],
        directory: Some("/".into()),
        user: Some("1000".into()),
        terminal: Some(Size { rows: 24, columns: 80 }),
        die_with_client: true,
    };
    let source = Source {
        name: "x".into(),
        kind: SourceKind::File { mode: Some(0o755), modified: Some((-1, 5)), size: None },
    };
    for operation in [
        Operation::Exec(exec),
        Operation::CopyIn(CopyIn { destination: "/x".into(), source }),
        Operation::Info,
        Operation::SetClock,
    ] {
        let hello = Hello::new(operation);
        let bytes = frame::json(Kind::Hello, &hello).unwrap();
        assert_eq!(frame::read(&bytes[..]).unwrap().unwrap().json::<Hello>().unwrap(), hello);
    }
}

#[test]
fn fields_and_reasons_of_other_versions_are_taken() {
    let hello = r#"{"protocol":"tessera-agent","version":1,"new":[],"operation":{"exec":{"arguments":["a"],"new":1}}}"#;
    let hello: Hello = serde_json::from_str(hello).unwrap();
    let exec = Exec { arguments: vec!["a".into()], ..Exec::default() };
    assert_eq!(hello, Hello::new(Operation::Exec(exec)));

    let refusal: Refusal = serde_json::from_str(r#"{"reason":"tired","message":"m"}"#).unwrap();
    assert_eq!(refusal, Refusal::new(Reason::Failed, "m"));
    assert_eq!(serde_json::from_str::<Exit>(r#"{"code":3}"#).unwrap(), Exit::Code(3));
}

#[test]
fn a_message_that_does_not_fit_a_frame_is_refused() {
    let exec = Exec { arguments: vec![Text::new(vec![b'x'; MAX_PAYLOAD])], ..Exec::default() };

    assert!(frame::json(Kind::Hello, &Hello::new(Operation::Exec(exec))).is_err());
}
