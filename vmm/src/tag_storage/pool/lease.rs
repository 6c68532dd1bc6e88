//! A VM's hold on the pool: what it may have, what it has, and what is promised to it.

use arch::units::Bytes;
use thiserror::Error;

use super::share::Limits;
use super::units::TAGS_OF_CHUNK;
pub(crate) use super::units::{LeaseId, chunks_of, tags_of};

/// Leases of one pool: far more than VMs fit a host, far less than would exhaust the broker.
pub const MAX_LEASES: u32 = 4096;

/// Bytes of a lease's name; a VM's is shorter.
pub const MAX_NAME: usize = 128;

/// What a VM asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// What people call it, at most [`MAX_NAME`] bytes. Names need not differ.
    pub name: String,
    /// Tag storage that is set aside for it from the start; rounded up to whole chunks' (64 KiB).
    pub min: Bytes,
    /// The most tag storage that it can have; rounded down to whole chunks', [`Bytes::MAX`] for all
    /// there is.
    pub max: Bytes,
}

/// Why terms make no lease.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TermsError {
    /// The name is long or cannot be printed.
    #[error("a lease's name has 1 to {MAX_NAME} printable characters: give the VM another (--id)")]
    Name,
    /// The minimum is above the maximum.
    #[error(
        "a minimum of {min} of tag storage is more than the maximum of {max}: give less --tag-min"
    )]
    Limits {
        /// The minimum, in whole chunks' tags.
        min: Bytes,
        /// The maximum, in whole chunks' tags.
        max: Bytes,
    },
    /// Less than one chunk's tags.
    #[error(
        "{0} of tag storage is less than the {TAGS_OF_CHUNK} of one chunk: give more --tag-max"
    )]
    Nothing(Bytes),
}

impl LeaseTerms {
    /// Minimum and maximum in chunks.
    fn chunks(&self) -> Result<(u32, u32), TermsError> {
        let name = self.name.len();
        if name == 0 || name > MAX_NAME || self.name.chars().any(char::is_control) {
            return Err(TermsError::Name);
        }
        let chunks = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        let min = self.min.get().div_ceil(TAGS_OF_CHUNK.get());
        let max = self.max.get() / TAGS_OF_CHUNK.get();
        if max == 0 {
            return Err(TermsError::Nothing(self.max));
        }
        if min > max {
            return Err(TermsError::Limits { min: tags_of(min), max: tags_of(max) });
        }
        Ok((chunks(min), chunks(max)))
    }
}

/// One lease, in chunks.
#[derive(Debug)]
pub(crate) struct Lease {
    pub id: LeaseId,
    pub name: String,
    pub min: u32,
    pub max: u32,
    /// Slots that count as its own: reserved, being reserved, being freed.
    pub held: u32,
    /// Slots that requests under way will still take.
    pub claimed: u32,
    /// Calls of the supply under way for it, and the closing itself.
    pub moving: u32,
    /// It is being closed: its id is unknown.
    pub closing: bool,
}

impl Lease {
    pub(crate) fn new(terms: LeaseTerms) -> Result<Self, TermsError> {
        let (min, max) = terms.chunks()?;
        let id = LeaseId { index: 0, generation: 0 };
        let name = terms.name;
        Ok(Self { id, name, min, max, held: 0, claimed: 0, moving: 0, closing: false })
    }

    /// Slots beyond those held that no other lease may have.
    #[inline]
    pub(crate) fn aside(&self) -> u32 {
        self.aside_with(0)
    }

    /// The same if requests under way were to take so many more.
    #[inline]
    fn aside_with(&self, more: u32) -> u32 {
        match self.closing {
            true => 0,
            false => self.min.saturating_sub(self.held).max(self.claimed.saturating_add(more)),
        }
    }

    /// Slots that a request for so many chunks needs beside those that are set aside for this lease.
    pub(crate) fn growth(&self, chunks: u32) -> u32 {
        self.aside_with(chunks) - self.aside()
    }

    /// Slots above its minimum.
    pub(crate) fn above_min(&self) -> u32 {
        self.held.saturating_sub(self.min)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { min: self.min, max: self.max }
    }
}

/// All leases of a pool.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    entries: Vec<Entry>,
    vacant: Vec<u32>,
}

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    lease: Option<Lease>,
}

impl Leases {
    /// Adds a lease, unless there are [`MAX_LEASES`].
    pub(crate) fn add(&mut self, mut lease: Lease) -> Option<LeaseId> {
        let index = match self.vacant.pop() {
            Some(index) => index,
            None if self.entries.len() < MAX_LEASES as usize => {
                self.entries.push(Entry::default());
                self.entries.len() as u32 - 1
            }
            None => return None,
        };
        let place = self.entries.get_mut(index as usize)?;
        lease.id = LeaseId { index, generation: place.generation };
        Some(place.lease.insert(lease).id)
    }

    /// The index of an open lease.
    #[inline]
    pub(crate) fn find(&self, id: LeaseId) -> Option<u32> {
        let entry = self.entries.get(id.index as usize)?;
        (entry.generation == id.generation && entry.lease.is_some()).then_some(id.index)
    }

    /// An open lease.
    #[inline(always)]
    pub(crate) fn open(&mut self, id: LeaseId) -> Option<&mut Lease> {
        let entry = self.entries.get_mut(id.index as usize)?;
        entry.lease.as_mut().filter(|_| entry.generation == id.generation)
    }

    /// The lease at an index, open or closing.
    pub(crate) fn get(&self, index: u32) -> Option<&Lease> {
        self.entries.get(index as usize)?.lease.as_ref()
    }

    /// The lease at an index, open or closing.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Lease> {
        self.entries.get_mut(index as usize)?.lease.as_mut()
    }

    /// All leases, those that are being closed among them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.entries.iter().filter_map(|entry| entry.lease.as_ref())
    }

    /// Makes a lease's id unknown; the lease stays until it is removed.
    pub(crate) fn forget_id(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.generation = entry.generation.saturating_add(1);
        }
    }

    /// Removes a lease that is closed.
    pub(crate) fn remove(&mut self, index: u32) {
        let Some(place) = self.entries.get_mut(index as usize) else { return };
        if place.lease.take().is_some() && place.generation != u32::MAX {
            // At the last generation the index stays unused: an id is never given twice.
            self.vacant.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(name: &str, min: Bytes, max: Bytes) -> LeaseTerms {
        LeaseTerms { name: name.to_owned(), min, max }
    }

    #[test]
    fn a_minimum_is_rounded_up_and_a_maximum_down() {
        let lease = Lease::new(terms("vm", Bytes::new(1), Bytes::kib(200)));

        assert!(lease.is_ok_and(|lease| (lease.min, lease.max) == (1, 3)));
    }

    #[test]
    fn impossible_terms_are_refused() {
        let all = Bytes::MAX;
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["", "a\nb", "\u{1b}[2J", &long] {
            assert_eq!(Lease::new(terms(name, Bytes::ZERO, all)).err(), Some(TermsError::Name));
        }
        let too_little = Lease::new(terms("vm", Bytes::ZERO, Bytes::kib(63))).err();
        assert_eq!(too_little, Some(TermsError::Nothing(Bytes::kib(63))));
        let limits = Lease::new(terms("vm", Bytes::kib(65), Bytes::kib(64))).err();
        assert_eq!(limits, Some(TermsError::Limits { min: Bytes::kib(128), max: Bytes::kib(64) }));
        assert!(Lease::new(terms("vm", Bytes::gib(1), all)).is_ok());
    }

    #[test]
    fn an_id_is_unknown_once_its_lease_is_gone() {
        let mut leases = Leases::default();
        let lease = || Lease::new(terms("vm", Bytes::ZERO, Bytes::MAX)).ok();
        let first = lease().and_then(|lease| leases.add(lease));
        let index = first.and_then(|id| leases.find(id));

        leases.forget_id(index.unwrap_or_default());
        let closing = first.and_then(|id| leases.find(id));
        leases.remove(index.unwrap_or_default());
        let second = lease().and_then(|lease| leases.add(lease));

        assert_eq!(index, Some(0));
        assert_eq!(closing, None);
        assert_eq!(first.and_then(|id| leases.find(id)), None);
        assert_eq!(second.and_then(|id| leases.find(id)), index);
    }

    #[test]
    fn there_are_only_so_many() {
        let mut leases = Leases::default();
        let mut add = || leases.add(Lease::new(terms("vm", Bytes::ZERO, Bytes::MAX)).ok()?);
        for _ in 0..MAX_LEASES {
            assert!(add().is_some());
        }

        assert_eq!(add(), None);
    }
}
