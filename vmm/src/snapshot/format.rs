//! Numbers in the files of a snapshot: fixed fields, little-endian.

use super::error::{Fault, Role, Version};

/// What a file starts with: no text, so that a copy that changes ends of lines is found.
const MAGICS: [(Role, [u8; 8]); 3] = [
    (Role::State, *b"\x8fTESST\r\n"),
    (Role::Memory, *b"\x8fTESME\r\n"),
    (Role::WorkingSet, *b"\x8fTESWS\r\n"),
];
/// Where the version is, after the magic.
const VERSION: usize = 8;
/// Of magic and version.
pub(super) const START: usize = 12;

/// The start of a file: its magic and version.
pub(super) fn start(role: Role, version: Version) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(MAGICS.iter().filter(|(of, _)| *of == role).flat_map(|(_, magic)| magic));
    bytes.extend(version.major.to_le_bytes());
    bytes.extend(version.minor.to_le_bytes());
    bytes
}

/// Checks the start of a file of this role. The version is the first that is looked at: another may have its
/// checksums elsewhere.
pub(super) fn check_start(start: &[u8], wanted: Role, known: Version) -> Result<(), Fault> {
    let found = MAGICS.iter().find(|(_, magic)| start.starts_with(magic));
    match found {
        Some((found, _)) if *found == wanted => {}
        Some((found, _)) => return Err(Fault::OtherRole { found: *found, wanted }),
        None => return Err(Fault::NotASnapshot { wanted }),
    }
    let mut fields = Fields(start.get(VERSION..).unwrap_or_default());
    match (fields.u16(), fields.u16()) {
        (Some(major), Some(minor)) if (Version { major, minor }) == known => Ok(()),
        (Some(major), Some(minor)) => {
            Err(Fault::Version { found: Version { major, minor }, known })
        }
        _ => Err(Fault::NotASnapshot { wanted }),
    }
}

/// The checksum of bytes.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Bytes from which fields are taken one after the other. `None`: there are too few.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
