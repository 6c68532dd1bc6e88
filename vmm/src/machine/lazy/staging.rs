//! Where a chunk of a snapshot is put together before the guest has it.

use std::io;
use std::ops::Range;

use arch::layout::CHUNK;
use arch::mte::granule::Tag;
use rustix::io::Errno;

use super::super::contents::Destination;
use super::Error;
use crate::memory::{Backing, GuestRam};
use crate::snapshot::{MemorySink, PageSet};
use crate::sys::numa::Rule;
use crate::sys::uffd::{self, Uffd};

/// Memory of one chunk in which chunks of a guest are put together, one at a time.
pub(super) struct Staging {
    memory: GuestRam,
    kind: Kind,
}

/// How the guest comes to have what is there.
enum Kind {
    /// It is anonymous memory, and its pages are moved to the guest. They are taken from where this rule says.
    Aside { rule: Option<Rule> },
    /// It is the guest's own, by another mapping of its file. The guest sees nothing of it as long as the chunk is
    /// watched for missing pages and for pages that only the file has.
    Window,
}

impl Staging {
    /// For chunks of this memory.
    pub(super) fn new(ram: &GuestRam) -> Result<Self, Error> {
        let (memory, kind) = match ram.backing() {
            Backing::Anonymous => (ram.chunk_aside()?, Kind::Aside { rule: None }),
            Backing::Memfd => (ram.window()?, Kind::Window),
            Backing::Hugetlbfs { .. } => return Err(Error::Backing),
        };
        Ok(Self { memory, kind })
    }

    /// What stops touches of memory that is loaded this way.
    pub(super) fn uffd(&self) -> Result<Uffd, uffd::Error> {
        match self.kind {
            Kind::Aside { .. } => Uffd::with_moves(),
            Kind::Window => Uffd::with_minor_faults(),
        }
    }

    /// Makes ready for a chunk, which is at `guest` in this process.
    pub(super) fn turn_to(&mut self, chunk: u64, guest: &Range<u64>) -> io::Result<()> {
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
            Kind::Window => self.memory.show_chunk(chunk),
        }
    }

    /// What the chunk is read into, from offset 0 on.
    pub(super) fn destination(&self) -> Destination {
        Destination::new(&self.memory)
    }

    /// Where pages are that are to be moved, if they are.
    pub(super) fn to_move(&self) -> Option<u64> {
        match self.kind {
            Kind::Aside { .. } => Some(self.memory.host_address()),
            Kind::Window => None,
        }
    }

    /// Has pages read zero, data and tags.
    pub(super) fn drop_pages(&self, pages: &PageSet) -> io::Result<()> {
        let destination = self.destination();
        if let Kind::Aside { .. } = self.kind {
            return destination.discard(pages);
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
