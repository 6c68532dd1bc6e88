#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

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
struct Fake(RefCell<Vec<Page>>);

impl Fake {
    fn of(extents: &[Range<u64>]) -> Self {
        let page = |at: usize| {
            let inside = extents.iter().any(|extent| extent.contains(&(at as u64 * PAGE)));
            if inside { Page::Template } else { Page::Anonymous(0) }
        };
        Self(RefCell::new((0..PAGES).map(page).collect()))
    }

    fn each(&self, part: &Range<u64>, change: impl Fn(&mut Page)) {
        assert!(
            !part.is_empty() && part.start.is_multiple_of(PAGE) && part.end.is_multiple_of(PAGE)
        );
        let pages = (part.start / PAGE) as usize..(part.end / PAGE) as usize;
        self.0.borrow_mut()[pages].iter_mut().for_each(change);
    }

    fn write(&self, page: usize, byte: u8) {
        let written = match self.0.borrow()[page] {
            Page::Anonymous(_) => Page::Anonymous(byte),
            Page::Template | Page::Copy(_) => Page::Copy(byte),
        };
        self.0.borrow_mut()[page] = written;
    }
}

impl Overlay for Fake {
    fn replace(&self, part: &Range<u64>) -> io::Result<()> {
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
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..PAGES, 1u8..).prop_map(|(page, byte)| Step::Write(page, byte)),
        (0..PAGES, 1..=PAGES).prop_map(|(first, count)| Step::Discard(first, count)),
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
        left in prop_oneof![Just(MOST_OVERLAYS), 0usize..6, FOR_CHUNKS..FOR_CHUNKS + 4],
    ) {
        let memory = Fake::of(&extents);
        let mut parts = TemplateParts::new(&extents);
        parts.overlays = MOST_OVERLAYS - left;
        let mut model: Vec<u8> = memory.0.borrow().iter().map(|page| page.contents()).collect();

        for step in steps {
            match step {
                Step::Write(page, byte) => {
                    memory.write(page, byte);
                    model[page] = byte;
                }
                Step::Discard(first, count) => {
                    let end = (first + count).min(PAGES);
                    let range = first as u64 * PAGE..end as u64 * PAGE;
                    let copies = |memory: &Fake| memory.0.borrow()[first..end].iter()
                        .filter(|page| matches!(page, Page::Copy(_))).count() as u64;
                    let gone = parts.discard(&range, &memory).unwrap();
                    model[first..end].fill(0);
                    prop_assert_eq!(gone.get() + copies(&memory) * PAGE, range.end - range.start);
                }
            }
            let found: Vec<u8> = memory.0.borrow().iter().map(|page| page.contents()).collect();
            prop_assert_eq!(&found, &model);
            // The parts are the pages that are not anonymous.
            for (part, is_template) in parts.pieces(&(0..PAGES as u64 * PAGE)) {
                for page in (part.start / PAGE)..(part.end / PAGE) {
                    let anonymous = matches!(memory.0.borrow()[page as usize], Page::Anonymous(_));
                    prop_assert_eq!(anonymous, !is_template);
                }
            }
            prop_assert!(parts.overlays <= MOST_OVERLAYS);
        }
    }
}

#[test]
fn single_pages_leave_overlays_for_whole_chunks() {
    let extent = 0..PAGES as u64 * PAGE;
    let memory = Fake::of(std::slice::from_ref(&extent));
    let mut parts = TemplateParts::new(std::slice::from_ref(&extent));
    parts.overlays = MOST_OVERLAYS - FOR_CHUNKS;

    assert_eq!(parts.discard(&(PAGE..2 * PAGE), &memory).unwrap(), Bytes::ZERO);
    assert_eq!(memory.0.borrow()[1], Page::Copy(0));
    assert_eq!(parts.discard(&(0..CHUNK.get()), &memory).unwrap(), CHUNK);
    assert_eq!(memory.0.borrow()[1], Page::Anonymous(0));
    assert_eq!(parts.size().get(), extent.end - CHUNK.get());
}

#[test]
fn what_the_host_refuses_stays_the_templates() {
    struct Refusing;
    impl Overlay for Refusing {
        fn replace(&self, _: &Range<u64>) -> io::Result<()> {
            Err(io::ErrorKind::OutOfMemory.into())
        }
        fn clear(&self, _: &Range<u64>) -> io::Result<()> {
            Ok(())
        }
        fn drop_pages(&self, _: &Range<u64>) -> io::Result<()> {
            Ok(())
        }
    }
    let extent = 0..CHUNK.get();
    let mut parts = TemplateParts::new(std::slice::from_ref(&extent));

    assert!(parts.discard(&extent, &Refusing).is_err());

    assert_eq!(parts.pieces(&extent), [(extent, true)]);
}
