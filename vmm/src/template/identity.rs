//! What a template is of, as the one message that its holder sends.
//!
//! # Format
//! 64 bytes, all numbers little-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | flags: 1 with tags |
//! | 16 | 16 | id of the snapshot |
//! | 32 | 8 | size of guest memory |
//! | 40 | 8 | size of a page |
//! | 48 | 4 | CRC-32 of the memory file's table, which has the checksums of all that is in the file |
//! | 52 | 12 | zero |

use arch::units::Bytes;

use crate::snapshot::{MemoryReader, SnapshotId};

const MAGIC: [u8; 8] = *b"\x8fTESSTP\n";
const VERSION: u32 = 1;
const TAGGED: u32 = 1;

/// How long the message is.
pub(super) const LENGTH: usize = 64;

/// What a template is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Identity {
    pub(super) id: SnapshotId,
    pub(super) size: Bytes,
    pub(super) page_size: Bytes,
    pub(super) tagged: bool,
    /// Of the memory file's table.
    pub(super) table: u32,
}

impl Identity {
    /// That of the template of a memory file.
    pub(super) fn of(reader: &MemoryReader) -> Self {
        let about = reader.about();
        Self {
            id: about.id,
            size: about.size,
            page_size: about.page_size,
            tagged: about.tagged,
            table: reader.table_checksum(),
        }
    }

    /// The message.
    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let mut message = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = message.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(u32::from(self.tagged) * TAGGED).to_le_bytes());
        put(16, &self.id.to_bytes());
        put(32, &self.size.get().to_le_bytes());
        put(40, &self.page_size.get().to_le_bytes());
        put(48, &self.table.to_le_bytes());
        message
    }

    /// Reads a message. `None`: it is none of this version.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let message: &[u8; LENGTH] = message.try_into().ok()?;
        let field =
            |at: usize| message.get(at..)?.first_chunk::<4>().copied().map(u32::from_le_bytes);
        let long =
            |at: usize| message.get(at..)?.first_chunk::<8>().copied().map(u64::from_le_bytes);
        let flags = field(12)?;
        let known = message.starts_with(&MAGIC) && field(8)? == VERSION && flags & !TAGGED == 0;
        if !known || message.get(52..)?.iter().any(|byte| *byte != 0) {
            return None;
        }
        Some(Self {
            id: SnapshotId::from_bytes(*message.get(16..)?.first_chunk()?),
            size: Bytes::new(long(32)?),
            page_size: Bytes::new(long(40)?),
            tagged: flags & TAGGED != 0,
            table: field(48)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn identity() -> Identity {
        Identity {
            id: SnapshotId::random().unwrap(),
            size: Bytes::mib(64),
            page_size: Bytes::kib(16),
            tagged: true,
            table: 0x1234_5678,
        }
    }

    #[test]
    fn an_identity_is_written_and_read() {
        for tagged in [true, false] {
            let identity = Identity { tagged, ..identity() };
            assert_eq!(Identity::decode(&identity.encode()), Some(identity));
        }
    }

    #[test]
    fn each_bit_matters() {
        let identity = identity();
        for bit in 0..LENGTH * 8 {
            let mut message = identity.encode();
            message[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Identity::decode(&message), Some(identity), "{bit}");
        }
    }

    #[test]
    fn a_message_of_another_length_is_none() {
        let message = identity().encode();
        for length in [0, 1, 8, LENGTH - 1] {
            assert_eq!(Identity::decode(&message[..length]), None);
        }
        assert_eq!(Identity::decode(&[&message[..], &[0]].concat()), None);
    }
}
