//! The little of the PE format that the EFI stub of a kernel tells us: machine and section table.
//!
//! # References
//! Microsoft, *PE Format*; Linux `arch/arm64/kernel/efi-header.S`

use super::{u16_at, u32_at};

/// A DOS header starts with this.
pub(super) const MZ: &[u8] = b"MZ";
/// IMAGE_FILE_MACHINE_ARM64.
pub(super) const MACHINE_ARM64: u16 = 0xaa64;

/// Offset of the field in the DOS header that holds the offset of the PE header.
const PE_OFFSET: usize = 0x3c;
const PE_MAGIC: &[u8] = b"PE\0\0";
/// The COFF header after the magic number: machine, section count, ..., optional header size, ...
const COFF_LEN: usize = 20;
const SECTION_LEN: usize = 40;
/// Linux writes two; more than this is not a kernel's table.
const MAX_SECTIONS: usize = 16;
/// Linux puts its PE header at 64; one behind this is not a kernel's.
const MAX_PE_OFFSET: u32 = 64 << 10;
/// The longest optional header: PE32+ with its 16 data directories.
const MAX_OPTIONAL: usize = 240;

/// The bytes after the PE magic number.
fn coff(bytes: &[u8]) -> Option<&[u8]> {
    if !bytes.starts_with(MZ) {
        return None;
    }
    let offset = usize::try_from(u32_at(bytes, PE_OFFSET)?).ok()?;
    bytes.get(offset..)?.strip_prefix(PE_MAGIC)
}

/// The machine field of the COFF header, if the bytes reach that far.
pub(super) fn machine(bytes: &[u8]) -> Option<u16> {
    u16_at(coff(bytes)?, 0)
}

/// How long a file must be by its PE headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// It has none, or they make no sense.
    Unknown,
    /// The headers themselves end here, or later: the bytes end before. At most 66 KiB.
    Headers(u64),
    /// Headers and sections end here, at most 2^33 - 2.
    Sections(u64),
}

/// How long the file must be that starts with these bytes.
pub(super) fn extent(bytes: &[u8]) -> Extent {
    let Some(offset) = u32_at(bytes, PE_OFFSET).filter(|_| bytes.starts_with(MZ)) else {
        return Extent::Unknown;
    };
    if offset > MAX_PE_OFFSET {
        return Extent::Unknown;
    }
    let start = offset as usize;
    let coff_end = start + PE_MAGIC.len() + COFF_LEN;
    // A magic number that is cut off is as good as one.
    let magic = bytes.get(start..).unwrap_or_default();
    if !magic.iter().zip(PE_MAGIC).all(|(found, expected)| found == expected) {
        return Extent::Unknown;
    }
    if bytes.len() < coff_end {
        return Extent::Headers(coff_end as u64);
    }
    let field = |at| coff(bytes).and_then(|coff| u16_at(coff, at)).map(usize::from);
    let (Some(count), Some(optional)) = (field(2), field(16)) else { return Extent::Unknown };
    if count == 0 || count > MAX_SECTIONS || optional > MAX_OPTIONAL {
        return Extent::Unknown;
    }
    let table = coff_end + optional;
    let end = table + count * SECTION_LEN;
    let Some(sections) = bytes.get(table..end) else { return Extent::Headers(end as u64) };
    let data = sections.chunks_exact(SECTION_LEN).filter_map(|section| {
        let (size, start) = (u32_at(section, 16)?, u32_at(section, 20)?);
        (size > 0).then_some(u64::from(start) + u64::from(size))
    });
    Extent::Sections(data.max().unwrap_or_default().max(end as u64))
}
