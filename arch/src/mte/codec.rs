//! Tags outside memory: packed two to a byte, and as runs.
//!
//! KVM hands tags out one to a byte (KVM_ARM_MTE_COPY_TAGS). Packed they have the form that tag storage
//! has, 128 bytes for 4 KiB of memory; as runs, memory that was tagged in large pieces takes a few bytes.
//!
//! It is for saving a guest's tags with its memory.
//!
//! # Runs
//! Each run is one number, `(length - 1) << 4 | tag`, as a little-endian base-128 varint: seven bits a
//! byte, the top bit set in all bytes but the last. Runs of one tag may follow each other.

use thiserror::Error;

use super::granule::{TAG_BITS, Tag};

/// Why bytes are not tags.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// A byte beyond 15 where a tag should be.
    #[error("tag {index} is {value}, but a tag is 0 to 15")]
    NotATag {
        /// Which tag, counted from 0.
        index: usize,
        /// The byte.
        value: u8,
    },
    /// The buffer for the tags is too short or too long.
    #[error("{tags} tags do not come from {bytes} bytes")]
    Length {
        /// How many tags are wanted.
        tags: usize,
        /// How many bytes there are.
        bytes: usize,
    },
    /// The bytes end within a run.
    #[error("the last run is cut short")]
    CutShort,
    /// The runs hold fewer or more tags than are wanted.
    #[error("the runs do not hold the {wanted} tags that are wanted")]
    Count {
        /// How many tags are wanted.
        wanted: usize,
    },
    /// A run longer than any memory.
    #[error("a run is longer than any memory has tags")]
    HugeRun,
}

/// How many bytes `tags` tags take packed.
pub const fn packed_len(tags: usize) -> usize {
    tags.div_ceil(2)
}

/// Packs tags, one to a byte, two to a byte: the first in the low four bits.
///
/// # Errors
/// When a byte is no tag.
pub fn pack(tags: &[u8]) -> Result<Vec<u8>, Error> {
    check(tags)?;
    let pairs = tags.chunks(2);
    Ok(pairs.map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << TAG_BITS)).collect())
}

/// Unpacks as many tags as `tags` is long.
///
/// # Errors
/// When `packed` has not [`packed_len`] bytes.
pub fn unpack(packed: &[u8], tags: &mut [u8]) -> Result<(), Error> {
    if packed.len() != packed_len(tags.len()) {
        return Err(Error::Length { tags: tags.len(), bytes: packed.len() });
    }
    for (pair, byte) in tags.chunks_mut(2).zip(packed) {
        pair[0] = byte & 0xf;
        if let Some(high) = pair.get_mut(1) {
            *high = byte >> TAG_BITS;
        }
    }
    Ok(())
}

/// Writes tags, one to a byte, as runs.
///
/// # Errors
/// When a byte is no tag.
pub fn to_runs(tags: &[u8]) -> Result<Vec<u8>, Error> {
    check(tags)?;
    let mut runs = Vec::new();
    for run in tags.chunk_by(|a, b| a == b) {
        put_run(&mut runs, (run.len() as u64, run[0]));
    }
    Ok(runs)
}

/// Reads as many tags as `tags` is long from runs.
///
/// # Errors
/// When the runs are damaged, or hold another number of tags. `tags` may be written in part.
pub fn from_runs(mut runs: &[u8], tags: &mut [u8]) -> Result<(), Error> {
    let wanted = tags.len();
    let mut done = 0usize;
    while !runs.is_empty() {
        let (length, tag) = take_run(&mut runs)?;
        let end = done.checked_add(length).ok_or(Error::HugeRun)?;
        let run = tags.get_mut(done..end).ok_or(Error::Count { wanted })?;
        run.fill(tag);
        done = end;
    }
    if done == wanted { Ok(()) } else { Err(Error::Count { wanted }) }
}

/// Appends packed tags, two to a byte, as runs. If they take more than `most` bytes it appends none, and is `false`.
pub fn packed_to_runs(packed: &[u8], most: usize, runs: &mut Vec<u8>) -> bool {
    // Each run takes a byte at least: most tags without an order end here.
    let changes: u32 = words(packed).map(|(_, changes)| changes.count_ones()).sum();
    if changes as usize >= most && !packed.is_empty() {
        return false;
    }
    let start = runs.len();
    let mut tag = packed.first().map_or(0, |byte| byte & 0xf);
    // Where the word and the run that is not at its end begin, in tags.
    let (mut at, mut begin) = (0, 0);
    for (word, mut changes) in words(packed) {
        while changes != 0 {
            let bit = changes.trailing_zeros();
            let here = at + u64::from(bit / TAG_BITS);
            put_run(runs, (here - begin, tag));
            begin = here;
            tag = (word >> bit) as u8 & 0xf;
            changes &= changes - 1;
        }
        at += TAGS_PER_WORD;
    }
    put_run(runs, (2 * packed.len() as u64 - begin, tag));
    let few = runs.len() - start <= most;
    if !few {
        runs.truncate(start);
    }
    few
}

const TAGS_PER_WORD: u64 = (u64::BITS / TAG_BITS) as u64;
/// Bit 0 of each tag of a word.
const LOWEST_BITS: u64 = 0x1111_1111_1111_1111;

/// The words of packed tags, with bit 0 of each tag that differs from the one before it.
fn words(packed: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let mut before = packed.first().map_or(0, |byte| byte & 0xf).into();
    packed.chunks(size_of::<u64>()).map(move |bytes| {
        let word = word(bytes);
        let differs = word ^ (word << TAG_BITS | before);
        before = word >> (u64::BITS - TAG_BITS);
        let pairs = differs | differs >> 2;
        (word, (pairs | pairs >> 1) & LOWEST_BITS)
    })
}

/// Packed tags as a word, the first in its lowest bits. Where there are fewer than a word has, the last is repeated.
fn word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => {
            let last = bytes.last().map_or(0, |byte| byte >> TAG_BITS);
            let mut word = [last | last << TAG_BITS; size_of::<u64>()];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        }
    }
}

/// Reads runs as packed tags, two for each byte of `packed`.
///
/// # Errors
/// When the runs are damaged, or hold another number of tags. `packed` may be written in part.
pub fn packed_from_runs(mut runs: &[u8], packed: &mut [u8]) -> Result<(), Error> {
    let wanted = packed.len().saturating_mul(2);
    let mut done = 0usize;
    while !runs.is_empty() {
        let (length, tag) = take_run(&mut runs)?;
        let end = done.checked_add(length).ok_or(Error::HugeRun)?;
        if end > wanted {
            return Err(Error::Count { wanted });
        }
        if !done.is_multiple_of(2) {
            packed[done / 2] = packed[done / 2] & 0xf | tag << TAG_BITS;
        }
        packed[done.div_ceil(2)..end.div_ceil(2)].fill(tag | tag << TAG_BITS);
        done = end;
    }
    if done == wanted { Ok(()) } else { Err(Error::Count { wanted }) }
}

fn check(tags: &[u8]) -> Result<(), Error> {
    match tags.iter().position(|value| Tag::new(*value).is_none()) {
        Some(index) => Err(Error::NotATag { index, value: tags[index] }),
        None => Ok(()),
    }
}

/// Appends a run: its length and its tag. One of no tags is none.
fn put_run(runs: &mut Vec<u8>, (length, tag): (u64, u8)) {
    if let Some(length) = length.checked_sub(1) {
        put_varint(runs, length << TAG_BITS | u64::from(tag));
    }
}

/// Takes a run: its length and its tag.
fn take_run(runs: &mut &[u8]) -> Result<(usize, u8), Error> {
    let number = take_varint(runs)?;
    let length = usize::try_from(number >> TAG_BITS).ok().and_then(|length| length.checked_add(1));
    Ok((length.ok_or(Error::HugeRun)?, (number & 0xf) as u8))
}

fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_varint(from: &mut &[u8]) -> Result<u64, Error> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first().ok_or(Error::CutShort)?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(Error::HugeRun);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Error::HugeRun)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_tag_is_in_the_low_bits() {
        assert_eq!(pack(&[1, 2, 3]), Ok(vec![0x21, 0x03]));
        let mut tags = [0; 3];
        unpack(&[0x21, 0xf3], &mut tags).unwrap();
        assert_eq!(tags, [1, 2, 3]);
    }

    #[test]
    fn a_page_of_one_tag_is_one_run_of_two_bytes() {
        let runs = to_runs(&[5; 256]).unwrap();

        assert_eq!(runs, [0xf5, 0x1f]);
    }

    #[test]
    fn a_run_takes_no_more_bytes_than_its_number_has() {
        assert_eq!(to_runs(&[15; 8]).unwrap(), [0x7f]);
        assert_eq!(to_runs(&[0; 9]).unwrap(), [0x80, 0x01]);
    }

    #[test]
    fn runs_are_counted_without_those_before_them() {
        let mut runs = vec![7; 5];

        assert!(packed_to_runs(&[0x55; 8], 2, &mut runs));
        assert!(!packed_to_runs(&[0x65; 8], 2, &mut runs));

        assert_eq!(runs, [7, 7, 7, 7, 7, 0xf5, 0x01]);
    }

    #[test]
    fn what_is_no_tag_is_named() {
        let bad = Err(Error::NotATag { index: 1, value: 16 });
        assert_eq!(pack(&[0, 16]), bad);
        assert_eq!(to_runs(&[0, 16]), bad);
    }

    #[test]
    fn damaged_runs_are_refused() {
        let mut tags = [0; 4];
        for (runs, error) in [
            (&[0x80][..], Error::CutShort),
            (&[0x20], Error::Count { wanted: 4 }),
            (&[0x40], Error::Count { wanted: 4 }),
            (&[], Error::Count { wanted: 4 }),
            (&[0x80; 11], Error::HugeRun),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], Error::HugeRun),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                Error::Count { wanted: 4 },
            ),
        ] {
            assert_eq!(from_runs(runs, &mut tags), Err(error), "{runs:x?}");
        }
        assert_eq!(unpack(&[0], &mut tags), Err(Error::Length { tags: 4, bytes: 1 }));
    }

    proptest! {
        #[test]
        fn tags_survive_packing_and_runs(tags in prop::collection::vec(0u8..16, 0..1000)) {
            let mut back = vec![0xff; tags.len()];
            unpack(&pack(&tags).unwrap(), &mut back).unwrap();
            prop_assert_eq!(&back, &tags);
            back.fill(0xff);
            from_runs(&to_runs(&tags).unwrap(), &mut back).unwrap();
            prop_assert_eq!(&back, &tags);
        }

        #[test]
        fn packed_tags_make_the_same_runs(
            pairs in prop::collection::vec((1usize..40, any::<u8>()), 0..100),
            most in 0usize..300,
        ) {
            let packed: Vec<u8> =
                pairs.iter().flat_map(|(count, byte)| std::iter::repeat_n(*byte, *count)).collect();
            let mut tags = vec![0; 2 * packed.len()];
            unpack(&packed, &mut tags).unwrap();
            let expected = to_runs(&tags).unwrap();
            let mut runs = vec![7];

            let few = packed_to_runs(&packed, most, &mut runs);

            prop_assert_eq!(few, expected.len() <= most);
            prop_assert_eq!(&runs[1..], if few { &expected[..] } else { &[] });
            let mut back = vec![0xff; packed.len()];
            packed_from_runs(&expected, &mut back).unwrap();
            prop_assert_eq!(back, packed);
        }

        #[test]
        fn any_bytes_are_the_same_runs_packed(bytes: Vec<u8>, count in 0usize..2500) {
            let (mut tags, mut packed) = (vec![0; 2 * count], vec![0; count]);
            let (unpacked, direct) =
                (from_runs(&bytes, &mut tags), packed_from_runs(&bytes, &mut packed));
            prop_assert_eq!(unpacked, direct);
            if direct.is_ok() {
                prop_assert_eq!(pack(&tags).unwrap(), packed);
            }
        }

        #[test]
        fn any_bytes_are_runs_or_an_error(bytes: Vec<u8>, count in 0usize..5000) {
            let mut tags = vec![0; count];
            if from_runs(&bytes, &mut tags).is_ok() {
                prop_assert!(tags.iter().all(|tag| *tag < 16));
            }
        }
    }
}
