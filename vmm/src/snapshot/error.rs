//! What can be wrong with the files of a snapshot.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use arch::units::Bytes;
use thiserror::Error;

use super::id::SnapshotId;
use crate::exit_status::ExitStatus;

/// What is wrong with a file of a snapshot.
#[derive(Debug, Error)]
#[error("the snapshot's file {}", file.display())]
pub struct Error {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: Fault,
}

impl Error {
    pub(super) fn new(file: &Path, fault: impl Into<Fault>) -> Self {
        Self { file: file.to_owned(), fault: fault.into() }
    }

    /// The status that a process ends with that cannot use the file.
    pub fn status(&self) -> ExitStatus {
        match &self.fault {
            Fault::Open(source) => ExitStatus::for_input(source.kind()),
            Fault::Read(_) | Fault::GuestMemory(_) => ExitStatus::Io,
            Fault::Create(_) | Fault::Write(_) | Fault::NoSpace(_) => ExitStatus::CannotCreate,
            _ => ExitStatus::BadImage,
        }
    }
}

/// What is wrong, and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// It cannot be opened.
    #[error("it cannot be opened: check the path and its permissions")]
    Open(#[source] io::Error),
    /// It cannot be made.
    #[error("it cannot be made: check the directory and its permissions")]
    Create(#[source] io::Error),
    /// It cannot be read.
    #[error("it cannot be read: check the disk that it is on")]
    Read(#[source] io::Error),
    /// It cannot be written, and is not there.
    #[error("it cannot be written, and nothing is left of it: check the disk that it is on")]
    Write(#[source] io::Error),
    /// There is no room for it.
    #[error(
        "there is no room for it, and nothing is left of it: make room, or name another directory"
    )]
    NoSpace(#[source] io::Error),
    /// Guest memory or its tags cannot be reached.
    #[error("guest memory cannot be reached")]
    GuestMemory(#[source] io::Error),
    /// The host has no random bytes.
    #[error("the host has no random bytes for an id")]
    Random(#[source] io::Error),
    /// It is a directory, a device or the like.
    #[error("it is not a regular file: name a file")]
    NotRegular,
    /// The path has no file name.
    #[error("the path has no file name: name a file")]
    NoName,
    /// Both files of a snapshot have the same path.
    #[error("it is named as both the state file and the memory file: name two files")]
    SameFile,
    /// It is something else.
    #[error("it is not {wanted} of a snapshot: check the path")]
    NotASnapshot {
        /// What was wanted.
        wanted: Role,
    },
    /// The other file of a snapshot.
    #[error("it is {found} of a snapshot, not {wanted}: the two may have been exchanged")]
    OtherRole {
        /// What it is.
        found: Role,
        /// What was wanted.
        wanted: Role,
    },
    /// Another version of the format.
    #[error(
        "its format has version {found}, and this program reads version {known} only: use the version of Tessera \
         that made it"
    )]
    Version {
        /// That of the file.
        found: Version,
        /// What this program reads.
        known: Version,
    },
    /// It is shorter than it says.
    #[error("it is cut short: {length} of {wanted} are there; copy or make the snapshot again")]
    CutShort {
        /// What it should have at least.
        wanted: Bytes,
        /// What it has.
        length: Bytes,
    },
    /// It is longer than it says.
    #[error("it has {length}, but should end at {wanted}: copy or make the snapshot again")]
    TooLong {
        /// What it should have.
        wanted: Bytes,
        /// What it has.
        length: Bytes,
    },
    /// A checksum does not match.
    #[error("{part} is damaged: its checksum does not match; copy or make the snapshot again")]
    Damaged {
        /// What does not match.
        part: Part,
    },
    /// The checksums match, but it cannot be so.
    #[error("{part} makes no sense: {reason}; it was not made by Tessera, or by a faulty one")]
    Malformed {
        /// What makes no sense.
        part: Part,
        /// Why.
        reason: String,
    },
    /// A state that could not be restored.
    #[error("{part} cannot be saved, since it could not be restored: {reason}")]
    Unsavable {
        /// What cannot be saved.
        part: Part,
        /// Why.
        reason: String,
    },
    /// State and memory are of two snapshots.
    #[error(
        "it belongs to snapshot {found}, and the state file to {wanted}: name the two files of one snapshot"
    )]
    WrongPair {
        /// Its id.
        found: SnapshotId,
        /// That of the state file.
        wanted: SnapshotId,
    },
    /// A working set is that of another snapshot.
    #[error(
        "it was recorded of snapshot {found}, and not of {wanted}: record it again, or remove it"
    )]
    OtherSnapshot {
        /// Of which.
        found: SnapshotId,
        /// That which is restored.
        wanted: SnapshotId,
    },
    /// A diff builds on another snapshot.
    #[error(
        "it builds on snapshot {wanted}, and not on {found}: name the snapshot that it builds on before it, and leave out \
         others"
    )]
    WrongBase {
        /// The id of the base that was given.
        found: SnapshotId,
        /// That on which the diff builds.
        wanted: SnapshotId,
    },
    /// A diff cannot be restored by itself.
    #[error(
        "it holds only what has changed since snapshot {base}: merge them first (tesseractl snapshot merge BASE DIFF \
         INTO), and restore what they become"
    )]
    Diff {
        /// That on which it builds.
        base: SnapshotId,
    },
    /// A full snapshot where a diff is needed.
    #[error("it is a full snapshot: only diffs can be merged with what they build on")]
    NoDiff,
    /// Pages of another size.
    #[error(
        "it has pages of {found}, and this host has {wanted}: restore it on a host with pages of {found}"
    )]
    PageSize {
        /// That of the file.
        found: Bytes,
        /// What it must be.
        wanted: Bytes,
    },
    /// Memory of another size.
    #[error(
        "it holds {found} of guest memory, and the VM has {wanted}: they belong to different VMs"
    )]
    MemorySize {
        /// That of the file.
        found: Bytes,
        /// What it must be.
        wanted: Bytes,
    },
    /// Tags where there can be none.
    #[error("it has memory with tags, and the VM has no MTE: restore it on a host with MTE")]
    Tagged,
    /// No tags where there must be.
    #[error("it has memory without tags, and the VM has MTE: they belong to different VMs")]
    Untagged,
}

/// One of the files of a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// With the state.
    State,
    /// With the memory.
    Memory,
    /// With the order of first touches.
    WorkingSet,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "the state file",
            Self::Memory => "the memory file",
            Self::WorkingSet => "the working set",
        })
    }
}

/// The version of a format. A program reads one: which change is small is not for an older program to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// What is at its start.
    Header,
    /// The list of what it has.
    Table,
    /// A section of a state file.
    Section(&'static str),
    /// How the pages of a chunk lie in the file, and their tags.
    Map(u64),
    /// The contents of a chunk.
    Data(u64),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("its header"),
            Self::Table => f.write_str("its table"),
            Self::Section(name) => write!(f, "its section {name}"),
            Self::Map(chunk) => write!(f, "its map of chunk {chunk} of guest memory"),
            Self::Data(chunk) => write!(f, "its chunk {chunk} of guest memory"),
        }
    }
}

impl Fault {
    /// What is there with a right checksum, but cannot be so.
    pub(super) fn malformed(part: Part, reason: impl Into<String>) -> Self {
        Self::Malformed { part, reason: reason.into() }
    }

    /// Why a file was not made, or did not get its name.
    pub(super) fn create(error: impl Into<io::Error>) -> Self {
        Self::no_space_or(Self::Create, error.into())
    }

    /// Why a file was not written.
    pub(super) fn write(error: impl Into<io::Error>) -> Self {
        Self::no_space_or(Self::Write, error.into())
    }

    fn no_space_or(other: fn(io::Error) -> Self, error: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::NoSpace(error),
            _ => other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_no_room_whatever_it_is_for() {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            let error = || io::Error::from_raw_os_error(errno);
            assert!(matches!(Fault::create(error()), Fault::NoSpace(_)));
            assert!(matches!(Fault::write(error()), Fault::NoSpace(_)));
        }
        let error = || io::Error::from_raw_os_error(libc::EIO);
        assert!(matches!(Fault::create(error()), Fault::Create(_)));
        assert!(matches!(Fault::write(error()), Fault::Write(_)));
    }

    #[test]
    fn a_status_tells_what_is_not_there_from_what_is_wrong() {
        let error = |kind: io::ErrorKind| io::Error::from(kind);
        let lost = || error(io::ErrorKind::UnexpectedEof);
        let cases = [
            (Fault::Open(error(io::ErrorKind::NotFound)), ExitStatus::NoInput),
            (Fault::Open(error(io::ErrorKind::PermissionDenied)), ExitStatus::NoPermission),
            (Fault::Read(lost()), ExitStatus::Io),
            (Fault::GuestMemory(lost()), ExitStatus::Io),
            (Fault::Create(lost()), ExitStatus::CannotCreate),
            (Fault::Write(lost()), ExitStatus::CannotCreate),
            (Fault::NoSpace(lost()), ExitStatus::CannotCreate),
            (Fault::Tagged, ExitStatus::BadImage),
        ];
        for (fault, status) in cases {
            let error = Error::new(Path::new("memory"), fault);
            assert_eq!(error.status() as u8, status as u8, "{:?}", error.fault);
        }
    }

    #[test]
    fn messages_name_the_file_and_its_part() {
        let (found, wanted) = (Role::Memory, Role::WorkingSet);
        let version = |minor| Version { major: 2, minor };
        let parts = [Part::Header, Part::Table, Part::Section("gic"), Part::Map(3), Part::Data(7)];
        let of_parts = parts.map(|part| Fault::Damaged { part }.to_string());

        for (message, start) in of_parts.iter().zip([
            "its header is",
            "its table is",
            "its section gic is",
            "its map of chunk 3 of",
            "its chunk 7 of",
        ]) {
            assert!(message.starts_with(start), "{message}");
        }
        let other = Fault::OtherRole { found, wanted }.to_string();
        assert!(other.starts_with("it is the memory file of a snapshot, not the working set"));
        let none = Fault::NotASnapshot { wanted: Role::State }.to_string();
        assert!(none.starts_with("it is not the state file of"), "{none}");
        let newer = Fault::Version { found: version(1), known: version(0) }.to_string();
        assert!(
            newer.contains("version 2.1, and") && newer.contains("version 2.0 only"),
            "{newer}"
        );
    }
}
