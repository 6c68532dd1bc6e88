//! Memory that is held, and that knows what should be in it.

use crate::region::{GRANULE, Region};
use crate::system;

/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// The tags that granules get in turn: all but 0, which fresh memory has.
const TAGS: usize = 15;
/// The smallest page of the architecture.
const SMALL_PAGE: usize = 4096;

/// Memory with a known content.
#[derive(Debug)]
pub(super) struct Held {
    region: Region,
    tags: bool,
    fresh: bool,
}

impl Held {
    /// `size` bytes, each page of which has been written to.
    ///
    /// # Errors
    /// When there is not so much.
    pub(super) fn touched(size: usize) -> Result<Self, String> {
        let region = region(size, false)?;
        for page in pages(&region) {
            region.write_word(page, pattern(page));
        }
        Ok(Self { region, tags: false, fresh: true })
    }

    /// `size` bytes whose data and tags are read first and then set, all of them.
    ///
    /// # Errors
    /// When there is not so much, or no MTE.
    pub(super) fn tagged(size: usize) -> Result<Self, String> {
        let region = region(size, true)?;
        // A write first: a page that is only read is the kernel's one page of zeros.
        for page in pages(&region) {
            region.write_word(page, 0);
        }
        let zero = words(&region).all(|offset| region.read_word(offset) == 0);
        let untagged = granules(&region).all(|offset| region.tag_at(offset) == 0);
        for offset in granules(&region) {
            region.tag(offset, GRANULE, tag(offset));
        }
        for page in pages(&region) {
            region.write_word(page, pattern(page));
        }
        Ok(Self { region, tags: true, fresh: zero && untagged })
    }

    /// Whether the memory was zero, and its tags were, when it came.
    pub(super) fn fresh(&self) -> bool {
        self.fresh
    }

    /// How many pages and granules are not as they were left.
    pub(super) fn wrong(&self) -> usize {
        let is_wrong = |page: &usize| self.region.read_word(*page) != pattern(*page);
        let data = pages(&self.region).filter(is_wrong).count();
        let tags = match self.tags {
            true => granules(&self.region)
                .filter(|offset| self.region.tag_at(*offset) != tag(*offset))
                .count(),
            false => 0,
        };
        data.saturating_add(tags)
    }
}

fn region(size: usize, tagged: bool) -> Result<Region, String> {
    if tagged && !crate::machine::has_mte() {
        return Err("this guest has no MTE".to_owned());
    }
    Region::new(size, tagged).map_err(|error| format!("no {size} bytes: {error}"))
}

fn pages(region: &Region) -> impl Iterator<Item = usize> {
    (0..region.size()).step_by(system::page_size())
}

fn words(region: &Region) -> impl Iterator<Item = usize> {
    (0..region.size()).step_by(WORD)
}

fn granules(region: &Region) -> impl Iterator<Item = usize> {
    (0..region.size()).step_by(GRANULE)
}

/// What the first word of the page at `offset` holds: never zero, and another for each page.
fn pattern(offset: usize) -> u64 {
    (offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The tag of the granule at `offset`: neighbours differ, and so do pages.
fn tag(offset: usize) -> u8 {
    let granule = offset / GRANULE;
    let page = offset / SMALL_PAGE;
    // Below 16.
    (granule.wrapping_add(page) % TAGS + 1) as u8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_touched_is_as_it_was_left_until_it_is_changed() {
        let held = Held::touched(64 << 10).unwrap();
        assert_eq!(held.wrong(), 0);

        held.region.write_word(system::page_size(), 0);

        assert_eq!(held.wrong(), 1);
    }

    #[test]
    fn patterns_and_tags_are_never_those_of_fresh_memory() {
        for offset in (0..1 << 20).step_by(GRANULE) {
            assert!(pattern(offset) != 0);
            assert!((1..16).contains(&tag(offset)));
            assert_ne!(tag(offset), tag(offset + GRANULE));
        }
    }
}
