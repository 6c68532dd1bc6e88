//! Diffs and their base become one snapshot.

use std::iter;
use std::path::Path;
use std::slice::ChunksMut;

use arch::layout::CHUNK;
use arch::units::Bytes;
use vm_memory::VolatileSlice;

use super::error::{Error, Fault};
use super::memory_file::{
    About, Contents, Map, MapWriter, MemoryReader, Progress, Saved, Tags, Writer, pages_per_chunk,
};
use super::new_file::NewFile;
use super::pair::{NewPair, Pair};
use super::state_file::{Kind, State};

/// Merges diffs with the snapshot that the first of them builds on, each building on the one before it, under two new
/// names; they may be those of any. The result has the id of the last diff, and what builds on that builds on the
/// result.
///
/// If the base is a diff as well, the result is one that builds on the base's base.
///
/// # Errors
/// When a file cannot be read or is damaged, a diff builds on another snapshot than the one before it or is none, or
/// the result cannot be written.
pub fn merge(
    base: &Pair,
    diffs: &[Pair],
    state: &Path,
    memory: &Path,
    progress: Progress<'_>,
) -> Result<Saved, Error> {
    let mut all = vec![base];
    let mut last = base;
    for diff in diffs {
        check(last, diff)?;
        all.push(diff);
        last = diff;
    }
    let id = last.state.id;
    let base = base.memory.about().base;
    let about = About { base, ..*last.memory.about() };
    let mut merged = State { id, ..last.state.clone() };
    merged.manifest.kind = base.map_or(Kind::Full, |base| Kind::Diff { base });
    let mut into = NewPair::create_as(id, state, memory)?;
    let file = into.memory_file(about);
    let files = all.iter().rev().map(|pair| &pair.memory).collect();
    let saved = Merge { files, file, map: MapWriter::default() }.all(about, progress)?;
    into.commit(&merged)?;
    Ok(saved)
}

/// Checks that a diff builds on this snapshot.
fn check(base: &Pair, diff: &Pair) -> Result<(), Error> {
    let (old, new) = (base.memory.about(), diff.memory.about());
    let fault = |fault| Error::new(diff.memory.path(), fault);
    let wanted = new.base.ok_or_else(|| fault(Fault::NoDiff))?;
    if wanted != old.id {
        return Err(fault(Fault::WrongBase { found: old.id, wanted }));
    }
    same_memory(old, new).map_err(fault)
}

/// Checks that both are of the same VM's memory.
fn same_memory(old: &About, new: &About) -> Result<(), Fault> {
    if new.size != old.size {
        return Err(Fault::MemorySize { found: new.size, wanted: old.size });
    }
    if new.page_size != old.page_size {
        return Err(Fault::PageSize { found: new.page_size, wanted: old.page_size });
    }
    match (new.tagged, old.tagged) {
        (true, false) => Err(Fault::Tagged),
        (false, true) => Err(Fault::Untagged),
        _ => Ok(()),
    }
}

/// The memory files, and the one that they become.
struct Merge<'a> {
    /// The newest first.
    files: Vec<&'a MemoryReader>,
    file: &'a NewFile,
    map: MapWriter,
}

impl Merge<'_> {
    fn all(mut self, about: About, progress: Progress<'_>) -> Result<Saved, Error> {
        let file = self.file;
        let failed = |fault| file.error(fault);
        let mut writer = Writer::new(about, file.file()).map_err(failed)?;
        for chunk in 0..about.chunks() {
            self.chunk(chunk, &about, &mut writer)?;
            progress(Bytes::new((chunk + 1) * CHUNK.get()));
        }
        writer.finish().map_err(failed)
    }

    fn chunk(&mut self, chunk: u64, about: &About, writer: &mut Writer<'_>) -> Result<(), Error> {
        let mut sides = Vec::new();
        for file in &self.files {
            let side = Side::read(file, chunk)?;
            let needs_base = side.needs_base();
            sides.push(side);
            if !needs_base {
                break;
            }
        }
        let page_size = about.page_size.get() as usize;
        let mut sides: Vec<_> = sides.iter_mut().map(|side| side.split(page_size)).collect();
        let mut pieces = Vec::new();
        self.map.clear();
        for _ in 0..pages_per_chunk(about.page_size) {
            // The newest that has the page, or else the oldest: what it builds on has it.
            let mut found = None;
            for (pages, data) in &mut sides {
                // A map covers a whole chunk, and what stands in for one has no end.
                let page = pages.next().unwrap_or((Contents::Hole, Tags::Zero));
                let data = piece(page.0, data);
                if found.as_ref().is_none_or(|((contents, _), _)| *contents == Contents::Unchanged)
                {
                    found = Some((page, data));
                }
            }
            let (page, data) = found.unwrap_or(((Contents::Hole, Tags::Zero), None));
            self.map.push(page.0, page.1);
            pieces.extend(data);
        }
        writer.chunk(chunk, &mut self.map, &mut pieces).map_err(|fault| self.file.error(fault))
    }
}

/// The pages of a chunk: what they have, and their tags.
type Pages<'a> = Box<dyn Iterator<Item = (Contents, Tags<'a>)> + 'a>;

/// What one of the files has of a chunk.
struct Side {
    /// What all pages are, where there is no map.
    contents: Contents,
    map: Option<Map>,
    data: Vec<u8>,
}

impl Default for Side {
    fn default() -> Self {
        Self { contents: Contents::Hole, map: None, data: Vec::new() }
    }
}

impl Side {
    fn read(reader: &MemoryReader, chunk: u64) -> Result<Self, Error> {
        let about = reader.about();
        let Some(entry) = reader.entry(chunk) else {
            let contents = if about.base.is_some() { Contents::Unchanged } else { Contents::Hole };
            return Ok(Self { contents, ..Self::default() });
        };
        if entry.is_hole() {
            return Ok(Self::default());
        }
        let map = reader.map(entry)?;
        let length = entry.pages as usize * about.page_size.get() as usize;
        let mut data = vec![0; length];
        reader.load_data(entry, &[VolatileSlice::from(&mut data[..])])?;
        Ok(Self { contents: Contents::Hole, map: Some(map), data })
    }

    fn needs_base(&self) -> bool {
        match &self.map {
            Some(map) => map.runs(Contents::Unchanged).next().is_some(),
            None => self.contents == Contents::Unchanged,
        }
    }

    /// The pages, and the data of those that have any.
    fn split(&mut self, page_size: usize) -> (Pages<'_>, ChunksMut<'_, u8>) {
        let pages: Pages<'_> = match &self.map {
            Some(map) => Box::new(map.pages()),
            None => Box::new(iter::repeat((self.contents, Tags::Zero))),
        };
        (pages, self.data.chunks_mut(page_size))
    }
}

/// The data of the next page, if it has any.
fn piece<'a>(contents: Contents, data: &mut ChunksMut<'a, u8>) -> Option<VolatileSlice<'a>> {
    match contents {
        Contents::Data => data.next().map(VolatileSlice::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
