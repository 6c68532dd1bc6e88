//! Guest memory that stands still: read as plain bytes, without a copy.
//!
//! While a VM is saved its vCPUs are paused and its devices quiesced, and memory that is being restored has no
//! guest yet. Nothing but the caller writes to it then.
#![allow(unsafe_code)]

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Whether all of the memory is zero. It stops at the first word that is not.
pub(super) fn is_zero<B: BitmapSlice>(memory: &VolatileSlice<'_, B>) -> bool {
    let guard = memory.ptr_guard();
    // SAFETY: the slice is mapped and readable for as long as `memory` is borrowed, and nothing writes to it
    // meanwhile: see the module.
    let bytes = unsafe { std::slice::from_raw_parts(guard.as_ptr(), memory.len()) };
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(line_is_zero) && rest.iter().all(|byte| *byte == 0)
}

fn line_is_zero(line: &[u8; 64]) -> bool {
    let (words, _) = line.as_chunks::<16>();
    words.iter().fold(0, |sum, word| sum | u128::from_ne_bytes(*word)) == 0
}

/// Adds the memory to a checksum.
pub(super) fn update_crc<B: BitmapSlice>(
    crc: &mut crc32fast::Hasher,
    memory: &VolatileSlice<'_, B>,
) {
    let guard = memory.ptr_guard();
    // SAFETY: as in `is_zero`.
    crc.update(unsafe { std::slice::from_raw_parts(guard.as_ptr(), memory.len()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_anywhere_is_not_zero() {
        for length in [0, 1, 63, 64, 65, 200] {
            let mut memory = vec![0; length];
            assert!(is_zero(&VolatileSlice::from(&mut memory[..])), "{length}");
            for at in 0..length {
                memory[at] = 1;
                assert!(!is_zero(&VolatileSlice::from(&mut memory[..])), "{at} of {length}");
                memory[at] = 0;
            }
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_bytes() {
        let mut memory: Vec<u8> = (0..=255).collect();
        let mut crc = crc32fast::Hasher::new();

        update_crc(&mut crc, &VolatileSlice::from(&mut memory[..]));

        assert_eq!(crc.finalize(), crc32fast::hash(&memory));
    }
}
