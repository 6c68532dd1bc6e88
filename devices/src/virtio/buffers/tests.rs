#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{DATA, RAM_END, memory};

fn buffer(address: u64, length: u32, writable: bool) -> Buffer {
    Buffer { address: GuestAddress(address), length, writable }
}

/// Buffers one after the other, with a gap of a byte between them.
fn stream(lengths: &[u32]) -> Stream {
    let mut at = DATA;
    let buffers: Vec<_> = lengths
        .iter()
        .map(|&length| {
            at += u64::from(length) + 1;
            buffer(at - u64::from(length) - 1, length, true)
        })
        .collect();
    Stream::new(&buffers)
}

#[test]
fn a_stream_ends_with_its_buffers() {
    let memory = memory();
    let mut stream = stream(&[3, 0, 2]);

    assert!(stream.write(&*memory, b"abcde").unwrap());

    assert!(stream.is_empty());
    assert!(!stream.write(&*memory, b"f").unwrap());
    assert!(!stream.read(&*memory, &mut [0]).unwrap());
}

#[test]
fn bytes_outside_guest_memory_are_refused() {
    let memory = memory();
    for (address, length) in [(RAM_END - 1, 2), (0, 1), (u64::MAX, 2)] {
        let stream = Stream::new(&[buffer(address, length, true)]);
        let refused = Broken::Buffer { address: GuestAddress(address), length };

        assert_eq!(stream.slices(&*memory).unwrap_err(), refused);
        assert_eq!(
            stream.clone().write(&*memory, &[1, 2]),
            match length {
                1 => Ok(false),
                _ => Err(refused),
            }
        );
    }
}

#[test]
fn a_cut_behind_the_end_of_the_address_space_is_no_overflow() {
    let mut stream = Stream::new(&[buffer(u64::MAX - 1, 100, true)]);

    assert_eq!(stream.split_off_front(10).len(), 10);
    assert_eq!(stream.len(), 90);
}

proptest! {
    #[test]
    fn any_layout_is_the_same_bytes(
        lengths in prop::collection::vec(0u32..40, 1..12),
        cuts in prop::collection::vec(0u64..60, 0..6),
        from_back in any::<bool>(),
    ) {
        let memory = memory();
        let mut whole = stream(&lengths);
        let total = whole.len() as usize;
        let bytes: Vec<u8> = (0..total).map(|at| at as u8).collect();
        prop_assert!(whole.clone().write(&*memory, &bytes).unwrap());

        let mut parts = Vec::new();
        for cut in cuts {
            let part = match from_back {
                true => whole.split_off_back(cut),
                false => whole.split_off_front(cut),
            };
            parts.push(part);
        }
        match from_back {
            true => { parts.push(whole); parts.reverse(); }
            false => parts.push(whole),
        }

        let mut read = Vec::new();
        for part in &mut parts {
            let sliced: usize = part.slices(&*memory).unwrap().iter().map(|slice| slice.len()).sum();
            prop_assert_eq!(sliced as u64, part.len());
            let mut piece = vec![0; sliced];
            prop_assert!(part.read(&*memory, &mut piece).unwrap());
            read.extend(piece);
        }
        prop_assert_eq!(read, bytes);
        // The bytes between the buffers belong to others.
        let mut gap = [0];
        memory.read_slice(&mut gap, GuestAddress(DATA + u64::from(lengths[0]))).unwrap();
        prop_assert_eq!(gap, [0]);
    }
}

proptest! {
    #[test]
    fn what_is_behind_the_first_bytes_is_that_part(
        lengths in prop::collection::vec(0u32..40, 1..12),
        offset in 0u64..300,
        length in 0usize..40,
    ) {
        let memory = memory();
        let whole = stream(&lengths);
        let mut part = whole.clone();
        let _ = part.split_off_front(offset);
        let mut slices = Vec::new();
        whole.add_slices(&*memory, offset, &mut slices).unwrap();
        let sliced: usize = slices.iter().map(|slice| slice.len()).sum();
        prop_assert_eq!(sliced as u64, part.len());

        let bytes = vec![7; length];
        let written = whole.write_at(&*memory, offset, &bytes).unwrap();

        prop_assert_eq!(written, offset + length as u64 <= whole.len());
        let mut expected = vec![0; whole.len() as usize];
        if written {
            expected[offset as usize..][..length].fill(7);
        }
        let mut read = vec![0; expected.len()];
        prop_assert!(whole.clone().read(&*memory, &mut read).unwrap());
        prop_assert_eq!(read, expected);
    }
}
