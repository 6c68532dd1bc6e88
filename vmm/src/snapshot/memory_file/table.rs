//! The table of a memory file: what it has of each chunk.

use super::super::error::{Fault, Part};
use super::super::format::Fields;
use super::header::HEADER;
use super::map::longest;
use super::{About, pages_per_chunk};

/// How long an entry is.
pub(super) const ENTRY: usize = 40;

/// What the file has of a chunk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in super::super) struct Entry {
    /// Its number.
    pub(super) chunk: u32,
    /// How many of its pages have data.
    pub(in super::super) pages: u32,
    /// Where they are.
    pub(super) data: u64,
    /// Where its map is.
    pub(super) map: u64,
    /// How long the map is. Without one the chunk is a hole.
    pub(super) map_length: u32,
    /// The map's checksum.
    pub(super) map_crc: u32,
    /// The data's checksum.
    pub(super) data_crc: u32,
}

impl Entry {
    /// That a chunk is a hole now.
    pub(super) fn hole(chunk: u32) -> Self {
        Self { chunk, ..Self::default() }
    }

    pub(in super::super) fn is_hole(&self) -> bool {
        self.map_length == 0
    }

    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        to.extend(self.chunk.to_le_bytes());
        to.extend(self.pages.to_le_bytes());
        to.extend(self.data.to_le_bytes());
        to.extend(self.map.to_le_bytes());
        to.extend(self.map_length.to_le_bytes());
        to.extend(self.map_crc.to_le_bytes());
        to.extend(self.data_crc.to_le_bytes());
        to.extend([0; 4]);
    }

    /// `None`: it is cut short, or has bits without a meaning.
    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let entry = Self {
            chunk: fields.u32()?,
            pages: fields.u32()?,
            data: fields.u64()?,
            map: fields.u64()?,
            map_length: fields.u32()?,
            map_crc: fields.u32()?,
            data_crc: fields.u32()?,
        };
        (fields.u32()? == 0).then_some(entry)
    }

    /// Checks it against what the file is of and against where the table is, before which all else lies.
    fn check(&self, about: &About, table: u64) -> Result<(), &'static str> {
        if u64::from(self.chunk) >= about.chunks() {
            return Err("it is beyond the end of guest memory");
        }
        if self.is_hole() {
            let empty = *self == Self::hole(self.chunk);
            return if empty && about.base.is_some() { Ok(()) } else { Err("it has no map") };
        }
        let page = about.page_size.get();
        let within = |start: u64, length: u64| {
            start >= HEADER as u64 && start.checked_add(length).is_some_and(|end| end <= table)
        };
        if self.pages as usize > pages_per_chunk(about.page_size) {
            return Err("it has more pages than a chunk");
        }
        let has_data = self.pages > 0;
        if has_data && !self.data.is_multiple_of(page) {
            return Err("its data does not begin at a page");
        }
        if has_data && !within(self.data, u64::from(self.pages) * page) {
            return Err("its data is not within the file");
        }
        if self.map_length as usize > longest(about.page_size) {
            return Err("its map is longer than any");
        }
        if !within(self.map, self.map_length.into()) {
            return Err("its map is not within the file");
        }
        Ok(())
    }
}

/// Reads entries and checks them.
pub(super) fn entries(
    bytes: &[u8],
    about: &About,
    table: u64,
    to: &mut Vec<Entry>,
) -> Result<(), Fault> {
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        let malformed = |reason: String| Fault::malformed(Part::Table, reason);
        let entry = Entry::decode(&mut fields)
            .ok_or_else(|| malformed("an entry has bits without a meaning".to_owned()))?;
        if to.last().is_some_and(|last| last.chunk >= entry.chunk) {
            return Err(malformed(format!("chunk {} is not in order", entry.chunk)));
        }
        entry
            .check(about, table)
            .map_err(|reason| malformed(format!("chunk {}: {reason}", entry.chunk)))?;
        to.push(entry);
    }
    Ok(())
}
