#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const TWO: Cells = Cells { address: 2, size: 2 };
const PAGE: Bytes = Bytes::kib(4);

fn reg(base: u64, size: u64) -> Vec<u8> {
    [base.to_be_bytes(), size.to_be_bytes()].concat()
}

/// Properties that make a region of 2 GiB with 64 MiB of tags.
struct Tree {
    tags: Vec<u8>,
    memory: Vec<u8>,
    block: Vec<u8>,
    handle: Vec<u8>,
}

impl Tree {
    fn new() -> Self {
        Self {
            tags: reg(0x8_f800_0000, 64 << 20),
            memory: reg(0x8_8000_0000, 2 << 30),
            block: 4096u32.to_be_bytes().to_vec(),
            handle: 7u32.to_be_bytes().to_vec(),
        }
    }

    fn memory_at(mut self, base: u64) -> Self {
        self.memory = reg(base, 2 << 30);
        self
    }

    fn tags_at(mut self, base: u64) -> Self {
        self.tags = reg(base, 64 << 20);
        self
    }

    fn node(&self, form: Form) -> TagNode<'_> {
        TagNode {
            name: "tag-storage@8f8000000",
            form,
            reg: Some(&self.tags),
            block_size: Some(&self.block),
            tagged_memory: Some(&self.handle),
            reusable: form == Form::ReservedMemory,
        }
    }

    fn memory_node(&self) -> MemoryNode<'_> {
        MemoryNode { phandle: Some(&self.handle), reg: Some(&self.memory), usable: None }
    }

    fn read<'a>(&'a self, change: impl FnOnce(&mut TagNode<'a>)) -> Result<Vec<Region>, Fault> {
        let mut node = self.node(Form::ReservedMemory);
        change(&mut node);
        regions(&[node], &[self.memory_node()], TWO, TWO, PAGE).map_err(|error| error.fault)
    }
}

fn good() -> Tree {
    Tree::new().tags_at(0x9_0000_0000)
}

#[test]
fn both_forms_describe_the_same_region() {
    let tree = good();
    for form in [Form::ReservedMemory, Form::Root] {
        let found = regions(&[tree.node(form)], &[tree.memory_node()], TWO, TWO, PAGE).unwrap();

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].tags, Range::new(GuestAddress(0x9_0000_0000), Bytes::mib(64)));
        assert_eq!(found[0].memory, Range::new(GuestAddress(0x8_8000_0000), Bytes::gib(2)));
        assert_eq!(found[0].geometry, Geometry::new(PAGE, Bytes::kib(4)).unwrap());
    }
}

#[test]
fn usable_memory_goes_before_reg() {
    let tree = good();
    let odd = reg(0, 4096);
    let node = MemoryNode { reg: Some(&odd), usable: Some(&tree.memory), ..tree.memory_node() };

    assert!(regions(&[tree.node(Form::Root)], &[node], TWO, TWO, PAGE).is_ok());
}

#[test]
fn cells_of_one_word_are_read() {
    let mut tree = good();
    tree.tags = [0x1000_0000u32.to_be_bytes(), (64u32 << 20).to_be_bytes()].concat();
    let reserved = Cells { address: 1, size: 1 };

    let found =
        regions(&[tree.node(Form::ReservedMemory)], &[tree.memory_node()], TWO, reserved, PAGE);

    assert_eq!(found.unwrap()[0].tags.base, GuestAddress(0x1000_0000));
}

#[test]
fn numbers_of_other_sizes_are_refused() {
    for (address, size) in [(0, 2), (3, 2), (2, 0), (1, 3)] {
        let mut tree = good();
        tree.tags = vec![1; usize::from(address + size) * 4];
        let reserved = Cells { address, size };

        let found =
            regions(&[tree.node(Form::ReservedMemory)], &[tree.memory_node()], TWO, reserved, PAGE);

        assert_eq!(found.unwrap_err().fault, Fault::Malformed("reg"), "{address}, {size}");
    }
}

#[test]
fn each_missing_property_is_named() {
    let tree = good();
    assert_eq!(tree.read(|node| node.reg = None), Err(Fault::Missing("reg")));
    assert_eq!(tree.read(|node| node.block_size = None), Err(Fault::Missing("block-size")));
    assert_eq!(tree.read(|node| node.tagged_memory = None), Err(Fault::Missing("tagged-memory")));
    assert_eq!(
        tree.read(|node| {
            node.form = Form::Root;
            node.tagged_memory = None;
        }),
        Err(Fault::Missing("memory"))
    );
    assert_eq!(tree.read(|node| node.reusable = false), Err(Fault::NotReusable));
}

#[test]
fn each_malformed_property_is_named() {
    let tree = good();
    for reg in [&[][..], &[0; 8], &[0; 15], &[0; 32]] {
        assert_eq!(tree.read(|node| node.reg = Some(reg)), Err(Fault::Malformed("reg")));
    }
    for cell in [&[][..], &[0; 3], &[0; 8]] {
        assert_eq!(
            tree.read(|node| node.block_size = Some(cell)),
            Err(Fault::Malformed("block-size"))
        );
        assert_eq!(
            tree.read(|node| node.tagged_memory = Some(cell)),
            Err(Fault::Malformed("tagged-memory"))
        );
    }
}

#[test]
fn ranges_that_are_empty_or_wrap_are_refused() {
    let bad_ranges = [reg(0, 0), reg(u64::MAX, 2), reg(1 << 63, 1 << 63)];
    let tree = good();
    for bad in &bad_ranges {
        assert_eq!(tree.read(|node| node.reg = Some(bad)), Err(Fault::BadRange("reg")));
    }
    let mut tree = good();
    tree.memory = reg(0, 0);
    assert_eq!(tree.read(|_| ()), Err(Fault::BadRange("reg of the memory")));
}

#[test]
fn memory_that_is_not_there_is_named() {
    let tree = good();
    assert_eq!(
        tree.read(|node| node.tagged_memory = Some(&[0, 0, 0, 9])),
        Err(Fault::NoMemoryNode(9))
    );
}

#[test]
fn tag_storage_must_begin_and_end_at_pageblocks() {
    let pageblock = Bytes::mib(2);
    for (base, size) in [(0x9_0010_0000, 64 << 20), (0x9_0000_0000, (64 << 20) + 4096)] {
        let odd = reg(base, size);
        let tags = Range::new(GuestAddress(base), Bytes::new(size));
        let tree = good();
        assert_eq!(
            tree.read(|node| node.reg = Some(&odd)),
            Err(Fault::Unaligned { tags, pageblock })
        );
    }
    assert_eq!(pageblock_sizes(), [Bytes::mib(2), Bytes::mib(32), Bytes::mib(512)]);
}

fn pageblock_sizes() -> [Bytes; 3] {
    [4, 16, 64].map(|kib| pageblock(Bytes::kib(kib)))
}

#[test]
fn tag_storage_must_be_a_32nd_of_the_memory() {
    let mut tree = good();
    tree.memory = reg(0x8_8000_0000, 1 << 30);

    assert!(matches!(tree.read(|_| ()), Err(Fault::Coverage { .. })));
}

#[test]
fn impossible_blocks_are_refused() {
    let zero = [0; 4];
    let three_pages = 12288u32.to_be_bytes();
    let tree = good();
    assert_eq!(
        tree.read(|node| node.block_size = Some(&zero)),
        Err(Fault::Geometry(geometry::Error::EmptyBlock))
    );
    assert!(matches!(
        tree.read(|node| node.block_size = Some(&three_pages)),
        Err(Fault::PartialBlock { .. })
    ));
}

#[test]
fn regions_that_overlap_disable_all() {
    let inside = Tree::new();
    assert!(matches!(inside.read(|_| ()), Err(Fault::Overlap(_))), "tags in their own memory");
    let (first, mut second) = (good(), good());
    second.handle = 8u32.to_be_bytes().to_vec();
    for (tags, memory) in [
        (0x9_0000_0000, 0x20_0000_0000),
        (0x30_0000_0000, 0x8_8000_0000),
        (0x8_8000_0000, 0x20_0000_0000),
    ] {
        second = second.tags_at(tags).memory_at(memory);
        let found = regions(
            &[first.node(Form::ReservedMemory), second.node(Form::ReservedMemory)],
            &[first.memory_node(), second.memory_node()],
            TWO,
            TWO,
            PAGE,
        );
        assert!(matches!(found.unwrap_err().fault, Fault::Overlap(_)), "{tags:#x} {memory:#x}");
    }
}

#[test]
fn a_33rd_region_disables_all() {
    let trees: Vec<Tree> = (0..33u64)
        .map(|index| {
            let mut tree =
                Tree::new().tags_at((1 << 40) + (index << 32)).memory_at((1 << 45) + (index << 32));
            tree.handle = (index as u32 + 1).to_be_bytes().to_vec();
            tree
        })
        .collect();
    let tags: Vec<_> = trees.iter().map(|tree| tree.node(Form::ReservedMemory)).collect();
    let memory: Vec<_> = trees.iter().map(Tree::memory_node).collect();

    assert_eq!(regions(&tags[..32], &memory, TWO, TWO, PAGE).unwrap().len(), 32);
    assert_eq!(regions(&tags, &memory, TWO, TWO, PAGE).unwrap_err().fault, Fault::TooMany);
}

#[test]
fn a_tree_without_tag_storage_has_no_regions() {
    assert_eq!(regions(&[], &[], TWO, TWO, PAGE), Ok(Vec::new()));
}

proptest! {
    #[test]
    fn any_properties_are_a_region_or_an_error(
        tags: Vec<u8>, memory: Vec<u8>, block: Vec<u8>, handle: Vec<u8>,
        address in 0u8..4, size in 0u8..4, reusable: bool,
    ) {
        let node = TagNode {
            name: "any", form: Form::ReservedMemory, reg: Some(&tags), block_size: Some(&block),
            tagged_memory: Some(&handle), reusable,
        };
        let memory = MemoryNode { phandle: Some(&handle), reg: Some(&memory), usable: None };
        let cells = Cells { address, size };
        let _ = regions(&[node], &[memory], cells, cells, PAGE);
    }

    #[test]
    fn a_region_that_is_taken_keeps_its_promises(
        base in 0u64..1 << 40, length in 0u64..1 << 30, start in 0u64..1 << 45, block in 0u32..1 << 22,
    ) {
        let mut tree = good();
        tree.tags = reg(base & !0x1f_ffff, length & !0x1f_ffff);
        tree.memory = reg(start, (length & !0x1f_ffff) * 32);
        tree.block = block.to_be_bytes().to_vec();
        if let Ok(regions) = tree.read(|_| ()) {
            let region = regions[0];
            let geometry = region.geometry;
            let blocks = geometry.blocks_in(region.tags.size);
            let last = region.memory.size.get() / PAGE.get() - 1;
            prop_assert_eq!(geometry.block_of(geometry::PageIndex(last)).0, blocks - 1);
        }
    }
}
