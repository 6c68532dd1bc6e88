//! The chunks that a restored guest touched, in the order of their first touch: what is worth reading before it is
//! touched when the snapshot is restored again.
//!
//! They are in a file beside the memory file. It is a hint alone: what is restored is the same without it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use arch::units::Bytes;

use super::error::{Error, Fault, Part, Role, Version};
use super::format::{self, Fields, START};
use super::id::SnapshotId;
use super::memory_file::{About, MemoryReader};
use super::new_file::NewFile;
use super::output::Output;
use super::source::Source;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

/// What is behind the memory file's name in its own.
const SUFFIX: &str = ".working-set";
const VERSION: Version = Version { major: 1, minor: 0 };
/// The start, the snapshot's id, and how many chunks there are.
const HEADER: usize = START + 16 + 4;
const CHUNK: usize = 4;
const CRC: usize = 4;

/// What is known of the working set of a snapshot, or is to become known.
#[derive(Debug)]
pub enum WorkingSet {
    /// These chunks, in order; none where there is no record.
    Known(Vec<u64>),
    /// It is recorded.
    Recording(Recorder),
}

impl WorkingSet {
    /// Where that of a snapshot is, by its memory file.
    pub fn path(memory: &Path) -> PathBuf {
        let mut path = OsString::from(memory);
        path.push(SUFFIX);
        path.into()
    }

    /// The record of a snapshot, which may have none.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is that of another snapshot.
    pub fn read(memory: &MemoryReader) -> Result<Self, Error> {
        let source = match Source::open(&Self::path(memory.path())) {
            Err(Error { fault: Fault::Open(reason), .. })
                if reason.kind() == ErrorKind::NotFound =>
            {
                return Ok(Self::Known(Vec::new()));
            }
            source => source?,
        };
        let chunks =
            read(&source, memory.about()).map_err(|fault| Error::new(source.path(), fault))?;
        Ok(Self::Known(chunks))
    }

    /// Records that of a snapshot.
    ///
    /// # Errors
    /// When a file cannot be made beside the memory file.
    pub fn record(memory: &MemoryReader) -> Result<Self, Error> {
        let file = NewFile::create(&Self::path(memory.path()))?;
        Ok(Self::Recording(Recorder { file, snapshot: memory.about().id }))
    }
}

/// A record that is made. Dropped before it is written, nothing is left of it, and one from before is as it was.
#[derive(Debug)]
pub struct Recorder {
    file: NewFile,
    snapshot: SnapshotId,
}

impl Recorder {
    /// Writes these chunks, each once, in the order of their first touch, in place of a record from before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(mut self, chunks: &[u64]) -> Result<(), Error> {
        let bytes = encode(self.snapshot, chunks);
        let written = self.file.file().write(&bytes, 0);
        written.map_err(|error| self.file.error(Fault::write(error)))?;
        self.file.sync()?;
        self.file.publish()?;
        self.file.keep();
        Ok(())
    }
}

fn encode(snapshot: SnapshotId, chunks: &[u64]) -> Vec<u8> {
    let mut bytes = format::start(Role::WorkingSet, VERSION);
    bytes.extend(snapshot.0);
    // Those of the largest memory fit, as they do in a memory file's table.
    bytes.extend((chunks.len() as u32).to_le_bytes());
    chunks.iter().for_each(|chunk| bytes.extend((*chunk as u32).to_le_bytes()));
    bytes.extend(format::crc(&bytes).to_le_bytes());
    bytes
}

fn read(source: &Source, about: &About) -> Result<Vec<u64>, Fault> {
    // Each chunk once at most.
    let longest = (HEADER + CRC) as u64 + about.chunks() * CHUNK as u64;
    if source.length() > longest {
        let (wanted, length) = (Bytes::new(longest), Bytes::new(source.length()));
        return Err(Fault::TooLong { wanted, length });
    }
    let mut bytes = vec![0; source.length() as usize];
    source.read(&mut bytes, 0)?;
    decode(&bytes, about)
}

fn decode(bytes: &[u8], about: &About) -> Result<Vec<u64>, Fault> {
    format::check_start(bytes, Role::WorkingSet, VERSION)?;
    let malformed = |reason: &str| Fault::malformed(Part::Table, reason);
    let cut = || Fault::CutShort {
        wanted: Bytes::new((HEADER + CRC) as u64),
        length: Bytes::new(bytes.len() as u64),
    };
    let (checked, crc) = bytes.split_last_chunk::<CRC>().ok_or_else(cut)?;
    let (header, list) = checked.split_at_checked(HEADER).ok_or_else(cut)?;
    if format::crc(checked).to_le_bytes() != *crc {
        return Err(Fault::Damaged { part: Part::Table });
    }
    let mut fields = Fields(header.get(START..).unwrap_or_default());
    let found = SnapshotId(fields.array().ok_or_else(cut)?);
    if found != about.id {
        return Err(Fault::OtherSnapshot { found, wanted: about.id });
    }
    let (chunks, rest) = list.as_chunks::<CHUNK>();
    if fields.u32().map(|count| count as usize) != Some(chunks.len()) || !rest.is_empty() {
        return Err(malformed("it has another number of chunks than it says"));
    }
    let chunks: Vec<u64> = chunks.iter().map(|chunk| u32::from_le_bytes(*chunk).into()).collect();
    match chunks.iter().all(|chunk| *chunk < about.chunks()) {
        true => Ok(chunks),
        false => Err(malformed("a chunk is beyond the end of guest memory")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::NewPair;
    use super::super::testing::{FakeMemory, state};
    use super::*;
    use crate::exit_status::ExitStatus;

    const CHUNKS: u64 = 4;

    fn about(chunks: u64) -> About {
        let size = Bytes::new(chunks * arch::layout::CHUNK.get());
        About { id: SnapshotId([7; 16]), base: None, size, page_size: Bytes::kib(4), tagged: true }
    }

    /// A snapshot in a folder.
    fn snapshot() -> (TempDir, MemoryReader) {
        let folder = tempfile::tempdir().unwrap();
        let page = Bytes::new(rustix::param::page_size() as u64);
        let memory = FakeMemory::new(CHUNKS, page, true);
        let path = folder.path().join("memory");
        let mut pair = NewPair::create(&folder.path().join("state"), &path).unwrap();
        pair.save_memory(&memory, None, &mut |_| {}).unwrap();
        let id = pair.id();
        pair.commit(&state(id, &memory)).unwrap();
        let reader = MemoryReader::open(&path).unwrap();
        (folder, reader)
    }

    fn write(reader: &MemoryReader, chunks: &[u64]) {
        let WorkingSet::Recording(recorder) = WorkingSet::record(reader).unwrap() else {
            unreachable!()
        };
        recorder.write(chunks).unwrap();
    }

    fn known(reader: &MemoryReader) -> Vec<u64> {
        match WorkingSet::read(reader).unwrap() {
            WorkingSet::Known(chunks) => chunks,
            WorkingSet::Recording(_) => unreachable!(),
        }
    }

    #[test]
    fn a_record_is_found_beside_its_memory_file_and_replaces_the_one_before() {
        let (folder, reader) = snapshot();
        assert!(known(&reader).is_empty());

        write(&reader, &[2, 0, 3]);
        assert_eq!(known(&reader), [2, 0, 3]);
        drop(WorkingSet::record(&reader).unwrap());
        assert_eq!(known(&reader), [2, 0, 3]);
        write(&reader, &[1]);
        assert_eq!(known(&reader), [1]);

        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["memory", "memory.working-set", "state"]);
    }

    #[test]
    fn a_record_that_is_none_of_this_snapshot_is_refused() {
        let ((folder, reader), (_other, elsewhere)) = (snapshot(), snapshot());
        let path = WorkingSet::path(reader.path());
        write(&elsewhere, &[1]);
        fs::copy(WorkingSet::path(elsewhere.path()), &path).unwrap();
        let fault = || WorkingSet::read(&reader).unwrap_err().fault;
        assert!(matches!(fault(), Fault::OtherSnapshot { .. }), "{:?}", fault());

        // More than all of its chunks, which is not read.
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(fault(), Fault::TooLong { .. }), "{:?}", fault());
        fs::copy(folder.path().join("state"), &path).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(40).unwrap();
        assert!(matches!(fault(), Fault::OtherRole { .. }), "{:?}", fault());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(fault(), Fault::NotRegular), "{:?}", fault());

        drop(folder);
        let nowhere = WorkingSet::record(&reader).unwrap_err();
        assert_eq!(nowhere.status(), ExitStatus::CannotCreate, "{nowhere:?}");
    }

    proptest! {
        #[test]
        fn chunks_are_read_as_they_were_written(chunks in proptest::collection::vec(0..300u64, 0..300)) {
            let bytes = encode(about(300).id, &chunks);
            prop_assert_eq!(decode(&bytes, &about(300)).unwrap(), chunks.clone());
            let beyond = chunks.iter().max().copied().unwrap_or(0);
            prop_assert!(chunks.is_empty() || decode(&bytes, &about(beyond)).is_err());
        }

        #[test]
        fn what_is_cut_or_changed_is_refused(
            chunks in proptest::collection::vec(0..9u64, 0..9), at: usize, bit in 0..8u8,
        ) {
            let bytes = encode(about(9).id, &chunks);
            let at = at % bytes.len();
            prop_assert!(decode(&bytes[..at], &about(9)).is_err());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(decode(&flipped, &about(9)).is_err());
        }

        #[test]
        fn a_list_of_another_length_is_refused(said in 0..9u32, chunks in 0..9usize, more in 0..4usize) {
            let mut bytes = encode(about(9).id, &vec![0; chunks]);
            bytes.truncate(bytes.len() - CRC);
            bytes[HEADER - 4..HEADER].copy_from_slice(&said.to_le_bytes());
            bytes.extend(vec![0; more]);
            bytes.extend(format::crc(&bytes).to_le_bytes());
            let fits = said as usize == chunks && more == 0;
            prop_assert_eq!(decode(&bytes, &about(9)).is_ok(), fits);
        }
    }
}
