//! Which files a boot image is of, and the one message that its holder sends.
//!
//! A file is known by where it is, its length and the time of its last change (`st_ctime`), which no program can set.
//!
//! # Format
//! 128 bytes, all numbers little-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | flags: 1 with an initrd |
//! | 16 | 8 | size of the boot image's file |
//! | 24 | 8 | length of the kernel's Image, which is at its start |
//! | 32 | 8 | where the initrd begins |
//! | 40 | 8 | length of the initrd, 0 without one |
//! | 48 | 40 | kernel: device, inode, length, and seconds and nanoseconds of the last change |
//! | 88 | 40 | initrd: the same; zero without one |

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use arch::units::Bytes;

use super::boot::BootError;
use crate::memory::{Parts, open_boot_file};
use crate::registry;

const MAGIC: [u8; 8] = *b"\x8fTESSBI\n";
const VERSION: u32 = 1;
const INITRD: u32 = 1;

/// How long the message is.
pub(super) const LENGTH: usize = 128;
/// What is before its numbers of 64 bits.
const HEAD: usize = 16;
/// How many of them there are.
const WORDS: usize = (LENGTH - HEAD) / 8;

/// The tick of the clock that file systems take their times from: a jiffy, at most 10 ms, and a margin. A file that
/// changes twice within one has the same time after both.
const TICK: Duration = Duration::from_millis(20);

/// The same where times have whole seconds: ext3, ext4 with inodes of 128 bytes.
const COARSE_TICK: Duration = Duration::from_millis(1020);

/// A file as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    length: u64,
    changed_s: u64,
    changed_ns: u64,
}

impl FileIdentity {
    fn of(path: &Path) -> Result<Self, BootError> {
        let file = open_boot_file(path)?;
        let read = |source: io::Error| BootError::Status { path: path.to_owned(), source };
        file.metadata().map(|status| Self::of_status(&status)).map_err(read)
    }

    fn of_status(status: &Metadata) -> Self {
        Self {
            device: status.dev(),
            inode: status.ino(),
            length: status.size(),
            changed_s: status.ctime() as u64,
            changed_ns: status.ctime_nsec() as u64,
        }
    }

    fn to_words(self) -> [u64; 5] {
        [self.device, self.inode, self.length, self.changed_s, self.changed_ns]
    }

    fn from_words([device, inode, length, changed_s, changed_ns]: [u64; 5]) -> Self {
        Self { device, inode, length, changed_s, changed_ns }
    }

    /// For how long it could still change and keep its time.
    fn freshness(self) -> Duration {
        let changed = Duration::new(self.changed_s, u32::try_from(self.changed_ns).unwrap_or(0));
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let tick = if self.changed_ns == 0 { COARSE_TICK } else { TICK };
        // A time that is yet to come is of another clock.
        since.checked_sub(changed).map_or(tick, |age| tick.saturating_sub(age))
    }
}

/// The files of a boot image as they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BootFiles {
    pub(super) kernel: FileIdentity,
    pub(super) initrd: Option<FileIdentity>,
}

impl BootFiles {
    /// Those at these paths.
    ///
    /// # Errors
    /// When they cannot be read, or are no files.
    pub(super) fn of(kernel: &Path, initrd: Option<&Path>) -> Result<Self, BootError> {
        let initrd = initrd.map(FileIdentity::of).transpose()?;
        Ok(Self { kernel: FileIdentity::of(kernel)?, initrd })
    }

    /// Waits until each further change gives them another time.
    pub(super) fn settle(&self) {
        let initrd = self.initrd.map_or(Duration::ZERO, FileIdentity::freshness);
        std::thread::sleep(self.kernel.freshness().max(initrd));
    }

    /// Where the holder of their boot image listens.
    ///
    /// # Errors
    /// When there is no place for such sockets.
    pub(super) fn socket(&self) -> Result<PathBuf, BootError> {
        let words = self.words();
        let bytes: Vec<u8> = words.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        let name = format!("boot-{:x}-{:08x}", self.kernel.inode, crc32fast::hash(&bytes));
        registry::templates().map(|folder| folder.join(name)).map_err(BootError::Place)
    }

    fn words(&self) -> [[u64; 5]; 2] {
        [self.kernel.to_words(), self.initrd.unwrap_or_default().to_words()]
    }
}

/// The message of a holder.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Message {
    pub(super) files: BootFiles,
    pub(super) parts: Parts,
}

impl Message {
    /// Its bytes.
    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let Parts { size, kernel, initrd_at, initrd } = self.parts;
        let flags = u32::from(initrd.is_some()) * INITRD;
        let parts = [size, kernel, initrd_at, initrd.unwrap_or(Bytes::ZERO)].map(Bytes::get);
        let words = parts.into_iter().chain(self.files.words().into_iter().flatten());
        let head = [&MAGIC[..], &VERSION.to_le_bytes(), &flags.to_le_bytes()].concat();
        let bytes = head.into_iter().chain(words.flat_map(u64::to_le_bytes));
        let mut message = [0; LENGTH];
        message.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        message
    }

    /// Reads a message. `None`: it is none of this version.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let message: &[u8; LENGTH] = message.try_into().ok()?;
        let field =
            |at: usize| message.get(at..)?.first_chunk::<4>().copied().map(u32::from_le_bytes);
        let flags = field(12)?;
        if !message.starts_with(&MAGIC) || field(8)? != VERSION || flags & !INITRD != 0 {
            return None;
        }
        let mut words = [0; WORDS];
        let places = message.get(HEAD..)?.as_chunks::<8>().0;
        words.iter_mut().zip(places).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        let [size, kernel, initrd_at, initrd, files @ ..] = words;
        let (kernel_file, initrd_file) = (*files.first_chunk()?, *files.last_chunk()?);
        let has_initrd = flags & INITRD != 0;
        if !has_initrd && (initrd != 0 || initrd_file != [0; 5]) {
            return None;
        }
        Some(Self {
            files: BootFiles {
                kernel: FileIdentity::from_words(kernel_file),
                initrd: has_initrd.then(|| FileIdentity::from_words(initrd_file)),
            },
            parts: Parts {
                size: Bytes::new(size),
                kernel: Bytes::new(kernel),
                initrd_at: Bytes::new(initrd_at),
                initrd: has_initrd.then(|| Bytes::new(initrd)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn message(initrd: bool) -> Message {
        let file = |inode| FileIdentity::from_words([1, inode, 3, 4, 5]);
        Message {
            files: BootFiles { kernel: file(2), initrd: initrd.then(|| file(7)) },
            parts: Parts {
                size: Bytes::mib(4),
                kernel: Bytes::kib(5),
                initrd_at: Bytes::mib(2),
                initrd: initrd.then(|| Bytes::kib(9)),
            },
        }
    }

    #[test]
    fn a_message_is_written_and_read() {
        for initrd in [true, false] {
            let message = message(initrd);
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn each_bit_matters() {
        for message in [message(true), message(false)] {
            for bit in 0..LENGTH * 8 {
                let mut bytes = message.encode();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Message::decode(&bytes), Some(message), "{bit}");
            }
        }
    }

    #[test]
    fn a_message_of_another_length_is_none() {
        let bytes = message(true).encode();
        for length in [0, 1, 16, LENGTH - 1] {
            assert_eq!(Message::decode(&bytes[..length]), None);
        }
        assert_eq!(Message::decode(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_file_whose_time_has_whole_seconds_is_fresh_for_one() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let fresh = |age: Duration, ns| {
            let changed = now.checked_sub(age).unwrap().as_secs();
            FileIdentity::from_words([1, 2, 3, changed, ns]).freshness()
        };

        assert!(fresh(Duration::ZERO, 0) > Duration::ZERO);
        assert_eq!(fresh(Duration::from_secs(5), 0), Duration::ZERO);
        assert_eq!(fresh(Duration::from_secs(2), 1), Duration::ZERO);
    }

    #[test]
    fn a_file_that_changes_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Image");
        std::fs::write(&path, b"one").unwrap();
        let files = || {
            let files = BootFiles::of(&path, None).unwrap();
            files.settle();
            files
        };
        let first = files();
        assert_eq!(files(), first);

        // Of the same length, in its place.
        std::fs::write(&path, b"two").unwrap();
        let second = files();
        let other = folder.path().join("other");
        std::fs::write(&other, b"two").unwrap();
        std::fs::rename(&other, &path).unwrap();

        let third = files();
        assert!(first != second && second != third && first != third);
    }
}
