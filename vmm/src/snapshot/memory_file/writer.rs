//! Writes a memory file.

use std::io;
use std::ops::Range;

use arch::layout::CHUNK;
use arch::units::Bytes;
use vm_memory::VolatileSlice;

use super::super::error::{Fault, Part};
use super::super::format;
use super::header::{HEADER, Header};
use super::map::packed_page;
use super::pages_per_chunk;
use super::still;
use super::table::Entry;
use super::{About, Contents, MapWriter, MemoryView, Output, PageSet, Progress, Tags};

/// So many bytes of maps are written together. Those of an idle guest are fewer.
const MAPS: usize = 64 << 10;

/// What a memory file has become.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Saved {
    /// How many chunks are in it.
    pub chunks: u64,
    /// How many pages have data in it.
    pub pages: u64,
    /// The size of all maps, tags included.
    pub maps: u64,
    /// The size of the file.
    pub length: u64,
}

/// Writes the memory file of a view. The file is new, and no memory file before all of it is written.
///
/// # Errors
/// When memory cannot be read, or the file not be written.
pub fn save_memory(
    view: &dyn MemoryView,
    about: &About,
    file: &dyn Output,
    progress: Progress<'_>,
) -> Result<Saved, Fault> {
    let mut writer = Writer::new(*about, file)?;
    let mut saver = ChunkSaver::new(view, about);
    for chunk in 0..about.chunks() {
        saver.save(chunk, &mut writer)?;
        progress(Bytes::new((chunk + 1) * CHUNK.get()));
    }
    writer.finish()
}

/// Goes through the chunks of guest memory.
struct ChunkSaver<'a> {
    view: &'a dyn MemoryView,
    about: &'a About,
    map: MapWriter,
    /// The tags of a chunk.
    tags: Vec<u8>,
}

impl<'a> ChunkSaver<'a> {
    fn new(view: &'a dyn MemoryView, about: &'a About) -> Self {
        let tags = if about.tagged { packed_page(CHUNK) } else { 0 };
        Self { view, about, map: MapWriter::default(), tags: vec![0; tags] }
    }

    fn save(&mut self, chunk: u64, writer: &mut Writer<'_>) -> Result<(), Fault> {
        // What a view says of pages that a chunk does not have means nothing.
        let pages = PageSet::of(0..pages_per_chunk(self.about.page_size));
        let mut unchanged = PageSet::EMPTY;
        if self.about.base.is_some() {
            unchanged =
                self.view.unchanged(chunk).map_err(Fault::GuestMemory)?.intersection(&pages);
            if unchanged == pages {
                return Ok(());
            }
        }
        let present = self.view.present(chunk).map_err(Fault::GuestMemory)?;
        let present = present.intersection(&pages).difference(&unchanged);
        self.map.clear();
        if present.is_empty() && unchanged.is_empty() {
            return writer.hole(chunk);
        }
        let offset = chunk * CHUNK.get();
        let view = self.view;
        let memory = view.pages(offset, CHUNK.get() as usize).map_err(Fault::GuestMemory)?;
        let data = self.classify(&memory, offset, &present, &unchanged)?;
        let page_size = self.about.page_size.get() as usize;
        let mut pieces = data
            .runs()
            .map(|run| memory.subslice(run.start * page_size, run.len() * page_size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(outside)?;
        writer.chunk(chunk, &mut self.map, &mut pieces)
    }

    /// Puts all pages into the map, and returns those with data.
    fn classify(
        &mut self,
        memory: &VolatileSlice<'_>,
        offset: u64,
        present: &PageSet,
        unchanged: &PageSet,
    ) -> Result<PageSet, Fault> {
        let page_size = self.about.page_size.get() as usize;
        for run in present.runs() {
            self.read_tags(offset, run)?;
        }
        let mut data = PageSet::EMPTY;
        for page in 0..pages_per_chunk(self.about.page_size) {
            if !present.contains(page) {
                let same = unchanged.contains(page);
                let contents = if same { Contents::Unchanged } else { Contents::Hole };
                self.map.push(contents, Tags::Zero);
                continue;
            }
            let slice = memory.subslice(page * page_size, page_size).map_err(outside)?;
            let zero = still::is_zero(&slice);
            if !zero {
                data.insert(page);
            }
            let contents = if zero { Contents::Zero } else { Contents::Data };
            let packed = packed_page(self.about.page_size);
            let tags =
                self.tags.get(page * packed..(page + 1) * packed).map_or(Tags::Zero, Tags::of);
            self.map.push(contents, tags);
        }
        Ok(data)
    }

    /// Reads the tags of pages of the chunk at `offset`, if there are any.
    fn read_tags(&mut self, offset: u64, pages: Range<usize>) -> Result<(), Fault> {
        if !self.about.tagged {
            return Ok(());
        }
        let page_size = self.about.page_size;
        let (start, packed) =
            (offset + pages.start as u64 * page_size.get(), packed_page(page_size));
        let tags = self.tags.get_mut(pages.start * packed..pages.end * packed);
        let read = match tags {
            Some(tags) => self.view.read_tags(start, tags),
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        read.map_err(Fault::GuestMemory)
    }
}

/// A page is within its chunk, which the view gave.
fn outside(error: vm_memory::VolatileMemoryError) -> Fault {
    Fault::GuestMemory(io::Error::other(error))
}

/// Puts chunks, maps, table and header where they belong.
pub(in super::super) struct Writer<'a> {
    about: About,
    file: &'a dyn Output,
    /// Where the file has nothing yet: a multiple of the page size.
    end: u64,
    entries: Vec<Entry>,
    /// Maps that are not written. Their entries have their places among them so far.
    maps: Vec<u8>,
    /// The first entry of those.
    first: usize,
    saved: Saved,
}

impl<'a> Writer<'a> {
    /// A file with nothing in it.
    pub(in super::super) fn new(about: About, file: &'a dyn Output) -> Result<Self, Fault> {
        about.check().map_err(|reason| Fault::Unsavable { part: Part::Header, reason })?;
        // The header is at the start of the first page.
        let end = about.page_size.get();
        let (entries, maps) = (Vec::new(), Vec::new());
        Ok(Self { about, file, end, entries, maps, first: 0, saved: Saved::default() })
    }

    /// Adds a chunk that has nothing. They come in order.
    pub(in super::super) fn hole(&mut self, chunk: u64) -> Result<(), Fault> {
        if self.about.base.is_some() {
            self.entries.push(Entry::hole(number(chunk)));
        }
        Ok(())
    }

    /// Adds a chunk, the pieces with its data in order. They come in order.
    pub(in super::super) fn chunk(
        &mut self,
        chunk: u64,
        map: &mut MapWriter,
        data: &mut [VolatileSlice<'_>],
    ) -> Result<(), Fault> {
        let map = match map.finish() {
            Ok(map) => map,
            Err(Contents::Unchanged) => return Ok(()),
            Err(_) => return self.hole(chunk),
        };
        let mut crc = crc32fast::Hasher::new();
        let mut length = 0;
        for piece in &*data {
            still::update_crc(&mut crc, piece);
            length += piece.len() as u64;
        }
        let pages = length / self.about.page_size.get();
        self.entries.push(Entry {
            chunk: number(chunk),
            pages: pages as u32,
            data: if length == 0 { 0 } else { self.end },
            map: self.maps.len() as u64,
            map_length: map.len() as u32,
            map_crc: format::crc(map),
            data_crc: crc.finalize(),
        });
        self.maps.extend_from_slice(map);
        self.saved.maps += map.len() as u64;
        self.saved.pages += pages;
        self.file.write_pages(data, self.end).map_err(Fault::write)?;
        self.end += length;
        if self.maps.len() >= MAPS { self.write_maps() } else { Ok(()) }
    }

    /// Writes the maps that are not.
    fn write_maps(&mut self) -> Result<(), Fault> {
        self.file.write(&self.maps, self.end).map_err(Fault::write)?;
        for entry in self.entries.iter_mut().skip(self.first).filter(|entry| !entry.is_hole()) {
            entry.map += self.end;
        }
        self.first = self.entries.len();
        let end = self.end + self.maps.len() as u64;
        self.end = end.next_multiple_of(self.about.page_size.get());
        self.maps.clear();
        Ok(())
    }

    /// Writes the table, and then the header: only with it is it a memory file.
    pub(in super::super) fn finish(mut self) -> Result<Saved, Fault> {
        self.write_maps()?;
        if self.entries.is_empty() {
            self.end = HEADER as u64;
        }
        let mut table = Vec::new();
        self.entries.iter().for_each(|entry| entry.encode(&mut table));
        self.file.write(&table, self.end).map_err(Fault::write)?;
        let header = Header {
            about: self.about,
            table: self.end,
            entries: self.entries.len() as u32,
            table_crc: format::crc(&table),
        };
        let bytes = header.encode();
        debug_assert_eq!(bytes.len(), HEADER);
        self.file.write(&bytes, 0).map_err(Fault::write)?;
        let chunks = self.entries.iter().filter(|entry| !entry.is_hole()).count() as u64;
        Ok(Saved { chunks, length: self.end + table.len() as u64, ..self.saved })
    }
}

/// The number of a chunk, of which there are fewer than 2^32: see [`MAX_MEMORY`](super::MAX_MEMORY).
fn number(chunk: u64) -> u32 {
    chunk as u32
}
