//! The map of a chunk: which of its pages have data, and their tags.
//!
//! # Format
//! Extents that cover the pages of a chunk in order. Each begins with three bytes:
//!
//! | bits | what |
//! |---|---|
//! | 0, 1 | contents: 0 a hole, 1 zero data with tags, 2 data, 3 unchanged (diffs only) |
//! | 2, 3 | tags: 0 all zero, 1 one for all, 2 runs, 3 packed |
//! | 4 to 7 | the one tag for all, not zero; otherwise zero |
//! | 8 to 23 | number of pages, less one |
//!
//! After *runs* follow their length (4 bytes) and the runs of all the extent's tags, after *packed* the tags, two a
//! byte; see [`arch::mte::codec`]. A hole and an unchanged page have no tags here, zero data has.

use std::ops::Range;

use arch::mte::codec;
use arch::mte::granule::{Tag, tag_storage_for};
use arch::units::Bytes;

use super::super::format::Fields;
use super::{About, pages_per_chunk};

/// Of an extent, before its tags.
const EXTENT: usize = 3;
/// The length of runs.
const LENGTH: usize = 4;

/// How long the tags of a page are, packed.
pub(in super::super) fn packed_page(page_size: Bytes) -> usize {
    tag_storage_for(page_size).get() as usize
}

/// How long a map can be: an extent for each page, with tags that take no more than packed.
pub(super) fn longest(page_size: Bytes) -> usize {
    pages_per_chunk(page_size) * (EXTENT + LENGTH + packed_page(page_size))
}

/// What a page has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) enum Contents {
    /// Zero data and zero tags.
    Hole,
    /// Zero data, and tags that are not all zero.
    Zero,
    /// Data, and tags of any kind.
    Data,
    /// What it has in the base of a diff.
    Unchanged,
}

/// The tags of pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) enum Tags<'a> {
    /// All zero.
    Zero,
    /// All this one, which is not zero.
    One(Tag),
    /// Two a byte.
    Packed(&'a [u8]),
}

impl<'a> Tags<'a> {
    /// Tags, two a byte.
    pub(in super::super) fn of(packed: &'a [u8]) -> Self {
        let Some((&first, rest)) = packed.split_first() else { return Self::Zero };
        // Most pages that are not of one tag differ soon.
        if first >> 4 != first & 0xf || !all(rest, first) {
            return Self::Packed(packed);
        }
        match Tag::new(first & 0xf) {
            Some(tag) if tag != Tag::ZERO => Self::One(tag),
            _ => Self::Zero,
        }
    }
}

/// Whether all bytes are this one.
fn all(bytes: &[u8], byte: u8) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| *word == [byte; 8]) && rest.iter().all(|other| *other == byte)
}

/// How tags are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    Zero = 0,
    One = 1,
    Runs = 2,
    Packed = 3,
}

/// The first byte of an extent: contents, form and tag.
fn kind(contents: Contents, form: Form, tag: Tag) -> u8 {
    let contents = match contents {
        Contents::Hole => 0,
        Contents::Zero => 1,
        Contents::Data => 2,
        Contents::Unchanged => 3,
    };
    contents | (form as u8) << 2 | tag.get() << 4
}

/// Writes a map, page by page.
#[derive(Debug, Default)]
pub(in super::super) struct MapWriter {
    bytes: Vec<u8>,
    /// The extent that is not finished.
    kind: u8,
    pages: u16,
    tags: Vec<u8>,
    /// The runs of one page.
    runs: Vec<u8>,
}

impl MapWriter {
    /// Adds a page. One without tags has [`Tags::Zero`].
    pub(in super::super) fn push(&mut self, contents: Contents, tags: Tags<'_>) {
        match tags {
            Tags::Zero if contents == Contents::Zero => {
                self.extend(Contents::Hole, Form::Zero, Tag::ZERO)
            }
            Tags::Zero => self.extend(contents, Form::Zero, Tag::ZERO),
            Tags::One(tag) => self.extend(contents, Form::One, tag),
            Tags::Packed(packed) => {
                self.runs.clear();
                if codec::packed_to_runs(packed, packed.len() - LENGTH, &mut self.runs) {
                    self.extend(contents, Form::Runs, Tag::ZERO);
                    self.tags.extend_from_slice(&self.runs);
                } else {
                    self.extend(contents, Form::Packed, Tag::ZERO);
                    self.tags.extend_from_slice(packed);
                }
            }
        }
    }

    /// Adds a page to the extent, or begins another.
    fn extend(&mut self, contents: Contents, form: Form, tag: Tag) {
        let kind = kind(contents, form, tag);
        if self.pages > 0 && kind != self.kind {
            self.end();
        }
        self.kind = kind;
        self.pages += 1;
    }

    fn end(&mut self) {
        let Some(last) = self.pages.checked_sub(1) else { return };
        self.bytes.push(self.kind);
        self.bytes.extend(last.to_le_bytes());
        if self.kind >> 2 & 3 == Form::Runs as u8 {
            self.bytes.extend((self.tags.len() as u32).to_le_bytes());
        }
        self.bytes.append(&mut self.tags);
        self.pages = 0;
    }

    /// The map.
    ///
    /// # Errors
    /// When it needs none: all pages are holes, or all are unchanged.
    pub(in super::super) fn finish(&mut self) -> Result<&[u8], Contents> {
        self.end();
        for contents in [Contents::Hole, Contents::Unchanged] {
            let only = kind(contents, Form::Zero, Tag::ZERO);
            if self.bytes.len() == EXTENT && self.bytes.first() == Some(&only) {
                return Err(contents);
            }
        }
        Ok(&self.bytes)
    }

    /// Begins another map.
    pub(in super::super) fn clear(&mut self) {
        self.bytes.clear();
        self.tags.clear();
        self.pages = 0;
    }
}

/// Pages next to each other that have the same contents and tags of the same form.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Extent {
    pages: Range<usize>,
    contents: Contents,
    form: Form,
    tag: Tag,
    /// Where the tags of the first page are among [`Map::packed`].
    packed: usize,
}

/// A map, read and checked.
#[derive(Debug)]
pub(in super::super) struct Map {
    extents: Vec<Extent>,
    /// The tags of those extents that are neither of one tag nor of none.
    packed: Vec<u8>,
    /// Of a page.
    packed_page: usize,
}

impl Map {
    /// Reads a map of a chunk. Everything of it is checked: the number of pages, the runs, and that what is there may
    /// be in such a file.
    pub(super) fn decode(bytes: &[u8], about: &About, data_pages: u32) -> Result<Self, String> {
        let packed_page = packed_page(about.page_size);
        let pages = pages_per_chunk(about.page_size);
        let mut map = Self { extents: Vec::new(), packed: Vec::new(), packed_page };
        let mut fields = Fields(bytes);
        let mut page = 0;
        while !fields.0.is_empty() {
            let extent = map.extent(&mut fields, page..pages)?;
            page = extent.pages.end;
            if extent.contents == Contents::Unchanged && about.base.is_none() {
                return Err("a page is unchanged, but it is no diff".to_owned());
            }
            if extent.form != Form::Zero && !about.tagged {
                return Err("a page has tags, but memory has none".to_owned());
            }
            map.extents.push(extent);
        }
        if page != pages {
            return Err(format!("it covers {page} of {pages} pages"));
        }
        let found: usize = map.runs(Contents::Data).map(|run| run.len()).sum();
        if found != data_pages as usize {
            return Err(format!("it has {found} pages with data, and the table {data_pages}"));
        }
        Ok(map)
    }

    /// Takes the next extent, of at most these pages.
    fn extent(&mut self, fields: &mut Fields<'_>, within: Range<usize>) -> Result<Extent, String> {
        let short = || "it is cut short".to_owned();
        let (kind, last) = (fields.u8().ok_or_else(short)?, fields.u16().ok_or_else(short)?);
        let count = usize::from(last) + 1;
        if count > within.len() {
            return Err("it covers more pages than a chunk has".to_owned());
        }
        let contents = match kind & 3 {
            0 => Contents::Hole,
            1 => Contents::Zero,
            2 => Contents::Data,
            _ => Contents::Unchanged,
        };
        let packed = self.packed.len();
        let length = count * self.packed_page;
        let form = match kind >> 2 & 3 {
            0 => Form::Zero,
            1 => Form::One,
            2 => {
                let runs = fields.u32().and_then(|length| fields.bytes(length as usize));
                self.packed.resize(packed + length, 0);
                codec::packed_from_runs(runs.ok_or_else(short)?, &mut self.packed[packed..])
                    .map_err(|error| error.to_string())?;
                Form::Runs
            }
            _ => {
                self.packed.extend_from_slice(fields.bytes(length).ok_or_else(short)?);
                Form::Packed
            }
        };
        let tag = Tag::new(kind >> 4).unwrap_or_default();
        let has_tags = form != Form::Zero;
        let may_have = matches!(contents, Contents::Zero | Contents::Data);
        let must_have = contents == Contents::Zero;
        if (form == Form::One) != (tag != Tag::ZERO)
            || has_tags && !may_have
            || !has_tags && must_have
        {
            return Err("an extent has tags that it cannot have".to_owned());
        }
        Ok(Extent { pages: within.start..within.start + count, contents, form, tag, packed })
    }

    /// The pages with these contents, as ranges in order.
    pub(in super::super) fn runs(&self, contents: Contents) -> impl Iterator<Item = Range<usize>> {
        let extents = self.extents.iter().filter(move |extent| extent.contents == contents);
        extents.map(|extent| extent.pages.clone())
    }

    /// The tags that are not zero, by ranges of pages.
    pub(super) fn tags(&self) -> impl Iterator<Item = (Range<usize>, Tags<'_>)> {
        let extents = self.extents.iter().filter(|extent| extent.form != Form::Zero);
        extents.map(|extent| (extent.pages.clone(), self.of(extent, extent.pages.clone())))
    }

    /// Each page, in order.
    pub(in super::super) fn pages(&self) -> impl Iterator<Item = (Contents, Tags<'_>)> {
        self.extents.iter().flat_map(move |extent| {
            extent.pages.clone().map(move |page| (extent.contents, self.of(extent, page..page + 1)))
        })
    }

    /// The tags of some pages of an extent.
    fn of(&self, extent: &Extent, pages: Range<usize>) -> Tags<'_> {
        match extent.form {
            Form::Zero => Tags::Zero,
            Form::One => Tags::One(extent.tag),
            Form::Runs | Form::Packed => {
                let start = extent.packed + (pages.start - extent.pages.start) * self.packed_page;
                let end = start + pages.len() * self.packed_page;
                Tags::Packed(self.packed.get(start..end).unwrap_or_default())
            }
        }
    }
}
