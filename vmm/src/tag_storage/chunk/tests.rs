use arch::layout::RAM_BASE;
use arch::units::Bytes;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;

proptest! {
    #[test]
    fn a_range_covers_each_chunk_wholly_or_partly_or_not(
        first in 0..5 * 512u64,
        pages in 0..5 * 512u64,
    ) {
        let ram = MemoryRange::new(RAM_BASE, Bytes::mib(8));
        let range = MemoryRange::new(
            GuestAddress(RAM_BASE.0 + first * 4096),
            Bytes::new(pages * 4096),
        );

        let covered = Covered::by(range, ram);

        for chunk in (0..5).map(ChunkIndex) {
            let base = RAM_BASE.0 + chunk.0 * CHUNK.get();
            let chunk_range = MemoryRange::new(GuestAddress(base), CHUNK);
            let inside = ram.encloses(&range) && pages > 0;
            let whole = inside && range.encloses(&chunk_range);
            let partly = inside && !whole && range.overlaps(&chunk_range);
            prop_assert_eq!(covered.whole.contains(&chunk), whole, "{:?}", chunk);
            let times = covered.partly.iter().flatten().filter(|at| **at == chunk).count();
            prop_assert_eq!(times, usize::from(partly), "{:?}", chunk);
        }
    }

    #[test]
    fn any_range_covers_chunks_of_ram_alone(base: u64, size: u64) {
        let ram = MemoryRange::new(RAM_BASE, Bytes::mib(8));
        let covered = Covered::by(MemoryRange::new(GuestAddress(base), Bytes::new(size)), ram);

        prop_assert!(covered.whole.end.0 <= 4);
        prop_assert!(covered.partly.iter().flatten().all(|chunk| chunk.0 < 4));
    }
}
