//! The sections of a state file: opaque bytes of a kind, each with a checksum.

use arch::units::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::error::{Fault, Part};
use super::super::format::{self, Fields};
use super::super::id::SnapshotId;
use super::super::memory_file::MAX_MEMORY;
use super::super::source::Source;
use super::{ROLE, VERSION, check};

/// A kind of section: its number, its name and how long it may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SectionKind {
    number: u32,
    name: &'static str,
    most: u64,
}

impl SectionKind {
    pub(super) fn part(self) -> Part {
        Part::Section(self.name)
    }

    fn unsavable(self, reason: String) -> Fault {
        Fault::Unsavable { part: self.part(), reason }
    }
}

/// A configuration file has a limit of its own far below.
pub(super) const MANIFEST: SectionKind = SectionKind { number: 1, name: "manifest", most: 1 << 20 };
/// 512 vCPUs at most, with less than 16 KiB of registers each: with SVE and all else they are about 370, of which
/// 50 have up to 256 bytes.
pub(super) const VCPUS: SectionKind = SectionKind { number: 2, name: "vcpus", most: 16 << 20 };
/// See the limit of registers in `check`, of which each has at most 25 bytes.
pub(super) const GIC: SectionKind = SectionKind { number: 3, name: "gic", most: 4 << 20 };
/// Three numbers.
pub(super) const CLOCK: SectionKind = SectionKind { number: 4, name: "clock", most: 64 };
/// The most of all devices, whatever the guest's memory: `check` has the limit by the VM's own.
pub(super) const DEVICES: SectionKind = SectionKind {
    number: 5,
    name: "devices",
    most: check::most_of_devices(MAX_MEMORY).get() + (1 << 20),
};

const KINDS: [SectionKind; 5] = [MANIFEST, VCPUS, GIC, CLOCK, DEVICES];

/// Before the table.
const HEADER: usize = 32;
/// Of the table.
const ENTRY: usize = 24;
/// Behind it.
const CRC: usize = 4;
/// Where the sections begin.
#[cfg(any(test, fuzzing))]
pub(super) const TABLE_END: usize = HEADER + ENTRY * KINDS.len() + CRC;

/// The sections of a file.
#[derive(Debug)]
pub(super) struct Sections {
    pub(super) id: SnapshotId,
    pub(super) contents: Vec<(SectionKind, Vec<u8>)>,
}

/// A section of JSON.
pub(super) fn json(
    kind: SectionKind,
    value: &impl Serialize,
) -> Result<(SectionKind, Vec<u8>), Fault> {
    let bytes = serde_json::to_vec(value);
    Ok((kind, bytes.map_err(|error| kind.unsavable(error.to_string()))?))
}

/// A section of postcard.
pub(super) fn postcard(
    kind: SectionKind,
    value: &impl Serialize,
) -> Result<(SectionKind, Vec<u8>), Fault> {
    let bytes = postcard::to_allocvec(value);
    Ok((kind, bytes.map_err(|error| kind.unsavable(error.to_string()))?))
}

impl Sections {
    /// The bytes of a file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, Fault> {
        let mut file = format::start(ROLE, VERSION);
        file.extend((self.contents.len() as u32).to_le_bytes());
        file.extend(self.id.0);
        let mut offset = (HEADER + ENTRY * self.contents.len() + CRC) as u64;
        for (kind, bytes) in &self.contents {
            let length = bytes.len() as u64;
            within_limit(*kind, length).map_err(|reason| kind.unsavable(reason))?;
            file.extend(kind.number.to_le_bytes());
            file.extend(format::crc(bytes).to_le_bytes());
            file.extend(offset.to_le_bytes());
            file.extend(length.to_le_bytes());
            offset += length;
        }
        file.extend(format::crc(&file).to_le_bytes());
        for (_, bytes) in &self.contents {
            file.extend(bytes);
        }
        Ok(file)
    }

    /// Reads and checks them.
    pub(super) fn read(source: &Source) -> Result<Self, Fault> {
        let mut start = [0; HEADER];
        let there = HEADER.min(usize::try_from(source.length()).unwrap_or(HEADER));
        source.read(&mut start[..there], 0)?;
        format::check_start(&start[..there], ROLE, VERSION)?;
        source.reaches(0, HEADER as u64)?;
        let mut fields = Fields(&start[format::START..]);
        let (Some(count), Some(id)) = (fields.u32(), fields.array()) else {
            return Err(Fault::NotASnapshot { wanted: ROLE });
        };
        if count as usize != KINDS.len() {
            return Err(Fault::malformed(Part::Header, format!("it counts {count} sections")));
        }
        let table = read_table(source, &start)?;
        let mut contents = Vec::new();
        for Entry { kind, crc, offset, length } in table {
            // Within the limit of its kind.
            let mut bytes = vec![0; length as usize];
            source.read(&mut bytes, offset)?;
            if format::crc(&bytes) != crc {
                return Err(Fault::Damaged { part: kind.part() });
            }
            contents.push((kind, bytes));
        }
        Ok(Self { id: SnapshotId(id), contents })
    }

    fn section(&self, kind: SectionKind) -> Result<&[u8], Fault> {
        let found = self.contents.iter().find(|(found, _)| *found == kind);
        let (_, bytes) = found.ok_or_else(|| {
            Fault::malformed(Part::Table, format!("it has no section {}", kind.name))
        })?;
        Ok(bytes)
    }

    pub(super) fn decode_json<T: DeserializeOwned>(&self, kind: SectionKind) -> Result<T, Fault> {
        let value = serde_json::from_slice(self.section(kind)?);
        value.map_err(|error| Fault::malformed(kind.part(), error.to_string()))
    }

    /// As [`decode_postcard`](Self::decode_postcard), of a list or a map of at most so many. Its form has their number
    /// first: elements of a byte or two would take a hundred times as much memory.
    pub(super) fn decode_list<T: DeserializeOwned>(
        &self,
        kind: SectionKind,
        most: usize,
    ) -> Result<T, Fault> {
        let count = postcard::take_from_bytes::<usize>(self.section(kind)?);
        match count {
            Ok((count, _)) if count > most => {
                let reason = format!("it counts {count} elements, and a VM has {most} at most");
                Err(Fault::malformed(kind.part(), reason))
            }
            _ => self.decode_postcard(kind),
        }
    }

    pub(super) fn decode_postcard<T: DeserializeOwned>(
        &self,
        kind: SectionKind,
    ) -> Result<T, Fault> {
        match postcard::take_from_bytes(self.section(kind)?) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => {
                let reason = format!("{} bytes follow what it should have", rest.len());
                Err(Fault::malformed(kind.part(), reason))
            }
            Err(error) => Err(Fault::malformed(kind.part(), error.to_string())),
        }
    }
}

struct Entry {
    kind: SectionKind,
    crc: u32,
    offset: u64,
    length: u64,
}

/// The table of a file with as many sections as there are kinds.
fn read_table(source: &Source, start: &[u8; HEADER]) -> Result<Vec<Entry>, Fault> {
    let mut header = [0; HEADER + ENTRY * KINDS.len() + CRC];
    source.reaches(0, header.len() as u64)?;
    source.read(&mut header[HEADER..], HEADER as u64)?;
    header[..HEADER].copy_from_slice(start);
    let (checked, crc) = header.split_at(header.len() - CRC);
    if format::crc(checked).to_le_bytes() != *crc {
        return Err(Fault::Damaged { part: Part::Table });
    }
    let mut fields = Fields(&checked[HEADER..]);
    let mut entries: Vec<Entry> = Vec::new();
    let mut end = header.len() as u64;
    while let (Some(number), Some(crc), Some(offset), Some(length)) =
        (fields.u32(), fields.u32(), fields.u64(), fields.u64())
    {
        let wrong = |reason: String| Fault::malformed(Part::Table, reason);
        let kind = KINDS.iter().find(|kind| kind.number == number);
        let kind = *kind.ok_or_else(|| wrong(format!("there is no section of kind {number}")))?;
        if entries.iter().any(|entry| entry.kind == kind) {
            return Err(wrong(format!("there are two sections {}", kind.name)));
        }
        if offset != end {
            return Err(wrong(format!("section {} does not follow the one before", kind.name)));
        }
        within_limit(kind, length).map_err(|reason| Fault::malformed(kind.part(), reason))?;
        source.reaches(offset, length)?;
        end += length;
        entries.push(Entry { kind, crc, offset, length });
    }
    if end != source.length() {
        let (wanted, length) = (Bytes::new(end), Bytes::new(source.length()));
        return Err(Fault::TooLong { wanted, length });
    }
    Ok(entries)
}

fn within_limit(kind: SectionKind, length: u64) -> Result<(), String> {
    if length <= kind.most {
        return Ok(());
    }
    Err(format!("it has {length} bytes, and a VM has {} at most", kind.most))
}
