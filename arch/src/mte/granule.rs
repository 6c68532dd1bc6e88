//! The granule: 16 bytes of memory that share a tag of 4 bits.
//!
//! # References
//! Arm DDI 0487, "Allocation Tags", "Logical Address Tags"; Linux
//! `Documentation/arch/arm64/memory-tagging-extension.rst`

use crate::units::Bytes;

/// The memory that one tag stands for.
pub const GRANULE: Bytes = Bytes::new(16);
/// Width of a tag in bits.
pub const TAG_BITS: u32 = 4;
/// How much memory one unit of tag storage covers: two tags a byte, 16 bytes of memory a tag.
pub const MEMORY_PER_TAG_STORAGE: u64 = 32;

/// Where a pointer carries its tag: bits 56 to 59.
const POINTER_SHIFT: u32 = 56;

/// A tag: 0 to 15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(u8);

impl Tag {
    /// The tag of fresh and of discarded memory.
    pub const ZERO: Tag = Tag(0);

    /// The tag `value`, or `None` beyond 15.
    pub const fn new(value: u8) -> Option<Tag> {
        if value < 1 << TAG_BITS { Some(Tag(value)) } else { None }
    }

    /// The tag that a pointer carries.
    pub const fn of_pointer(pointer: u64) -> Tag {
        Tag((pointer >> POINTER_SHIFT & 0xf) as u8)
    }

    /// The value, 0 to 15.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// How many tags cover `size` of memory that starts at a granule; a granule begun counts.
pub const fn tags_for(size: Bytes) -> u64 {
    size.get().div_ceil(GRANULE.get())
}

/// How much tag storage covers `size` of memory: 1/32, a byte begun counts.
pub const fn tag_storage_for(size: Bytes) -> Bytes {
    Bytes::new(size.get().div_ceil(MEMORY_PER_TAG_STORAGE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_has_256_tags_in_128_bytes() {
        assert_eq!(tags_for(Bytes::kib(4)), 256);
        assert_eq!(tag_storage_for(Bytes::kib(4)), Bytes::new(128));
    }

    #[test]
    fn a_chunk_has_64_kib_of_tag_storage() {
        assert_eq!(tag_storage_for(Bytes::mib(2)), Bytes::kib(64));
    }

    #[test]
    fn nothing_needs_no_tag() {
        assert_eq!(tags_for(Bytes::ZERO), 0);
        assert_eq!(tag_storage_for(Bytes::ZERO), Bytes::ZERO);
    }

    #[test]
    fn a_tag_has_four_bits() {
        assert_eq!(Tag::new(15).map(Tag::get), Some(15));
        assert_eq!(Tag::new(16), None);
    }

    proptest! {
        #[test]
        fn tags_cover_the_memory_exactly(size: u64) {
            let tags = u128::from(tags_for(Bytes::new(size)));
            prop_assert!(tags * 16 >= u128::from(size) && tags * 16 < u128::from(size) + 16);
            let storage = u128::from(tag_storage_for(Bytes::new(size)).get());
            prop_assert_eq!(storage, tags.div_ceil(2));
        }

        #[test]
        fn a_pointer_carries_its_tag_in_the_top_byte(address: u64, tag in 0u8..16) {
            let pointer = address & !(0xf << 56) | u64::from(tag) << 56;
            prop_assert_eq!(Tag::of_pointer(pointer).get(), tag);
        }
    }
}
