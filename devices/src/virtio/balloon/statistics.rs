//! Memory statistics as the driver sends them (5.5.6.3 and 5.5.6.4).

use serde::{Deserialize, Serialize};

/// Size of an entry in bytes: a tag of 16 bits and a value of 64. The specification asks for buffers
/// in multiples of 6 bytes, which does not fit its own entries: sizes are not held against a driver.
const ENTRY: usize = 10;

/// As much of a buffer as is read, in bytes. Linux sends 16 entries; what lies behind the first 256
/// is treated as unknown.
pub(super) const LONGEST: usize = 256 * ENTRY;

/// What the guest's kernel last said about its memory. A driver chooses which of them it supplies.
///
/// # References
/// Section 5.5.6.4; Linux 6.12 `include/uapi/linux/virtio_balloon.h`, which has the tags from 10 on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Statistics {
    /// Bytes swapped in (tag 0).
    pub swap_in: Option<u64>,
    /// Bytes swapped out (1).
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O, a number (2).
    pub major_faults: Option<u64>,
    /// Page faults that did not, a number (3).
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses (4).
    pub free_memory: Option<u64>,
    /// Bytes that the kernel manages (5).
    pub total_memory: Option<u64>,
    /// Bytes that new programs could have without swapping, estimated (6).
    pub available_memory: Option<u64>,
    /// Bytes of file caches that can be had without I/O (7).
    pub disk_caches: Option<u64>,
    /// Huge pages allocated, a number (8).
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be allocated, a number (9).
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory, a number (10).
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for reclaim, a number (11).
    pub alloc_stall: Option<u64>,
    /// Bytes scanned by background reclaim (12).
    pub async_scan: Option<u64>,
    /// Bytes scanned by those who allocate (13).
    pub direct_scan: Option<u64>,
    /// Bytes reclaimed in the background (14).
    pub async_reclaim: Option<u64>,
    /// Bytes reclaimed by those who allocate (15).
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Entries in any order. Unknown tags are ignored, as 5.5.6.3 demands; of two entries
    /// with one tag the later counts; bytes behind the last whole entry are ignored.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for entry in bytes.chunks_exact(ENTRY) {
            let Some((tag, value)) = entry.split_first_chunk() else { continue };
            let Some(value) = value.first_chunk() else { continue };
            if let Some(field) = statistics.field(u16::from_le_bytes(*tag)) {
                *field = Some(u64::from_le_bytes(*value));
            }
        }
        statistics
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [tag.to_le_bytes().as_slice(), &value.to_le_bytes()].concat()
    }

    #[test]
    fn each_tag_has_its_field() {
        let bytes: Vec<u8> =
            (0..16).rev().flat_map(|tag| entry(tag, 1000 + u64::from(tag))).collect();

        let found = Statistics::parse(&bytes);

        let expected = Statistics {
            swap_in: Some(1000),
            swap_out: Some(1001),
            major_faults: Some(1002),
            minor_faults: Some(1003),
            free_memory: Some(1004),
            total_memory: Some(1005),
            available_memory: Some(1006),
            disk_caches: Some(1007),
            hugetlb_allocations: Some(1008),
            hugetlb_failures: Some(1009),
            oom_kill: Some(1010),
            alloc_stall: Some(1011),
            async_scan: Some(1012),
            direct_scan: Some(1013),
            async_reclaim: Some(1014),
            direct_reclaim: Some(1015),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn unknown_tags_are_ignored() {
        let bytes = [entry(16, 1), entry(4, 2), entry(u16::MAX, 3)].concat();

        let found = Statistics::parse(&bytes);

        assert_eq!(found, Statistics { free_memory: Some(2), ..Statistics::default() });
    }

    #[test]
    fn the_later_of_two_entries_counts() {
        let found = Statistics::parse(&[entry(5, 1), entry(5, u64::MAX)].concat());

        assert_eq!(found.total_memory, Some(u64::MAX));
    }

    #[test]
    fn what_is_left_of_an_entry_is_ignored() {
        let bytes = [entry(0, 7), entry(1, 8)].concat();
        for length in 0..=bytes.len() {
            let found = Statistics::parse(&bytes[..length]);

            assert_eq!(found.swap_in.is_some(), length >= ENTRY);
            assert_eq!(found.swap_out.is_some(), length >= 2 * ENTRY);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_statistics(bytes in prop::collection::vec(any::<u8>(), 0..LONGEST)) {
            Statistics::parse(&bytes);
        }
    }
}
