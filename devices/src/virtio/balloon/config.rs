//! The balloon's configuration space (5.5.4).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::virtio::read_bytes;

/// Its size in bytes: four little-endian words.
const SIZE: usize = 16;
const NUM_PAGES: Range<usize> = 0..4;
const ACTUAL: Range<usize> = 4..8;
// Bytes 8 to 11 are free_page_hint_cmd_id: a feature that is not offered, so they read zero.
const POISON_VAL: Range<usize> = 12..16;

/// The fields that mean something.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Space {
    /// Pages of 4 KiB that the balloon should have. The driver only reads it.
    pub(super) num_pages: u32,
    /// Pages of 4 KiB that the driver says it has.
    pub(super) actual: u32,
    /// What the driver says its free pages are filled with.
    pub(super) poison_val: u32,
}

impl Space {
    /// Reads any bytes; beyond the end there are zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.image(), offset, data);
    }

    /// Writes the bytes that fall on a field of the driver's.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut image = self.image();
        if let Some(rest) = usize::try_from(offset).ok().and_then(|offset| image.get_mut(offset..))
        {
            rest.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        }
        self.actual = word(&image, ACTUAL);
        self.poison_val = word(&image, POISON_VAL);
    }

    fn image(&self) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        image[NUM_PAGES].copy_from_slice(&self.num_pages.to_le_bytes());
        image[ACTUAL].copy_from_slice(&self.actual.to_le_bytes());
        image[POISON_VAL].copy_from_slice(&self.poison_val.to_le_bytes());
        image
    }
}

fn word(image: &[u8; SIZE], at: Range<usize>) -> u32 {
    image[at].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILLED: Space =
        Space { num_pages: 0x0403_0201, actual: 0x0807_0605, poison_val: 0x100f_0e0d };
    const BYTES: [u8; SIZE] = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 13, 14, 15, 16];
    const WRITABLE: [bool; SIZE] = {
        let mut writable = [false; SIZE];
        let mut byte = 0;
        while byte < SIZE {
            writable[byte] = (byte >= 4 && byte < 8) || byte >= 12;
            byte += 1;
        }
        writable
    };

    /// Offsets in the space, around its end, and where sums overflow.
    fn offsets() -> impl Iterator<Item = u64> {
        (0..40).chain([u64::from(u32::MAX), u64::MAX - 3, u64::MAX])
    }

    #[test]
    fn every_width_at_every_offset_reads_the_bytes_there_and_zeros_beyond() {
        for offset in offsets() {
            for width in 0..=24_u64 {
                let mut data = vec![0xff; width as usize];

                FILLED.read(offset, &mut data);

                for (byte, value) in (0..width).zip(data) {
                    let at = offset.checked_add(byte).and_then(|at| usize::try_from(at).ok());
                    let expected = at.and_then(|at| BYTES.get(at)).copied().unwrap_or(0);
                    assert_eq!(value, expected, "byte {byte} of {width} at {offset}");
                }
            }
        }
    }

    #[test]
    fn every_width_at_every_offset_writes_the_fields_of_the_driver_alone() {
        for offset in offsets() {
            for width in 0..=24_u64 {
                let mut space = FILLED;

                space.write(offset, &vec![0xee; width as usize]);

                let mut after = [0; SIZE];
                space.read(0, &mut after);
                for (at, value) in (0_u64..).zip(after) {
                    let hit = at.checked_sub(offset).is_some_and(|byte| byte < width);
                    let at = at as usize;
                    let expected = if hit && WRITABLE[at] { 0xee } else { BYTES[at] };
                    assert_eq!(value, expected, "byte {at} after {width} bytes at {offset}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_sequence_of_writes_reaches_what_the_driver_only_reads(
            writes in prop::collection::vec((any::<u64>(), 0_u64..20, any::<[u8; 9]>()), 0..50),
        ) {
            let mut space = FILLED;
            for (far, near, data) in writes {
                space.write(far, &data);
                space.write(near, &data);
            }

            let mut after = [0; SIZE];
            space.read(0, &mut after);
            prop_assert_eq!(space.num_pages, FILLED.num_pages);
            prop_assert_eq!(&after[8..12], &[0; 4]);
        }
    }
}
