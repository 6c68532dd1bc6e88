//! The memory of a template, out of a memory file.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use arch::layout::CHUNK;
use thiserror::Error;

use crate::machine::Destination;
use crate::memory::{self, Attributes, GuestRam};
use crate::snapshot::memory_file::GuestPages;
use crate::snapshot::{self, MemoryReader};

/// Why there is no template.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no memory for it.
    #[error("the host has no memory for the template")]
    Memory(#[from] memory::Error),
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// It cannot be filled.
    #[error("the template cannot be filled")]
    Pages(#[source] io::Error),
    /// It cannot be sealed.
    #[error("the template cannot be sealed")]
    Seal(#[source] io::Error),
}

/// Fills a template: data and tags of a memory file, and all pages of the extents. Returns a descriptor for reading it,
/// which nothing can be written to through; there is no other. `None` if it is to stop, which it asks for each chunk.
///
/// # Errors
/// When the file cannot be read or is damaged, or the host does not have the memory.
pub(super) fn fill(
    reader: &MemoryReader,
    extents: &[Range<u64>],
    stop: &dyn Fn() -> bool,
) -> Result<Option<OwnedFd>, Error> {
    let about = reader.about();
    let attributes = Attributes { tags: about.tagged, huge_pages: true, ..Attributes::default() };
    let ram = GuestRam::of_template(about.size, attributes)?;
    {
        let contents = Destination::new(&ram);
        reader.check_sink(&contents)?;
        for chunk in reader.chunks() {
            if stop() {
                return Ok(None);
            }
            reader.load_chunk(chunk, &contents, chunk * CHUNK.get())?;
        }
        for offset in extents.iter().flat_map(chunks_of) {
            if stop() {
                return Ok(None);
            }
            populate(&contents, offset).map_err(Error::Pages)?;
        }
    }
    ram.into_template().map(Some).map_err(Error::Seal)
}

/// Where the chunks of an extent begin.
fn chunks_of(extent: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    (extent.start..extent.end).step_by(CHUNK.get() as usize)
}

/// Has each page of a chunk, which a clone may touch: it reads zero, tags as well, unless it was loaded. Without, the
/// first clone that reads there would add it.
fn populate(contents: &Destination, offset: u64) -> io::Result<()> {
    let chunk = contents.pages(offset, CHUNK.get() as usize)?;
    for at in (0..chunk.len()).step_by(contents.page_size().get() as usize) {
        let place = chunk.offset(at).map_err(io::Error::other)?;
        place.copy_to(&mut [0u8; 1]);
    }
    Ok(())
}
