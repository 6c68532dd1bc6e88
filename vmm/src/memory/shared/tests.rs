#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;

/// So many overlays are kept for whole chunks.
const KEPT: usize = MOST_OVERLAYS / FOR_CHUNKS;

/// Small pages, so that a model of each is quick.
const PAGE: u64 = CHUNK.get() / 4;
const PAGES: usize = 40;

/// What a page is in a fake mapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Page {
    /// The template's, not written since.
    Template,
    /// A private copy of the template's page, with what the guest wrote.
    Copy(u8),
    /// Anonymous memory.
    Anonymous(u8),
}

impl Page {
    /// What the guest reads.
    fn contents(self) -> u8 {
        match self {
            Self::Template => TEMPLATE,
            Self::Copy(byte) | Self::Anonymous(byte) => byte,
        }
    }
}

/// What all of the template reads.
const TEMPLATE: u8 = 0xee;

/// A mapping that does as Linux does.
struct Fake {
    pages: RefCell<Vec<Page>>,
    /// Whether there may be no further mapping.
    full: Cell<bool>,
}

impl Fake {
    fn of(extents: &[Range<u64>]) -> Self {
        let page = |at: usize| {
            let inside = extents.iter().any(|extent| extent.contains(&(at as u64 * PAGE)));
            if inside { Page::Template } else { Page::Anonymous(0) }
        };
        Self { pages: RefCell::new((0..PAGES).map(page).collect()), full: Cell::new(false) }
    }

    fn each(&self, part: &Range<u64>, change: impl Fn(&mut Page)) {
        assert!(
            !part.is_empty() && part.start.is_multiple_of(PAGE) && part.end.is_multiple_of(PAGE)
        );
        let pages = (part.start / PAGE) as usize..(part.end / PAGE) as usize;
        self.pages.borrow_mut()[pages].iter_mut().for_each(change);
    }

    fn write(&self, page: usize, byte: u8) {
        let written = match self.pages.borrow()[page] {
            Page::Anonymous(_) => Page::Anonymous(byte),
            Page::Template | Page::Copy(_) => Page::Copy(byte),
        };
        self.pages.borrow_mut()[page] = written;
    }
}

impl Overlay for Fake {
    fn replace(&self, part: &Range<u64>) -> io::Result<()> {
        if self.full.get() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.each(part, |page| *page = Page::Anonymous(0));
        Ok(())
    }

    fn clear(&self, part: &Range<u64>) -> io::Result<()> {
        self.each(part, |page| {
            assert!(!matches!(page, Page::Anonymous(_)), "there are pages to give back");
            *page = Page::Copy(0);
        });
        Ok(())
    }

    fn drop_pages(&self, part: &Range<u64>) -> io::Result<()> {
        self.each(part, |page| {
            *page = match page {
                Page::Anonymous(_) => Page::Anonymous(0),
                // MADV_DONTNEED on a private mapping of a file.
                Page::Template | Page::Copy(_) => Page::Template,
            };
        });
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u8),
    Discard(usize, usize),
    /// Whether the host refuses mappings from now on.
    Full(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..PAGES, 1u8..).prop_map(|(page, byte)| Step::Write(page, byte)),
        (0..PAGES, 1..=PAGES).prop_map(|(first, count)| Step::Discard(first, count)),
        any::<bool>().prop_map(Step::Full),
    ]
}

/// Extents of whole chunks, apart from one another.
fn extents() -> impl Strategy<Value = Vec<Range<u64>>> {
    prop::collection::vec(any::<bool>(), PAGES / 4).prop_map(|chunks| {
        let mut extents: Vec<Range<u64>> = Vec::new();
        for (chunk, _) in chunks.iter().enumerate().filter(|(_, inside)| **inside) {
            let part = chunk as u64 * CHUNK.get()..(chunk as u64 + 1) * CHUNK.get();
            match extents.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => extents.push(part),
            }
        }
        extents
    })
}

proptest! {
    /// Whatever is given back reads zero until the guest writes it, and all else stays, however few overlays are left.
    #[test]
    fn what_is_given_back_never_shows_the_template(
        extents in extents(),
        steps in prop::collection::vec(step(), 0..40),
        left in prop_oneof![Just(MOST_OVERLAYS), 0usize..6, KEPT..KEPT + 4],
    ) {
        let memory = Fake::of(&extents);
        let parts = TemplateParts::new(&extents, u64::MAX);
        parts.lock().overlays = MOST_OVERLAYS - left;
        let mut model: Vec<u8> = memory.pages.borrow().iter().map(|page| page.contents()).collect();

        for step in steps {
            match step {
                Step::Write(page, byte) => {
                    memory.write(page, byte);
                    model[page] = byte;
                }
                Step::Full(full) => memory.full.set(full),
                Step::Discard(first, count) => {
                    let end = (first + count).min(PAGES);
                    let range = first as u64 * PAGE..end as u64 * PAGE;
                    let copies = |memory: &Fake| memory.pages.borrow()[first..end].iter()
                        .filter(|page| matches!(page, Page::Copy(_))).count() as u64;
                    let gone = parts.discard(&range, &memory).unwrap();
                    model[first..end].fill(0);
                    prop_assert_eq!(gone.get() + copies(&memory) * PAGE, range.end - range.start);
                }
            }
            let found: Vec<u8> = memory.pages.borrow().iter().map(|page| page.contents()).collect();
            prop_assert_eq!(&found, &model);
            // The parts are the pages that are not anonymous.
            for (part, is_template) in parts.pieces(&(0..PAGES as u64 * PAGE)) {
                for page in (part.start / PAGE)..(part.end / PAGE) {
                    let anonymous = matches!(memory.pages.borrow()[page as usize], Page::Anonymous(_));
                    prop_assert_eq!(anonymous, !is_template);
                }
            }
            prop_assert!(parts.lock().overlays <= MOST_OVERLAYS);
        }
    }
}

#[test]
fn single_pages_leave_overlays_for_whole_chunks() {
    let extent = 0..PAGES as u64 * PAGE;
    let memory = Fake::of(std::slice::from_ref(&extent));
    let parts = TemplateParts::new(std::slice::from_ref(&extent), u64::MAX);
    parts.lock().overlays = MOST_OVERLAYS - KEPT;

    assert_eq!(parts.discard(&(PAGE..2 * PAGE), &memory).unwrap(), Bytes::ZERO);
    assert_eq!(memory.pages.borrow()[1], Page::Copy(0));
    assert_eq!(parts.discard(&(0..CHUNK.get()), &memory).unwrap(), CHUNK);
    assert_eq!(memory.pages.borrow()[1], Page::Anonymous(0));
    assert_eq!(parts.size().get(), extent.end - CHUNK.get());
}

#[test]
fn what_the_host_does_not_map_is_cleared() {
    let extent = 0..2 * CHUNK.get();
    let memory = Fake::of(std::slice::from_ref(&extent));
    let parts = TemplateParts::new(std::slice::from_ref(&extent), u64::MAX);
    memory.full.set(true);

    assert_eq!(parts.discard(&(0..CHUNK.get()), &memory).unwrap(), Bytes::ZERO);

    assert_eq!(memory.pages.borrow()[..5].iter().map(|page| page.contents()).max(), Some(TEMPLATE));
    assert!(memory.pages.borrow()[..4].iter().all(|page| *page == Page::Copy(0)));
    assert_eq!(parts.pieces(&extent), [(extent.clone(), true)]);
    // An overlay that was not had is there for the next.
    assert_eq!(parts.lock().overlays, 0);
    memory.full.set(false);
    assert_eq!(parts.discard(&(0..CHUNK.get()), &memory).unwrap(), CHUNK);
    assert_eq!(parts.size(), CHUNK);
}

#[test]
fn a_process_keeps_mappings_for_itself() {
    let extents: Vec<_> =
        (0..10).map(|at| 2 * at * CHUNK.get()..(2 * at + 1) * CHUNK.get()).collect();
    let most = |mappings| TemplateParts::new(&extents, mappings).most;

    assert_eq!([most(0), most(OF_THE_PROCESS + 21)], [0, 0]);
    assert_eq!(most(OF_THE_PROCESS + 21 + 200), 100);
    assert_eq!(most(65530), MOST_OVERLAYS);
}

/// Another thread that asks for the parts waits for no page.
#[test]
fn memory_changes_without_the_lock() {
    struct Watched<'a>(&'a TemplateParts);
    impl Watched<'_> {
        fn is_free(&self) -> io::Result<()> {
            assert!(self.0.parts.try_lock().is_ok());
            Ok(())
        }
    }
    impl Overlay for Watched<'_> {
        fn replace(&self, part: &Range<u64>) -> io::Result<()> {
            // Another gives the same back meanwhile.
            self.0.lock().remove(part);
            self.is_free()
        }
        fn clear(&self, _: &Range<u64>) -> io::Result<()> {
            self.is_free()
        }
        fn drop_pages(&self, _: &Range<u64>) -> io::Result<()> {
            self.is_free()
        }
    }
    let extents = [0..CHUNK.get(), 2 * CHUNK.get()..4 * CHUNK.get()];
    let parts = TemplateParts::new(&extents, u64::MAX);
    let memory = Watched(&parts);

    parts.discard(&(PAGE..3 * CHUNK.get()), &memory).unwrap();
    assert_eq!(parts.size().get(), PAGE + CHUNK.get());
    parts.lock().overlays = MOST_OVERLAYS;
    assert_eq!(
        parts.discard(&(0..4 * CHUNK.get()), &memory).unwrap().get(),
        3 * CHUNK.get() - PAGE
    );
}
