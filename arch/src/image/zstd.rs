//! The one number of a zstd frame that decides how much memory it takes to read.
//!
//! # References
//! RFC 8878, 3.1.1.1 "Frame Header"

use crate::units::Bytes;

const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Bit 5 of the descriptor: no window of its own, the content is one segment.
const SINGLE_SEGMENT: u8 = 1 << 5;

/// The most bytes of a frame that [`window`] looks at.
pub const HEADER_LEN: usize = 18;

/// The memory that a decoder needs to read the frame that starts with these bytes: its window, or the
/// whole content where that is one segment. `None` if this is no zstd frame, or is cut off.
pub fn window(frame: &[u8]) -> Option<Bytes> {
    let rest = frame.strip_prefix(MAGIC)?;
    let (&descriptor, rest) = rest.split_first()?;
    if descriptor & SINGLE_SEGMENT == 0 {
        let byte = *rest.first()?;
        let base = 1u64 << (10 + (byte >> 3));
        return Some(Bytes::new(base + base / 8 * u64::from(byte & 7)));
    }
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = 1usize << (descriptor >> 6);
    let field = rest.get(dictionary..dictionary + length)?;
    let mut size = [0; 8];
    size[..length].copy_from_slice(field);
    // A field of two bytes does not repeat what one byte could say.
    let offset = if length == 2 { 256 } else { 0 };
    Some(Bytes::new(u64::from_le_bytes(size).saturating_add(offset)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(rest: &[u8]) -> Vec<u8> {
        [MAGIC, rest].concat()
    }

    #[test]
    fn a_window_has_an_exponent_and_a_mantissa() {
        assert_eq!(window(&frame(&[0, 0])), Some(Bytes::kib(1)));
        assert_eq!(window(&frame(&[0, 17 << 3])), Some(Bytes::mib(128)));
        assert_eq!(window(&frame(&[0, 1])), Some(Bytes::new(1024 + 128)));
    }

    #[test]
    fn a_single_segment_is_as_large_as_its_content() {
        assert_eq!(window(&frame(&[0x20, 9])), Some(Bytes::new(9)));
        assert_eq!(window(&frame(&[0x60, 1, 0])), Some(Bytes::new(257)));
        assert_eq!(window(&frame(&[0xa1, 0xff, 0, 0, 0, 1])), Some(Bytes::mib(16)));
        assert_eq!(window(&frame(&[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80])), Some(Bytes::new(1 << 63)));
    }

    #[test]
    fn what_is_no_frame_or_cut_off_has_none() {
        for bytes in [&b""[..], b"\x28\xb5\x2f", &frame(&[]), &frame(&[0]), &frame(&[0xe0, 1])] {
            assert_eq!(window(bytes), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = window(&bytes);
            let _ = window(&frame(&bytes));
        }
    }
}
