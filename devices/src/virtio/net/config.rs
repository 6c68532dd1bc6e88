//! The configuration space of a network device (5.1.4).

use std::ops::Range;

use crate::virtio::read_bytes;

/// Its size in bytes: little-endian fields up to `mtu`. The rest belongs to features that are not offered.
const SIZE: usize = 12;
const MAC: Range<usize> = 0..6;
const STATUS: Range<usize> = 6..8;
// Bytes 8 and 9 are max_virtqueue_pairs, a field of a feature that is not offered: they read zero.
const MTU: Range<usize> = 10..12;

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// The address of a network interface.
pub type Mac = [u8; 6];

/// The fields that mean something. The driver writes none of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Space {
    pub(super) mac: Mac,
    pub(super) link_up: bool,
    pub(super) mtu: Option<u16>,
}

impl Space {
    /// Reads any bytes; beyond the end there are zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut image = [0; SIZE];
        image[MAC].copy_from_slice(&self.mac);
        image[STATUS].copy_from_slice(&(if self.link_up { LINK_UP } else { 0 }).to_le_bytes());
        image[MTU].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_bytes(&image, offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_at_every_offset_reads_the_bytes_there_and_zeros_beyond() {
        let space = Space { mac: [2, 3, 4, 5, 6, 7], link_up: true, mtu: Some(0x0b0a) };
        let bytes = [2, 3, 4, 5, 6, 7, 1, 0, 0, 0, 0x0a, 0x0b];
        for offset in (0..40).chain([u64::from(u32::MAX), u64::MAX - 3, u64::MAX]) {
            for width in 0..=24_u64 {
                let mut data = vec![0xff; width as usize];

                space.read(offset, &mut data);

                for (byte, value) in (0..width).zip(data) {
                    let at = offset.checked_add(byte).and_then(|at| usize::try_from(at).ok());
                    let expected = at.and_then(|at| bytes.get(at)).copied().unwrap_or(0);
                    assert_eq!(value, expected, "byte {byte} of {width} at {offset}");
                }
            }
        }
    }

    #[test]
    fn a_link_that_is_down_and_no_mtu_read_zero() {
        let space = Space { mac: [0xff; 6], link_up: false, mtu: None };
        let mut data = [0xff; SIZE];
        space.read(0, &mut data);
        assert_eq!(data[6..], [0; 6]);
    }
}
