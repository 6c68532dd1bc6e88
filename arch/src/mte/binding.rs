//! The device tree's description of tag storage (`arm,mte-tag-storage`), in both forms it has had.
//!
//! The form that stayed is a child of `/reserved-memory`:
//!
//! ```text
//! tags0: tag-storage@8f8000000 {
//!     compatible = "arm,mte-tag-storage";
//!     reg = <0x08 0xf8000000 0x00 0x4000000>;
//!     block-size = <0x1000>;
//!     tagged-memory = <&memory0>;
//!     reusable;
//! };
//! ```
//!
//! The first two versions of the series had a node of the root with `memory` for `tagged-memory` and
//! without `reusable`. One bad region disables them all, as in the kernel: tags that are somewhere else
//! than believed are memory overwritten.
//!
//! # References
//! Linux mail, "Add support for arm64 MTE dynamic tag storage reuse", versions 1 to 3:
//! `Documentation/devicetree/bindings/reserved-memory/arm,mte-tag-storage.yaml`,
//! `arch/arm64/kernel/mte_tag_storage.c`

use thiserror::Error;
use vm_memory::{Address, GuestAddress};

use super::geometry::{self, Geometry};
use super::granule::MEMORY_PER_TAG_STORAGE;
use crate::range::MemoryRange;
use crate::units::Bytes;

/// The value of `compatible`.
pub const COMPATIBLE: &str = "arm,mte-tag-storage";
/// The most regions that the series takes (MAX_TAG_REGIONS).
pub const MAX_REGIONS: usize = 32;

/// A physical range of the host. The same arithmetic as a guest's.
type Range = MemoryRange;

/// Where a description stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A child of `/reserved-memory`.
    ReservedMemory,
    /// A child of the root, as in the first two versions.
    Root,
}

/// The properties of one tag storage node, as the tree has them: big-endian cells.
#[derive(Clone, Copy, Debug)]
pub struct TagNode<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Where it stands.
    pub form: Form,
    /// `reg`.
    pub reg: Option<&'a [u8]>,
    /// `block-size`.
    pub block_size: Option<&'a [u8]>,
    /// `tagged-memory`, or `memory` of the root form.
    pub tagged_memory: Option<&'a [u8]>,
    /// Whether `reusable` is there.
    pub reusable: bool,
}

/// The properties of one memory node.
#[derive(Clone, Copy, Debug)]
pub struct MemoryNode<'a> {
    /// `phandle`.
    pub phandle: Option<&'a [u8]>,
    /// `reg`.
    pub reg: Option<&'a [u8]>,
    /// `linux,usable-memory`, which goes before `reg`.
    pub usable: Option<&'a [u8]>,
}

/// How many cells an address and a size have: `#address-cells` and `#size-cells` of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// Cells of an address, 1 or 2.
    pub address: u8,
    /// Cells of a size, 1 or 2.
    pub size: u8,
}

/// A region of tag storage and the memory whose tags it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The tag storage.
    pub tags: Range,
    /// The memory, 32 times as large.
    pub memory: Range,
    /// Pages and blocks.
    pub geometry: Geometry,
}

/// What is wrong with a region.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// A property is missing.
    #[error("it has no property {0}")]
    Missing(&'static str),
    /// A property has the wrong length.
    #[error("its property {0} has a length that makes no sense")]
    Malformed(&'static str),
    /// A range is empty or passes the end of the address space.
    #[error("its property {0} is a range that is empty or passes the end of the address space")]
    BadRange(&'static str),
    /// The phandle names no memory node.
    #[error("the memory it names (phandle {0:#x}) is not in the device tree")]
    NoMemoryNode(u32),
    /// The tag storage does not begin and end at pageblocks.
    #[error("{tags} is not aligned to the kernel's pageblocks of {pageblock}")]
    Unaligned {
        /// The tag storage.
        tags: Range,
        /// The size of a pageblock.
        pageblock: Bytes,
    },
    /// The tag storage is not 1/32 of the memory.
    #[error("{tags} is not 1/32 of the memory {memory}")]
    Coverage {
        /// The tag storage.
        tags: Range,
        /// The memory.
        memory: Range,
    },
    /// `block-size` makes no geometry.
    #[error(transparent)]
    Geometry(#[from] geometry::Error),
    /// The tag storage is not a whole number of blocks.
    #[error("{tags} is not a whole number of blocks of {block}")]
    PartialBlock {
        /// The tag storage.
        tags: Range,
        /// The size of a block.
        block: Bytes,
    },
    /// Two regions share tag storage or memory, or tag storage lies in the memory that it covers.
    #[error("it overlaps {0}")]
    Overlap(Range),
    /// A region of `/reserved-memory` is not `reusable`: its memory may not serve as anything else.
    #[error("it is not reusable, so its memory cannot be lent")]
    NotReusable,
    /// There are too many.
    #[error("there are more than {MAX_REGIONS} of them")]
    TooMany,
}

/// Why the host's tag storage cannot be used. It disables all of it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the tag storage {node} of the device tree cannot be used, so none is")]
pub struct Error {
    /// The node's name.
    pub node: String,
    /// What is wrong with it.
    #[source]
    pub fault: Fault,
}

/// Reads the description of all tag storage. `reserved` are the cells of `/reserved-memory`, `root` those
/// of the root, whose children the memory nodes are.
///
/// # Errors
/// When one region is wrong.
pub fn regions(
    tags: &[TagNode<'_>],
    memory: &[MemoryNode<'_>],
    root: Cells,
    reserved: Cells,
    page: Bytes,
) -> Result<Vec<Region>, Error> {
    let mut regions: Vec<Region> = Vec::new();
    for (index, node) in tags.iter().enumerate() {
        let cells = match node.form {
            Form::ReservedMemory => reserved,
            Form::Root => root,
        };
        let region = match index {
            MAX_REGIONS.. => Err(Fault::TooMany),
            _ => region(node, memory, cells, root, page),
        };
        let checked = region.and_then(|region| apart(&region, &regions).map(|()| region));
        match checked {
            Ok(region) => regions.push(region),
            Err(fault) => return Err(Error { node: node.name.to_owned(), fault }),
        }
    }
    Ok(regions)
}

fn region(
    node: &TagNode<'_>,
    memory: &[MemoryNode<'_>],
    cells: Cells,
    root: Cells,
    page: Bytes,
) -> Result<Region, Fault> {
    let block_name = "block-size";
    let tags = range("reg", node.reg, cells)?;
    let pageblock = pageblock(page);
    if !tags.base.raw_value().is_multiple_of(pageblock.get())
        || !tags.size.get().is_multiple_of(pageblock.get())
    {
        return Err(Fault::Unaligned { tags, pageblock });
    }
    let memory = tagged_memory(node, memory, root)?;
    if tags.size.get().checked_mul(MEMORY_PER_TAG_STORAGE) != Some(memory.size.get()) {
        return Err(Fault::Coverage { tags, memory });
    }
    let block = node.block_size.ok_or(Fault::Missing(block_name))?;
    let block = number(block).ok_or(Fault::Malformed(block_name))?;
    let geometry = Geometry::new(page, Bytes::new(block.into()))?;
    if !tags.size.get().is_multiple_of(geometry.block().get()) {
        return Err(Fault::PartialBlock { tags, block: geometry.block() });
    }
    if node.form == Form::ReservedMemory && !node.reusable {
        return Err(Fault::NotReusable);
    }
    Ok(Region { tags, memory, geometry })
}

fn tagged_memory(
    node: &TagNode<'_>,
    memory: &[MemoryNode<'_>],
    root: Cells,
) -> Result<Range, Fault> {
    let name = match node.form {
        Form::ReservedMemory => "tagged-memory",
        Form::Root => "memory",
    };
    let handle = node.tagged_memory.ok_or(Fault::Missing(name))?;
    let handle = number(handle).ok_or(Fault::Malformed(name))?;
    let found = memory.iter().find(|node| node.phandle.and_then(number) == Some(handle));
    let found = found.ok_or(Fault::NoMemoryNode(handle))?;
    match found.usable {
        Some(usable) => range("linux,usable-memory", Some(usable), root),
        None => range("reg of the memory", found.reg, root),
    }
}

/// pageblock_nr_pages with huge pages: as much as one entry of the second level maps.
fn pageblock(page: Bytes) -> Bytes {
    Bytes::new(page.get() * (page.get() / 8))
}

fn apart(region: &Region, others: &[Region]) -> Result<(), Fault> {
    if region.tags.overlaps(&region.memory) {
        return Err(Fault::Overlap(region.memory));
    }
    for other in others {
        for (mine, theirs) in [
            (region.tags, other.tags),
            (region.tags, other.memory),
            (region.memory, other.tags),
            (region.memory, other.memory),
        ] {
            if mine.overlaps(&theirs) {
                return Err(Fault::Overlap(theirs));
            }
        }
    }
    Ok(())
}

/// One range; the kernel takes no second one.
fn range(name: &'static str, reg: Option<&[u8]>, cells: Cells) -> Result<Range, Fault> {
    let reg = reg.ok_or(Fault::Missing(name))?;
    let (address, size) = (usize::from(cells.address) * 4, usize::from(cells.size) * 4);
    if !matches!(address, 4 | 8) || !matches!(size, 4 | 8) || reg.len() != address + size {
        return Err(Fault::Malformed(name));
    }
    let value =
        |bytes: &[u8]| bytes.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
    let (base, size) = (value(&reg[..address]), value(&reg[address..]));
    if size == 0 || base.checked_add(size).is_none() {
        return Err(Fault::BadRange(name));
    }
    Ok(Range::new(GuestAddress(base), Bytes::new(size)))
}

fn number(cell: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(cell.try_into().ok()?))
}

#[cfg(test)]
mod tests;
