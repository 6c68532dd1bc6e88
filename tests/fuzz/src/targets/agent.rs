//! What agent and client say to each other, in both directions.
#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use agent::protocol::frame::{self, Decoder, Frame, Kind};
use agent::protocol::message::{
    Accepted, CopyIn, CopyOut, Exec, Exit, Hello, Notice, Operation, Refusal, Source, SourceKind,
    Summary,
};
use agent::transfer::receive_into;
use agent::transfer::stream::Receiver;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A stream of frames, that arrives at once, in pieces, and as the content of a file.
pub(super) fn run(data: &[u8]) {
    let (&piece, stream) = data.split_first().unwrap_or((&0, data));
    let whole = frames(stream);
    let mut decoder = Decoder::default();
    let mut pieces = Vec::new();
    'all: for piece in stream.chunks(usize::from(piece).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => pieces.push(frame),
                Ok(None) => break,
                Err(_) => break 'all,
            }
        }
    }
    assert_eq!(pieces, whole);
    for frame in &whole {
        understand(frame);
        assert_eq!(frames(&frame::bytes(frame.kind, &frame.payload)), std::slice::from_ref(frame));
    }
    let _ = receive_into(Receiver::new(stream, ()), std::io::sink());
}

/// The frames of a stream, up to the first that is none.
fn frames(mut stream: &[u8]) -> Vec<Frame> {
    std::iter::from_fn(|| frame::read(&mut stream).ok().flatten()).collect()
}

fn understand(frame: &Frame) {
    match frame.kind {
        Kind::Hello => message::<Hello>(frame),
        Kind::Accepted => message::<Accepted>(frame),
        Kind::Refused | Kind::Failed => message::<Refusal>(frame),
        Kind::Exit => message::<Exit>(frame),
        Kind::Notice => message::<Notice>(frame),
        Kind::DataEnd | Kind::Done => message::<Summary>(frame),
        Kind::Credit => drop(frame.number()),
        Kind::Resize => drop(frame.size()),
        _ => {}
    }
}

/// What is understood can be said again.
fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(frame: &Frame) {
    let Ok(message) = frame.json::<T>() else { return };
    // Some bytes take more room as a list of numbers.
    let Ok(again) = frame::json(frame.kind, &message) else { return };
    let [again] = &frames(&again)[..] else { panic!("{message:?} is more than one frame") };
    assert_eq!(again.json::<T>().unwrap(), message);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let source = Source {
        name: "file".into(),
        kind: SourceKind::File { mode: Some(0o644), modified: Some((5, 6)), size: Some(3) },
    };
    let exec = Exec {
        arguments: vec!["sh".into(), "-c".into(), "true".into()],
        environment: vec![("A".into(), "b".into())],
        directory: Some("/tmp".into()),
        ..Exec::default()
    };
    let hello = |operation| frame::json(Kind::Hello, &Hello::new(operation)).unwrap();
    let copy_in = CopyIn { destination: "/tmp/x".into(), source: source.clone() };
    let accepted = Accepted { process: Some(7), source: Some(source), ..Accepted::default() };
    // The digest of "abc" (FIPS 180-2, B.1).
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
    let summary = Summary { sha256: digest, bytes: 3, ..Summary::default() };
    let content = [
        frame::bytes(Kind::Data, b"ab"),
        frame::bytes(Kind::Data, b""),
        frame::bytes(Kind::Data, b"c"),
        frame::json(Kind::Notice, &Notice { message: "a".to_owned() }).unwrap(),
        frame::json(Kind::DataEnd, &summary).unwrap(),
    ];
    let session = [
        frame::bytes(Kind::Credit, &9u32.to_le_bytes()),
        frame::bytes(Kind::Output, b"out"),
        frame::bytes(Kind::Resize, &[1, 0, 2, 0]),
        frame::bytes(Kind::Signal, &[15]),
        frame::json(Kind::Exit, &Exit::Code(3)).unwrap(),
    ];
    let streams = [
        hello(Operation::Exec(exec)),
        hello(Operation::CopyIn(copy_in)),
        hello(Operation::CopyOut(CopyOut { source: "/etc".into() })),
        hello(Operation::Info),
        frame::json(Kind::Accepted, &accepted).unwrap(),
        content.concat(),
        session.concat(),
    ];
    streams.into_iter().map(|stream| [&[3][..], &stream].concat()).collect()
}
