//! The block device's configuration space (5.2.4).

use crate::virtio::read_bytes;

/// Its size in bytes, up to and with write_zeroes_may_unmap and the padding after it.
const SIZE: usize = 60;

/// What a driver is told of a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Space {
    /// Sectors of 512 bytes.
    pub(super) capacity: u64,
    /// Most segments of data in a request.
    pub(super) seg_max: u32,
    /// The smallest unit that the disk reads and writes well, in bytes.
    pub(super) block_size: u32,
    /// Most sectors and segments of one DISCARD.
    pub(super) discard: Limit,
    /// The sectors that a DISCARD should be aligned to.
    pub(super) discard_alignment: u32,
    /// Most sectors and segments of one WRITE_ZEROES.
    pub(super) write_zeroes: Limit,
}

/// How much one request may name, 0 if there is no such request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Limit {
    /// Sectors in one segment.
    pub(super) sectors: u32,
    /// Segments.
    pub(super) segments: u32,
}

impl Space {
    /// Reads any bytes; beyond the end there are zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.image(), offset, data);
    }

    fn image(&self) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        let words = [
            (12, self.seg_max),
            (20, self.block_size),
            (36, self.discard.sectors),
            (40, self.discard.segments),
            (44, self.discard_alignment),
            (48, self.write_zeroes.sectors),
            (52, self.write_zeroes.segments),
            // write_zeroes_may_unmap is a byte.
            (56, u32::from(self.write_zeroes.segments > 0)),
        ];
        image[..8].copy_from_slice(&self.capacity.to_le_bytes());
        for (at, word) in words {
            image[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        image
    }
}
