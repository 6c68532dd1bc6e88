//! Headers of an archive: ustar, and before it a pax header for what does not fit (POSIX.1-2017, pax).

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::Error;
use crate::protocol::limits::MAX_PATH;

/// The longest pax header that is read: two paths and some numbers.
const MAX_EXTENSION: u64 = 3 * MAX_PATH as u64;
/// What a header holds of a path or of the target of a link.
const NAME: usize = 100;
/// A record is padded to it.
pub(super) const BLOCK: usize = 512;

/// A moment: seconds since 1970, nanoseconds.
pub(super) type Time = (i64, u32);

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink,
    /// Another name of a file that came before.
    Link,
}

/// One entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// Relative; empty for the tree itself.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Of a symbolic link, or the first name of a file.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) modified: Time,
    /// Of a file.
    pub(super) size: u64,
}

impl Entry {
    /// Writes its headers; its content is to follow.
    pub(super) fn write(&self, mut out: impl Write) -> io::Result<()> {
        // The tree itself is called so by tar(1).
        let path = if self.path.is_empty() { b"." } else { self.path.as_slice() };
        let mut extension = Vec::new();
        if path.len() > NAME {
            record(&mut extension, "path", path);
        }
        if self.link.len() > NAME {
            record(&mut extension, "linkpath", &self.link);
        }
        if self.modified.1 != 0 || self.modified.0 < 0 {
            record(&mut extension, "mtime", seconds(self.modified).as_bytes());
        }
        if !extension.is_empty() {
            let mut header = self.header(EntryType::XHeader, b"pax", &[]);
            header.set_size(extension.len() as u64);
            header.set_cksum();
            out.write_all(header.as_bytes())?;
            out.write_all(&extension)?;
            pad(&mut out, extension.len() as u64)?;
        }
        let kind = match self.kind {
            Kind::File => EntryType::Regular,
            Kind::Folder => EntryType::Directory,
            Kind::Symlink => EntryType::Symlink,
            Kind::Link => EntryType::Link,
        };
        let mut header = self.header(kind, path, &self.link);
        header.set_size(self.size);
        header.set_cksum();
        out.write_all(header.as_bytes())
    }

    fn header(&self, kind: EntryType, path: &[u8], link: &[u8]) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(self.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(self.modified.0).unwrap_or(0));
        let old = header.as_old_mut();
        fill(&mut old.name, path);
        fill(&mut old.linkname, link);
        header
    }

    /// Reads an entry from a header and what a pax header before it has said.
    pub(super) fn read(header: &Header, extension: Extension) -> Result<Self, Error> {
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Link,
            _ => return Err(Error::Archive("it has an entry that is no file, folder or link")),
        };
        let number = |value: io::Result<u64>| value.map_err(Error::Damaged);
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = header.link_name_bytes().map(|link| link.into_owned());
        Ok(Self {
            path: relative(&path)?,
            kind,
            link: extension.link.or(link).unwrap_or_default(),
            mode: header.mode().map_err(Error::Damaged)?,
            modified: match extension.modified {
                Some(modified) => modified,
                None => (i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX), 0),
            },
            size: number(header.entry_size())?,
        })
    }
}

/// What a pax header says of the entry that follows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    modified: Option<Time>,
}

impl Extension {
    /// Reads the content of a pax header. Keys that are not known are ignored.
    pub(super) fn read(content: impl Read, size: u64) -> Result<Self, Error> {
        if size > MAX_EXTENSION {
            return Err(Error::Archive("it has a longer header than is taken"));
        }
        let mut bytes = Vec::new();
        content.take(MAX_EXTENSION).read_to_end(&mut bytes).map_err(Error::from_stream)?;
        let (mut found, mut rest) = (Self::default(), bytes.as_slice());
        while !rest.is_empty() {
            let (key, value, next) = split_record(rest)
                .ok_or(Error::Archive("it has a header that is not understood"))?;
            match key {
                b"path" => found.path = Some(value.to_vec()),
                b"linkpath" => found.link = Some(value.to_vec()),
                b"mtime" => found.modified = time(value),
                b"size" => return Err(Error::Archive("it has a size of a form that is not taken")),
                _ => {}
            }
            rest = next;
        }
        Ok(found)
    }
}

/// Key and value of a record, and what follows it. By its length: a path may have a newline, at which
/// `tar::PaxExtensions` would split it.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
    let (record, next) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, next))
}

/// A path below the tree, with one slash between two names and none at the ends.
fn relative(path: &[u8]) -> Result<Vec<u8>, Error> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let path = path.strip_prefix(b"./").unwrap_or(path);
    Ok(if path == b"." { Vec::new() } else { path.to_vec() })
}

/// Zeros up to the next block.
pub(super) fn pad(mut out: impl Write, length: u64) -> io::Result<()> {
    let over = usize::try_from(length % BLOCK as u64).unwrap_or(0);
    match over {
        0 => Ok(()),
        over => out.write_all([0; BLOCK].get(over..).unwrap_or_default()),
    }
}

/// A record of a pax header: its own length, which counts itself, the key and the value.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A time as pax has it: a decimal fraction, which counts down from a negative number of seconds.
fn seconds((seconds, nanoseconds): Time) -> String {
    match nanoseconds {
        0 => seconds.to_string(),
        nanoseconds if seconds >= 0 => format!("{seconds}.{nanoseconds:09}"),
        // -1 s and 250 ms is -0.75 s.
        nanoseconds => {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000_u32.saturating_sub(nanoseconds))
        }
    }
}

fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    let seconds: i64 = whole.parse().ok()?;
    match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000_u32.checked_sub(nanoseconds)?)),
        _ => Some((seconds, nanoseconds)),
    }
}

fn fill(field: &mut [u8], bytes: &[u8]) {
    field.fill(0);
    for (target, byte) in field.iter_mut().zip(bytes) {
        *target = *byte;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The first entry of an archive.
    fn first(archive: &[u8]) -> Entry {
        let mut archive = tar::Archive::new(archive);
        let mut extension = Extension::default();
        for entry in archive.entries().unwrap().raw(true) {
            let entry = entry.unwrap();
            let header = entry.header().clone();
            if header.entry_type() != EntryType::XHeader {
                return Entry::read(&header, extension).unwrap();
            }
            let size = header.entry_size().unwrap();
            extension = Extension::read(entry, size).unwrap();
        }
        panic!("no entry");
    }

    proptest! {
        #[test]
        fn entries_survive(
            path in vec(1..=255_u8, 1..400),
            link in vec(1..=255_u8, 1..400),
            seconds in -10_000_000_000..10_000_000_000_i64,
            nanoseconds in prop_oneof![Just(0), 0..1_000_000_000_u32],
            mode in 0..0o1000_u32,
        ) {
            let path: Vec<u8> = path.into_iter().map(|byte| if byte == b'/' { b'x' } else { byte }).collect();
            prop_assume!(path != b"." && path != b"..");
            let entry = Entry { path, kind: Kind::Symlink, link, mode, modified: (seconds, nanoseconds), size: 0 };
            let mut archive = Vec::new();
            entry.write(&mut archive).unwrap();

            prop_assert_eq!(archive.len() % BLOCK, 0);
            prop_assert_eq!(first(&archive), entry);
        }

        #[test]
        fn any_extension_is_read_or_refused(bytes in vec(any::<u8>(), 0..300)) {
            let _ = Extension::read(&bytes[..], bytes.len() as u64);
        }
    }

    #[test]
    fn sizes_beyond_8_gib_survive() {
        let size = 9 << 30;
        let entry = Entry {
            path: b"a".into(),
            kind: Kind::File,
            link: Vec::new(),
            mode: 0o644,
            modified: (5, 0),
            size,
        };
        let mut archive = Vec::new();
        entry.write(&mut archive).unwrap();

        assert_eq!(
            Entry::read(tar::Header::from_byte_slice(&archive), Extension::default()).unwrap(),
            entry
        );
    }

    #[test]
    fn a_long_extension_is_refused_before_it_is_read() {
        assert!(matches!(Extension::read(io::repeat(0), 1 << 40), Err(Error::Archive(_))));
    }
}
