//! The header of a memory file.

use arch::layout::CHUNK;
use arch::units::Bytes;

use super::super::error::{Fault, Part};
use super::super::format::{self, Fields};
use super::super::id::SnapshotId;
use super::table::ENTRY;
use super::{About, ROLE, VERSION};

/// How long it is.
pub(super) const HEADER: usize = 128;
/// Where its checksum is.
const CRC: usize = HEADER - 4;
/// Without a meaning so far.
const RESERVED: usize = 44;

const TAGGED: u32 = 1;
const DIFF: u32 = 2;

/// The header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) about: About,
    /// Where the table is.
    pub(super) table: u64,
    /// How many entries it has.
    pub(super) entries: u32,
    /// Its checksum.
    pub(super) table_crc: u32,
}

impl Header {
    /// Its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let About { id, base, size, page_size, tagged } = self.about;
        let mut bytes = format::start(ROLE, VERSION);
        let flags = (u32::from(tagged) * TAGGED) | (u32::from(base.is_some()) * DIFF);
        bytes.extend(flags.to_le_bytes());
        bytes.extend(id.0);
        bytes.extend(base.map_or([0; 16], |base| base.0));
        bytes.extend(size.get().to_le_bytes());
        bytes.extend((page_size.get() as u32).to_le_bytes());
        bytes.extend((CHUNK.get() as u32).to_le_bytes());
        bytes.extend(self.table.to_le_bytes());
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend(self.table_crc.to_le_bytes());
        bytes.extend([0; RESERVED]);
        bytes.extend(format::crc(&bytes).to_le_bytes());
        bytes
    }

    /// Checks the first bytes of a file, of which there may be fewer, and reads them.
    pub(super) fn decode(bytes: &[u8], length: u64) -> Result<Self, Fault> {
        format::check_start(bytes, ROLE, VERSION)?;
        let Some(bytes) = bytes.first_chunk::<HEADER>() else {
            let (wanted, length) = (Bytes::new(HEADER as u64), Bytes::new(length));
            return Err(Fault::CutShort { wanted, length });
        };
        let (checked, crc) = bytes.split_at(CRC);
        if format::crc(checked).to_le_bytes() != *crc {
            return Err(Fault::Damaged { part: Part::Header });
        }
        let malformed = |reason: String| Fault::malformed(Part::Header, reason);
        let header = Self::fields(&checked[format::START..])
            .ok_or_else(|| malformed("a field has a value that it cannot have".to_owned()))?;
        header.about.check().map_err(malformed)?;
        header.check_length(length)?;
        Ok(header)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let flags = fields.u32()?;
        let (id, base) = (SnapshotId(fields.array()?), SnapshotId(fields.array()?));
        let (size, page_size) = (fields.u64()?, fields.u32()?);
        let chunk = fields.u32()?;
        let (table, entries, table_crc) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let zero = fields.0.iter().all(|byte| *byte == 0);
        let diff = flags & DIFF != 0;
        let known = flags & !(TAGGED | DIFF) == 0 && u64::from(chunk) == CHUNK.get() && zero;
        if !known || diff == (base == SnapshotId([0; 16])) {
            return None;
        }
        let about = About {
            id,
            base: diff.then_some(base),
            size: Bytes::new(size),
            page_size: Bytes::new(page_size.into()),
            tagged: flags & TAGGED != 0,
        };
        Some(Self { about, table, entries, table_crc })
    }

    /// Checks that the table ends the file.
    fn check_length(&self, length: u64) -> Result<(), Fault> {
        if u64::from(self.entries) > self.about.chunks() {
            let reason = format!("it has {} of {} chunks", self.entries, self.about.chunks());
            return Err(Fault::malformed(Part::Header, reason));
        }
        let table = u64::from(self.entries) * ENTRY as u64;
        let end = self.table.checked_add(table).filter(|_| self.table >= HEADER as u64);
        let end = end.ok_or_else(|| Fault::malformed(Part::Header, "the table is nowhere"))?;
        let (wanted, found) = (Bytes::new(end), Bytes::new(length));
        match end.cmp(&length) {
            std::cmp::Ordering::Greater => Err(Fault::CutShort { wanted, length: found }),
            std::cmp::Ordering::Less => Err(Fault::TooLong { wanted, length: found }),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}
