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
const MAX_SECTIONS: u16 = 16;

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

/// Where the raw data of the last section ends, in bytes from the start of the file; `None` if the
/// bytes hold no whole section table. At most 2^33 - 2.
pub(super) fn sections_end(bytes: &[u8]) -> Option<u64> {
    let coff = coff(bytes)?;
    let count = u16_at(coff, 2)?;
    if count == 0 || count > MAX_SECTIONS {
        return None;
    }
    let optional = usize::from(u16_at(coff, 16)?);
    let table = coff.get(COFF_LEN + optional..)?;
    let table = table.get(..usize::from(count) * SECTION_LEN)?;
    table
        .chunks_exact(SECTION_LEN)
        .filter_map(|section| {
            let (size, start) = (u32_at(section, 16)?, u32_at(section, 20)?);
            Some(u64::from(start) + u64::from(size))
        })
        .max()
}
