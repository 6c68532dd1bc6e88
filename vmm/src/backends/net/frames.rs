//! Frames in a stream of bytes: each behind its length, 4 bytes, the most significant first. QEMU
//! (`-netdev stream`), passt and gvproxy have this form.

use thiserror::Error;

/// The bytes of a length.
pub(super) const PREFIX: usize = 4;

/// The longest frame: the largest packet of 65535 bytes with its Ethernet header fits, and so does what
/// virtio's driver has room for (5.1.6.3.1).
pub(super) const LONGEST: usize = 65550;

/// Room for the longest frame and as much again, so that one read brings several.
const ROOM: usize = 2 * (PREFIX + LONGEST);

/// A peer that does not speak this protocol.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("it sent a frame of {0} bytes, where 1 to {LONGEST} are possible")]
pub(super) struct LengthError(u32);

/// Bytes that have been read and not yet been taken as frames.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    /// The next whole frame, which is taken.
    ///
    /// # Errors
    /// When the length is none of a frame.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, LengthError> {
        let pending = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix);
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if !(1..=LONGEST).contains(&wanted) {
            return Err(LengthError(length));
        }
        let frame = rest.get(..wanted);
        if frame.is_some() {
            self.start += PREFIX + wanted;
        }
        Ok(frame)
    }

    /// Where more bytes go: room for what is missing of a frame at least, if [`next`](Self::next) gave none.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.resize(ROOM, 0);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if ROOM - self.end < PREFIX + LONGEST {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes have been put into the room.
    pub(super) fn add(&mut self, count: usize) {
        self.end = ROOM.min(self.end.saturating_add(count));
    }

    /// Forgets what has not been taken.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        let framed = |frame: &Vec<u8>| [&(frame.len() as u32).to_be_bytes(), &frame[..]].concat();
        frames.iter().flat_map(framed).collect()
    }

    /// Puts the pieces in one after the other. The frames that come out.
    fn through(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut incoming = Incoming::default();
        let mut frames = Vec::new();
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let room = incoming.room();
                let count = room.len().min(piece.len());
                assert!(count > 0);
                room[..count].copy_from_slice(&piece[..count]);
                incoming.add(count);
                piece = &piece[count..];
                while let Some(frame) = incoming.next().unwrap() {
                    frames.push(frame.to_vec());
                }
            }
        }
        frames
    }

    #[test]
    fn frames_that_are_split_at_every_byte_come_out_whole() {
        let frames = [vec![1], vec![2; 60], vec![3; 7]];
        let bytes = stream(&frames);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(through(&pieces), frames, "{first} {second}");
            }
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(through(&single), frames);
    }

    #[test]
    fn the_longest_frame_fits_and_no_longer_one() {
        let frames = vec![vec![7; LONGEST]; 5];
        let bytes = stream(&frames);
        for size in [1000, 65536, 70000, bytes.len()] {
            assert_eq!(through(&bytes.chunks(size).collect::<Vec<_>>()), frames);
        }
        for length in [0, LONGEST as u32 + 1, u32::MAX] {
            let mut incoming = Incoming::default();
            incoming.room()[..4].copy_from_slice(&length.to_be_bytes());
            incoming.add(4);
            assert_eq!(incoming.next(), Err(LengthError(length)));
        }
    }

    proptest! {
        #[test]
        fn any_frames_in_any_pieces_come_out(
            lengths in prop::collection::vec(prop_oneof![1..100_usize, 1..=LONGEST], 1..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let frames: Vec<_> = lengths.iter().map(|length| vec![*length as u8; *length]).collect();
            let bytes = stream(&frames);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(through(&pieces), frames);
        }
    }
}
