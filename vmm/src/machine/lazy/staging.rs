//! Where a chunk of a snapshot is put together before the guest has it.

use std::io;
use std::ops::Range;

use arch::layout::CHUNK;
use arch::mte::granule::Tag;
use arch::units::Bytes;
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::super::contents::Destination;
use super::Error;
use crate::memory::{Backing, GuestRam};
use crate::snapshot::memory_file::{GuestPages, pages_per_chunk};
use crate::snapshot::{MemoryReader, MemorySink, PageSet};
use crate::sys::numa::Rule;
use crate::sys::uffd::{self, Uffd};

/// Memory of one chunk in which chunks of a guest are put together, one at a time.
pub(super) struct Staging {
    memory: GuestRam,
    kind: Kind,
    /// Memory that is not the guest's may have something of a chunk that was read: it could not be dropped.
    has_rest: bool,
}

/// How the guest comes to have what is there.
enum Kind {
    /// It is anonymous memory, and its pages are moved to the guest. They are taken from where this rule says.
    Aside { rule: Option<Rule> },
    /// It is the guest's own, by another mapping of its file. The guest sees nothing of it as long as the chunk is
    /// watched for missing pages and for pages that only the file has.
    Window {
        /// What data is read into, and checked: a page of the file may be given back at any time. It has no tags, for
        /// which there would be no tag storage.
        data: Destination,
    },
}

impl Staging {
    /// For chunks of this memory.
    pub(super) fn new(ram: &GuestRam) -> Result<Self, Error> {
        let (memory, kind) = match ram.backing() {
            Backing::Anonymous => (ram.chunk_aside()?, Kind::Aside { rule: None }),
            Backing::Memfd => {
                (ram.window()?, Kind::Window { data: Destination::new(&ram.data_aside()?) })
            }
            Backing::Hugetlbfs { .. } => return Err(Error::Backing),
        };
        Ok(Self { memory, kind, has_rest: false })
    }

    /// What stops touches of memory that is loaded this way.
    pub(super) fn uffd(&self) -> Result<Uffd, uffd::Error> {
        match self.kind {
            Kind::Aside { .. } => Uffd::with_moves(),
            Kind::Window { .. } => Uffd::with_minor_faults(),
        }
    }

    /// Makes ready for a chunk, which is at `guest` in this process. After an error it may still be the guest's memory that
    /// is shown here.
    pub(super) fn turn_to(&mut self, chunk: u64, guest: &Range<u64>) -> io::Result<()> {
        if self.has_rest {
            match &self.kind {
                Kind::Aside { .. } => self.destination().discard(&whole_chunk())?,
                Kind::Window { data } => data.discard(&whole_chunk())?,
            }
            self.has_rest = false;
        }
        match &mut self.kind {
            Kind::Aside { rule } => {
                // The pages become those of the guest, which a lender of tag storage has a rule for (mbind(2)).
                let wanted = Rule::at(guest.start)?;
                if let Some(new) = wanted.filter(|_| wanted != *rule) {
                    let start = self.memory.host_address();
                    new.set(start..start + CHUNK.get())?;
                    *rule = wanted;
                }
                Ok(())
            }
            // Its file has the rule of the guest's mapping.
            Kind::Window { .. } => self.memory.show_chunk(chunk),
        }
    }

    /// Reads the chunk that it was made ready for. After an error there may be half of it.
    pub(super) fn load(&mut self, reader: &MemoryReader, chunk: u64) -> Result<(), Error> {
        self.has_rest = true;
        let own = self.destination();
        let Kind::Window { data } = &self.kind else {
            return Ok(reader.load_chunk(chunk, &own, 0)?);
        };
        let read = reader.load_chunk(chunk, &Split { data, tags: &own }, 0);
        let copied = match read {
            Ok(()) => copy_data(data, &own).map_err(Error::Host),
            Err(error) => Err(error.into()),
        };
        // What is not in the next chunk must read zero there.
        data.discard(&whole_chunk()).map_err(Error::Host)?;
        self.has_rest = false;
        copied
    }

    fn destination(&self) -> Destination {
        Destination::new(&self.memory)
    }

    /// Where pages are that are to be moved, if they are.
    pub(super) fn to_move(&self) -> Option<u64> {
        match self.kind {
            Kind::Aside { .. } => Some(self.memory.host_address()),
            Kind::Window { .. } => None,
        }
    }

    /// All pages have been moved.
    pub(super) fn moved(&mut self) {
        self.has_rest = false;
    }

    /// Has pages read zero, data and tags.
    pub(super) fn drop_pages(&mut self, pages: &PageSet) -> io::Result<()> {
        let destination = self.destination();
        if let Kind::Aside { .. } = self.kind {
            destination.discard(pages)?;
            self.has_rest &= *pages != whole_chunk();
            return Ok(());
        }
        if self.memory.has_tags() {
            // The file may keep a page, which it then clears, but not its tags (`MemoryFile::punch`).
            let page = rustix::param::page_size() as u64;
            for run in pages.runs() {
                let (start, length) = (run.start as u64 * page, run.len() as u64 * page);
                destination.fill_tags(start, length, Tag::ZERO)?;
            }
        }
        match destination.discard(pages) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(()),
            done => done,
        }
    }
}

/// Memory whose data goes elsewhere first.
struct Split<'a> {
    data: &'a Destination,
    tags: &'a Destination,
}

impl GuestPages for Split<'_> {
    fn size(&self) -> Bytes {
        self.data.size()
    }

    fn page_size(&self) -> Bytes {
        self.data.page_size()
    }

    fn has_tags(&self) -> bool {
        self.tags.has_tags()
    }

    fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
        self.data.pages(offset, length)
    }
}

impl MemorySink for Split<'_> {
    fn write_tags(&self, offset: u64, packed: &[u8]) -> io::Result<()> {
        self.tags.write_tags(offset, packed)
    }

    fn fill_tags(&self, offset: u64, length: u64, tag: Tag) -> io::Result<()> {
        self.tags.fill_tags(offset, length, tag)
    }
}

/// Copies the data of a chunk to where all reads zero. Pages of zeros are left as they are.
fn copy_data(from: &Destination, to: &Destination) -> io::Result<()> {
    let page = rustix::param::page_size();
    let (mut data, zeros) = (vec![0; page], vec![0; page]);
    for at in (0..CHUNK.get()).step_by(page) {
        from.pages(at, page)?.copy_to(&mut data);
        if data != zeros {
            to.pages(at, page)?.copy_from(&data);
        }
    }
    Ok(())
}

/// All pages of a chunk.
pub(super) fn whole_chunk() -> PageSet {
    PageSet::of(0..pages_per_chunk(Bytes::new(rustix::param::page_size() as u64)))
}
