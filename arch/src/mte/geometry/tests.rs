#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn geometry(page: Bytes, block: u64) -> Geometry {
    Geometry::new(page, Bytes::new(block)).unwrap()
}

fn pages(range: Range<u64>) -> Range<PageIndex> {
    PageIndex(range.start)..PageIndex(range.end)
}

/// The blocks and references of pages taken one by one, with the series' formula:
/// rounddown((pfn - start) / 32, block_pages).
fn one_by_one(geometry: &Geometry, range: Range<u64>) -> BTreeMap<u64, u64> {
    let block_pages = u64::from(geometry.block_pages());
    let mut count = BTreeMap::new();
    for page in range {
        let tag_page = page / 32;
        let first_of_block = tag_page - tag_page % block_pages;
        *count.entry(first_of_block / block_pages).or_insert(0) += 1;
    }
    count
}

#[test]
fn a_block_is_the_least_common_multiple() {
    for (page, block, pages) in [
        (4, 1, 1),
        (4, 64, 1),
        (4, 4096, 1),
        (4, 8192, 2),
        (4, 6144, 3),
        (4, 3, 3),
        (16, 4096, 1),
        (16, 16384, 1),
        (16, 24576, 3),
        (64, 8192, 1),
        (64, 1 << 20, 16),
        (4, u64::from(u32::MAX), u32::MAX),
    ] {
        let geometry = geometry(Bytes::kib(page), block);

        assert_eq!(geometry.block_pages(), pages, "{page} KiB, {block}");
        assert_eq!(geometry.block().get() % block, 0);
        assert_eq!(geometry.block().get() % (page << 10), 0);
    }
}

#[test]
fn an_order_6_allocation_with_blocks_of_8_kib_needs_two_pages_of_tags() {
    let geometry = geometry(Bytes::kib(4), 8192);

    let blocks = geometry.blocks_of(pages(0..64));

    assert_eq!(blocks, BlockIndex(0)..BlockIndex(1));
    assert_eq!(geometry.block(), Bytes::kib(8));
}

#[test]
fn tag_storage_has_as_many_blocks_as_are_whole() {
    let geometry = geometry(Bytes::kib(4), 3);

    assert_eq!(geometry.block(), Bytes::kib(12));
    let counts = [0, 12 << 10, (36 << 10) - 1].map(|size| geometry.blocks_in(Bytes::new(size)));
    assert_eq!(counts, [0, 1, 2]);
    assert_eq!(BlockIndex(7).to_string(), "block 7");
}

#[test]
fn impossible_sizes_are_refused() {
    assert_eq!(Geometry::new(Bytes::kib(8), Bytes::new(1)), Err(Error::PageSize(Bytes::kib(8))));
    assert_eq!(Geometry::new(Bytes::ZERO, Bytes::new(1)), Err(Error::PageSize(Bytes::ZERO)));
    assert_eq!(Geometry::new(Bytes::kib(4), Bytes::ZERO), Err(Error::EmptyBlock));
    let block = Bytes::MAX;
    assert_eq!(
        Geometry::new(Bytes::kib(4), block),
        Err(Error::HugeBlock { block, page: Bytes::kib(4) })
    );
}

#[test]
fn no_pages_have_no_blocks() {
    let geometry = geometry(Bytes::kib(4), 4096);

    assert!(geometry.blocks_of(pages(77..77)).is_empty());
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = geometry.blocks_of(pages(9..3));
    assert!(backwards.is_empty());
    assert_eq!(geometry.references(BlockIndex(0), &pages(5..5)), 0);
    assert_eq!(geometry.references(BlockIndex(u64::MAX), &pages(0..u64::MAX)), 0);
}

#[test]
fn every_order_and_every_block_size_agree_with_counting_one_by_one() {
    for page in PAGE_SIZES {
        for block in [1, 64, 4096, 8192, 12288, 16384, 65536, 98304, 1 << 20] {
            let geometry = geometry(page, block);
            for order in 0..=13 {
                for start in [0, 1 << order, 7 << order] {
                    let range = start..start + (1 << order);
                    let counted = one_by_one(&geometry, range.clone());

                    let blocks = geometry.blocks_of(pages(range.clone()));

                    let found: BTreeMap<u64, u64> = (blocks.start.0..blocks.end.0)
                        .map(|block| {
                            (block, geometry.references(BlockIndex(block), &pages(range.clone())))
                        })
                        .collect();
                    assert_eq!(found, counted, "{page} {block} {range:?}");
                    // An aligned range of an order has as many blocks as the order needs.
                    let needed = (1u64 << order).div_ceil(geometry.covered_pages());
                    if geometry.block_pages().is_power_of_two() {
                        assert_eq!(blocks.end.0 - blocks.start.0, needed, "{page} {block} {order}");
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_range_agrees_with_counting_one_by_one(
        page in prop::sample::select(PAGE_SIZES.to_vec()),
        block in 1u64..200_000,
        start in 0u64..100_000,
        length in 0u64..3000,
    ) {
        let geometry = geometry(page, block);
        let counted = one_by_one(&geometry, start..start + length);
        let blocks = geometry.blocks_of(pages(start..start + length));
        let found: BTreeMap<u64, u64> = (blocks.start.0..blocks.end.0)
            .map(|block| (block, geometry.references(BlockIndex(block), &pages(start..start + length))))
            .collect();
        prop_assert_eq!(found, counted);
    }

    #[test]
    fn no_block_has_more_references_than_pages_it_covers(
        block in 1u64..1 << 32, index: u64, start: u64, end: u64,
    ) {
        let geometry = geometry(Bytes::kib(4), block);
        let references = geometry.references(BlockIndex(index), &pages(start..end));
        prop_assert!(references <= geometry.covered_pages());
    }
}
