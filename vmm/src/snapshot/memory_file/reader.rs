//! Reads a memory file.

use std::path::Path;

use arch::layout::CHUNK;
use arch::units::Bytes;
use vm_memory::VolatileSlice;

use super::super::error::{Error, Fault, Part};
use super::super::format;
use super::super::source::Source;
use super::header::{HEADER, Header};
use super::still;
use super::table::{self, ENTRY, Entry};
use super::{About, Contents, Map, MemorySink, Progress, Tags};

/// So many entries of the table are read at once.
const ENTRIES: usize = 1 << 12;

/// A memory file, open. It stays the same file if another takes its name.
#[derive(Debug)]
pub struct MemoryReader {
    source: Source,
    about: About,
    entries: Vec<Entry>,
    table_crc: u32,
}

impl MemoryReader {
    /// Opens a memory file and checks its header and its table.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is no memory file of this version.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path)?;
        let (header, entries) = Self::read(&source).map_err(|fault| source.error(fault))?;
        let Header { about, table_crc, .. } = header;
        Ok(Self { source, about, entries, table_crc })
    }

    fn read(source: &Source) -> Result<(Header, Vec<Entry>), Fault> {
        let mut start = [0; HEADER];
        let there = HEADER.min(usize::try_from(source.length()).unwrap_or(HEADER));
        source.read(&mut start[..there], 0)?;
        let header = Header::decode(&start[..there], source.length())?;
        let mut entries = Vec::new();
        let mut crc = crc32fast::Hasher::new();
        let mut bytes = vec![0; ENTRIES.min(header.entries as usize) * ENTRY];
        let (mut at, mut left) = (header.table, header.entries as usize);
        // What makes no sense is not kept, so that the table takes no more memory than the file has room for. Whether
        // it is damaged or made so shows at its end.
        let mut checked = Ok(());
        while left > 0 {
            let count = left.min(ENTRIES);
            let bytes = &mut bytes[..count * ENTRY];
            source.read(bytes, at)?;
            crc.update(bytes);
            checked = checked
                .and_then(|()| table::entries(bytes, &header.about, header.table, &mut entries));
            at += bytes.len() as u64;
            left -= count;
        }
        if crc.finalize() != header.table_crc {
            return Err(Fault::Damaged { part: Part::Table });
        }
        checked.map(|()| (header, entries))
    }

    /// The path that it was opened under.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// What it is of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The checksum of its table, in which are those of all that it has.
    pub fn table_checksum(&self) -> u32 {
        self.table_crc
    }

    /// The chunks that it has anything of, in order. All others are holes, in a diff unchanged.
    pub fn chunks(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|entry| entry.chunk.into())
    }

    /// Checks that this memory can take what is in the file.
    ///
    /// # Errors
    /// When it is of another size, has pages of another size, or only one of both has tags; when the file is a diff.
    pub fn check_sink(&self, sink: &dyn MemorySink) -> Result<(), Error> {
        let (found, wanted) = (self.about.size, sink.size());
        if found != wanted {
            return Err(self.source.error(Fault::MemorySize { found, wanted }));
        }
        self.full()?;
        self.about.fits(sink).map_err(|fault| self.source.error(fault))
    }

    /// Loads one chunk to `at` of a sink, which may be memory aside of the size of a chunk. Of a hole nothing is
    /// written. Several threads may load at a time.
    ///
    /// Its map and its tags are checked before the first byte is written, its data when it is there: after an error
    /// the memory must not be used.
    ///
    /// # Errors
    /// When the chunk cannot be read or is damaged, or the sink does not take it.
    pub fn load_chunk(&self, chunk: u64, sink: &dyn MemorySink, at: u64) -> Result<(), Error> {
        let Some((entry, map)) = self.full_map(chunk)? else { return Ok(()) };
        self.load(entry, &map, sink, at).map_err(|fault| self.source.error(fault))
    }

    fn load(&self, entry: &Entry, map: &Map, sink: &dyn MemorySink, at: u64) -> Result<(), Fault> {
        self.about.fits(sink)?;
        let memory = sink.pages(at, CHUNK.get() as usize).map_err(Fault::GuestMemory)?;
        let page = self.about.page_size.get();
        let page_size = page as usize;
        let pieces = map
            .runs(Contents::Data)
            .map(|run| memory.subslice(run.start * page_size, run.len() * page_size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Fault::GuestMemory(std::io::Error::other(error)))?;
        self.read_data(entry, &pieces)?;
        for (run, tags) in map.tags() {
            let offset = at + run.start as u64 * page;
            let written = match tags {
                Tags::Zero => Ok(()),
                Tags::One(tag) => sink.fill_tags(offset, run.len() as u64 * page, tag),
                Tags::Packed(packed) => sink.write_tags(offset, packed),
            };
            written.map_err(Fault::GuestMemory)?;
        }
        Ok(())
    }

    /// Reads the data of a chunk into pieces that have as many pages, and checks it.
    pub(in super::super) fn load_data(
        &self,
        entry: &Entry,
        pieces: &[VolatileSlice<'_>],
    ) -> Result<(), Error> {
        self.read_data(entry, pieces).map_err(|fault| self.source.error(fault))
    }

    fn read_data(&self, entry: &Entry, pieces: &[VolatileSlice<'_>]) -> Result<(), Fault> {
        self.source.read_pages(&mut pieces.to_vec(), entry.data)?;
        let mut crc = crc32fast::Hasher::new();
        pieces.iter().for_each(|piece| still::update_crc(&mut crc, piece));
        if crc.finalize() != entry.data_crc {
            return Err(Fault::Damaged { part: Part::Data(entry.chunk.into()) });
        }
        Ok(())
    }

    fn full(&self) -> Result<(), Error> {
        match self.about.base {
            Some(base) => Err(self.source.error(Fault::Diff { base })),
            None => Ok(()),
        }
    }

    fn full_map(&self, chunk: u64) -> Result<Option<(&Entry, Map)>, Error> {
        self.full()?;
        match self.entry(chunk) {
            Some(entry) => Ok(Some((entry, self.map(entry)?))),
            None => Ok(None),
        }
    }

    /// What it has of a chunk.
    pub(in super::super) fn entry(&self, chunk: u64) -> Option<&Entry> {
        let found = self.entries.binary_search_by_key(&chunk, |entry| entry.chunk.into());
        found.ok().and_then(|at| self.entries.get(at))
    }

    /// The map of an entry that has one.
    pub(in super::super) fn map(&self, entry: &Entry) -> Result<Map, Error> {
        let part = Part::Map(entry.chunk.into());
        // Within the limit that the table was checked against.
        let mut bytes = vec![0; entry.map_length as usize];
        let read = self.source.read(&mut bytes, entry.map).and_then(|()| {
            if format::crc(&bytes) != entry.map_crc {
                return Err(Fault::Damaged { part });
            }
            Map::decode(&bytes, &self.about, entry.pages)
                .map_err(|reason| Fault::malformed(part, reason))
        });
        read.map_err(|fault| self.source.error(fault))
    }
}

/// Loads all of a memory file.
///
/// # Errors
/// When it cannot be read or is damaged, or the memory does not take it. The memory must not be used then.
pub fn load_memory(
    sink: &dyn MemorySink,
    reader: &MemoryReader,
    progress: Progress<'_>,
) -> Result<(), Error> {
    reader.check_sink(sink)?;
    for chunk in reader.chunks() {
        reader.load_chunk(chunk, sink, chunk * CHUNK.get())?;
        progress(Bytes::new((chunk + 1) * CHUNK.get()));
    }
    progress(sink.size());
    Ok(())
}
