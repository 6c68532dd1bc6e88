//! Initramfs archives: cpio in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};

/// Archives are padded to this, so that another one may follow; the kernel asks for 4.
const ALIGNMENT: u64 = 512;

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file that should go into it.
    #[error("cannot read {path}, which goes into the nested host")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The archive itself.
    #[error("cannot write an initramfs: check the space left")]
    Write(#[source] io::Error),
    /// Beyond the form's 32 bits.
    #[error("{path} is larger than 4 GiB, which an initramfs cannot hold")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Neither file, folder nor link.
    #[error("{path} is neither a file nor a folder: give what can be copied")]
    Special {
        /// The file.
        path: PathBuf,
    },
    /// A path without a name, or one that leaves the root.
    #[error("'{0}' is no path in the nested host: give an absolute one, without '..'")]
    Path(String),
}

/// Writes one archive. Parents of an entry are made where the archive has not got them yet.
///
/// Owners are root and times zero: equal contents give equal archives.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: Counted<W>,
    /// Folders written so far.
    folders: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An archive that is written to `out`.
    pub(crate) fn new(out: W) -> Self {
        Self { out: Counted { inner: out, written: 0 }, folders: BTreeSet::new(), entries: 0 }
    }

    /// A folder, mode 755.
    ///
    /// # Errors
    /// When `path` is no path, or the archive cannot be written.
    pub(crate) fn folder(&mut self, path: &str) -> Result<(), Error> {
        let path = inside(path)?;
        self.parents(&path)?;
        self.one_folder(&path)
    }

    /// A file that holds `data`.
    ///
    /// # Errors
    /// As [`Archive::folder`], and for data beyond 4 GiB.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> Result<(), Error> {
        self.entry(path, ModeFileType::Regular, permissions, data.len() as u64, None, data)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As [`Archive::folder`].
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        let data = target.as_bytes();
        self.entry(path, ModeFileType::Symlink, 0o777, data.len() as u64, None, data)
    }

    /// A character device, mode 600.
    ///
    /// # Errors
    /// As [`Archive::folder`].
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), Error> {
        self.entry(path, ModeFileType::Char, 0o600, 0, Some((major, minor)), io::empty())
    }

    /// A copy of what lies at `source`: a file with its permissions, or a folder with all below it.
    /// Links are followed.
    ///
    /// # Errors
    /// When `source` cannot be read or holds special files, and as [`Archive::folder`].
    pub(crate) fn copy(&mut self, source: &Path, path: &str) -> Result<(), Error> {
        let failed = |error| Error::Read { path: source.to_owned(), source: error };
        let metadata = fs::metadata(source).map_err(failed)?;
        if metadata.is_file() {
            let file = File::open(source).map_err(failed)?;
            let permissions = metadata.permissions().mode() & 0o777;
            return self
                .entry(
                    path,
                    ModeFileType::Regular,
                    permissions,
                    metadata.len(),
                    None,
                    BufReader::new(file),
                )
                .map_err(|error| match error {
                    Error::TooLarge { .. } => Error::TooLarge { path: source.to_owned() },
                    other => other,
                });
        }
        if !metadata.is_dir() {
            return Err(Error::Special { path: source.to_owned() });
        }
        self.folder(path)?;
        let mut names: Vec<_> = fs::read_dir(source)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(failed)?;
        names.sort();
        for name in names {
            let below = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
            self.copy(&source.join(&name), &below)?;
        }
        Ok(())
    }

    /// Ends the archive and returns what it was written to.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub(crate) fn finish(mut self) -> Result<W, Error> {
        newc::trailer(&mut self.out).map_err(Error::Write)?;
        let past = self.out.written % ALIGNMENT;
        if past != 0 {
            let padding = [0; ALIGNMENT as usize];
            let rest = padding.get(usize::try_from(past).unwrap_or(0)..).unwrap_or_default();
            self.out.write_all(rest).map_err(Error::Write)?;
        }
        self.out.flush().map_err(Error::Write)?;
        Ok(self.out.inner)
    }

    fn entry(
        &mut self,
        path: &str,
        kind: ModeFileType,
        permissions: u32,
        size: u64,
        device: Option<(u32, u32)>,
        mut data: impl io::Read,
    ) -> Result<(), Error> {
        let path = inside(path)?;
        self.parents(&path)?;
        let size =
            u32::try_from(size).map_err(|_| Error::TooLarge { path: PathBuf::from(&path) })?;
        let (major, minor) = device.unwrap_or_default();
        let builder = newc::Builder::new(&path)
            .ino(self.number())
            .mode(permissions)
            .set_mode_file_type(kind)
            .rdev_major(major)
            .rdev_minor(minor);
        let mut entry = builder.write(&mut self.out, size);
        // A file that grows while it is copied must not break the archive; one that shrinks is an error.
        io::copy(&mut io::Read::take(&mut data, u64::from(size)), &mut entry)
            .map_err(Error::Write)?;
        entry.finish().map_err(Error::Write)?;
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<(), Error> {
        let slashes: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        for at in slashes {
            if let Some(parent) = path.get(..at) {
                self.one_folder(parent)?;
            }
        }
        Ok(())
    }

    fn one_folder(&mut self, path: &str) -> Result<(), Error> {
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        let builder = newc::Builder::new(path)
            .ino(self.number())
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Directory);
        builder.write(&mut self.out, 0).finish().map_err(Error::Write)?;
        Ok(())
    }

    /// The kernel takes equal inode numbers of one archive for hard links.
    fn number(&mut self) -> u32 {
        self.entries = self.entries.saturating_add(1);
        self.entries
    }
}

/// A path relative to the archive's root.
fn inside(path: &str) -> Result<String, Error> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.contains(&"..") || path.contains('\0') {
        return Err(Error::Path(path.to_owned()));
    }
    Ok(parts.join("/"))
}

/// Counts what is written.
#[derive(Debug)]
struct Counted<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.written = self.written.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;

    use super::*;

    /// Path, mode, device and data.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn entries(mut archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let mut reader = newc::Reader::new(archive).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                return entries;
            }
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            let device = (entry.rdev_major(), entry.rdev_minor());
            entries.push((entry.name().to_owned(), entry.mode(), device, data));
            archive = reader.finish().unwrap();
        }
    }

    fn archive(fill: impl FnOnce(&mut Archive<Vec<u8>>)) -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        fill(&mut archive);
        archive.finish().unwrap()
    }

    #[test]
    fn files_links_and_devices_come_back_as_written() {
        let bytes = archive(|archive| {
            archive.file("/bin/busybox", 0o755, b"elf").unwrap();
            archive.link("bin/sh", "/bin/busybox").unwrap();
            archive.device("/dev/console", 5, 1).unwrap();
        });

        let entries = entries(&bytes);
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["bin", "bin/busybox", "bin/sh", "dev", "dev/console"]);
        assert_eq!((entries[1].1, &entries[1].3[..]), (0o100_755, &b"elf"[..]));
        assert_eq!((entries[2].1, &entries[2].3[..]), (0o120_777, &b"/bin/busybox"[..]));
        assert_eq!((entries[4].1, entries[4].2), (0o020_600, (5, 1)));
    }

    #[test]
    fn an_archive_may_follow_another() {
        let first = archive(|archive| archive.file("a", 0o644, b"1").unwrap());

        assert_eq!(first.len() % 512, 0);
    }

    #[test]
    fn folders_are_copied_with_permissions_in_a_fixed_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for name in ["b", "a", "sub/c"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::set_permissions(folder.path().join("a"), fs::Permissions::from_mode(0o750)).unwrap();

        let bytes = archive(|archive| archive.copy(folder.path(), "/x/y").unwrap());

        let entries = entries(&bytes);
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["x", "x/y", "x/y/a", "x/y/b", "x/y/sub", "x/y/sub/c"]);
        assert_eq!(entries[2].1, 0o100_750);
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let mut archive = Archive::new(Vec::new());

        for path in ["", "/", "../x", "/a/../../b", "a\0b"] {
            assert!(matches!(archive.file(path, 0o644, b""), Err(Error::Path(_))), "{path:?}");
        }
    }

    #[test]
    fn a_missing_source_is_named() {
        let error = Archive::new(Vec::new()).copy(Path::new("/nonexistent/x"), "/x").unwrap_err();

        assert!(error.to_string().contains("/nonexistent/x"));
    }
}
