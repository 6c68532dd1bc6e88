//! A stream of frames in pieces of any size.

use super::frames::{Incoming, LONGEST, PREFIX};

/// Pieces of the stream: a kind, a length of two bytes, and bytes for some kinds.
pub(crate) fn frames(data: &[u8]) {
    let (stream, cuts) = stream(data);
    let mut incoming = Incoming::default();
    let mut expected = reference(&stream).into_iter();
    let mut start = 0;
    for end in cuts.into_iter().chain([stream.len()]) {
        let mut piece = &stream[start..end];
        start = end;
        while !piece.is_empty() {
            let room = incoming.room();
            assert!(!room.is_empty());
            let count = room.len().min(piece.len());
            room[..count].copy_from_slice(&piece[..count]);
            incoming.add(count);
            piece = &piece[count..];
            loop {
                match incoming.next() {
                    Ok(Some(frame)) => assert_eq!(expected.next(), Some(Some(frame.to_vec()))),
                    Ok(None) => break,
                    Err(_) => {
                        assert_eq!(expected.next(), Some(None));
                        return;
                    }
                }
            }
        }
    }
    assert_eq!(expected.next(), None);
}

/// The most bytes of a stream.
const MOST: usize = 6 * LONGEST;

/// A stream, and where it is cut.
fn stream(mut data: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let (mut stream, mut cuts) = (Vec::new(), Vec::new());
    while let [kind, a, b, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*a, *b]));
        data = rest;
        if stream.len() + PREFIX + length > MOST {
            break;
        }
        match kind % 4 {
            // A whole frame of one byte.
            0 | 1 => {
                stream.extend((length as u32).to_be_bytes());
                stream.resize(stream.len() + length, *kind);
            }
            // As the input has it.
            2 => {
                let (bytes, rest) = data.split_at(length.min(data.len()));
                stream.extend(bytes);
                data = rest;
            }
            _ => stream.resize(stream.len() + length, 0),
        }
        if kind & 4 != 0 {
            cuts.push(stream.len());
        } else if kind & 8 != 0 {
            cuts.push(stream.len().saturating_sub(1).max(cuts.last().copied().unwrap_or(0)));
        }
    }
    (stream, cuts)
}

/// The frames of a stream that is there at once; `None` is a length that is none of a frame, which ends it.
fn reference(mut stream: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = stream.split_first_chunk::<PREFIX>() {
        let length = u32::from_be_bytes(*prefix);
        if length == 0 || length > LONGEST as u32 {
            frames.push(None);
            break;
        }
        let Some((frame, rest)) = rest.split_at_checked(length as usize) else { break };
        frames.push(Some(frame.to_vec()));
        stream = rest;
    }
    frames
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let long = (LONGEST as u32).to_be_bytes();
    vec![
        vec![4, 60, 0, 9, 7, 0, 0, 1, 0],
        [&[6, 4, 0][..], &long, &[7, 0xff, 0xff, 7, 15, 0, 4, 60, 0]].concat(),
        vec![0, 0xff, 0xff, 8, 0xff, 0xff, 0, 0xff, 0xff],
        vec![6, 2, 0, 0, 0, 6, 3, 0, 0, 2, 9, 2, 1, 0, 9],
        vec![2, 4, 0, 0, 1, 0, 15],
        vec![2, 4, 0, 0xff, 0xff, 0xff, 0xff],
    ]
}
