//! The files inside a Debian package (deb(5)): an ar archive that holds a compressed tar archive.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;

use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

/// Why a package cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The package cannot be read, or a file not be written.
    #[error(
        "cannot unpack {path}: check the space left; if the file is damaged, remove it and run the command again"
    )]
    Read {
        /// The package.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A compression that this program does not know.
    #[error(
        "{path} holds {member}, a compression this lab does not know: choose a suite whose packages hold data.tar.xz (trixie)"
    )]
    Compression {
        /// The package.
        path: PathBuf,
        /// The name of the archive member.
        member: String,
    },
    /// There is no tar archive in it.
    #[error(
        "{path} is no Debian package: it holds no data.tar; remove it and run the command again"
    )]
    NoData {
        /// The package.
        path: PathBuf,
    },
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Unpacks the regular files of the package at `path` for which `place` gives a target.
///
/// `place` sees each file's path in the package without a leading `./`. Links and special files are left
/// out: nothing the lab takes is one, and a link could point out of the target's folder.
///
/// # Errors
/// When the package is damaged, compressed in an unknown way, or a target cannot be written.
pub(crate) fn unpack(
    path: &Path,
    interrupt: &Interrupt,
    progress: Progress,
    mut place: impl FnMut(&Path) -> Option<PathBuf>,
) -> Result<(), Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bar = progress.bar(&format!("unpacking {name}"), file.metadata().map_err(failed)?.len());
    let read = Counted { inner: BufReader::new(file), read: 0, tell: |read| bar.set(read) };
    let mut archive = ar::Archive::new(read);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(failed)?;
        match String::from_utf8_lossy(member.header().identifier()).into_owned() {
            name if name == "data.tar" => files(member, interrupt, &mut place, failed)?,
            name if name == "data.tar.xz" => {
                files(XzReader::new(member, true), interrupt, &mut place, failed)?
            }
            member if member.starts_with("data.tar") => {
                return Err(Error::Compression { path: path.to_owned(), member });
            }
            _ => continue,
        }
        bar.done();
        return Ok(());
    }
    Err(Error::NoData { path: path.to_owned() })
}

fn files(
    data: impl Read,
    interrupt: &Interrupt,
    place: &mut impl FnMut(&Path) -> Option<PathBuf>,
    failed: impl Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let mut tar = tar::Archive::new(data);
    for entry in tar.entries().map_err(&failed)? {
        interrupt.check()?;
        let mut entry = entry.map_err(&failed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inside = entry.path().map_err(&failed)?.into_owned();
        let inside = inside.strip_prefix(".").unwrap_or(&inside);
        if let Some(target) = place(inside) {
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).map_err(&failed)?;
            }
            let mut file = File::create(&target).map_err(&failed)?;
            io::copy(&mut entry, &mut file).map_err(&failed)?;
        }
    }
    Ok(())
}

/// Tells how much of a reader has been read.
struct Counted<R, F> {
    inner: R,
    read: u64,
    tell: F,
}

impl<R: Read, F: Fn(u64)> Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read = self.read.saturating_add(count as u64);
        (self.tell)(self.read);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    fn package(folder: &Path, member: &str) -> PathBuf {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in [("./boot/vmlinuz-1", "kernel"), ("./usr/share/doc/x", "text")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "./boot/link", "/etc/passwd").unwrap();
        let data = tar.into_inner().unwrap();
        let path = folder.join("a.deb");
        let mut deb = ar::Builder::new(File::create(&path).unwrap());
        for (name, data) in [("debian-binary", &b"2.0\n"[..]), (member, &data)] {
            deb.append(&ar::Header::new(name.into(), data.len() as u64), data).unwrap();
        }
        path
    }

    fn unpack_boot(path: &Path, into: &Path) -> Result<(), Error> {
        unpack(path, &Interrupt::default(), Progress::new(true), |inside| {
            inside.starts_with("boot").then(|| into.join(inside))
        })
    }

    #[test]
    fn chosen_files_are_unpacked_and_links_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = package(folder.path(), "data.tar");

        unpack_boot(&path, folder.path()).unwrap();

        assert_eq!(fs::read_to_string(folder.path().join("boot/vmlinuz-1")).unwrap(), "kernel");
        assert!(!folder.path().join("usr").exists());
        assert!(!folder.path().join("boot/link").exists());
    }

    #[test]
    fn an_unknown_compression_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = package(folder.path(), "data.tar.lz5");

        let error = unpack_boot(&path, folder.path()).unwrap_err();

        assert!(error.to_string().contains("data.tar.lz5"), "{error}");
    }

    #[test]
    fn damaged_and_foreign_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = package(folder.path(), "data.tar.xz");
        assert!(matches!(unpack_boot(&path, folder.path()), Err(Error::Read { .. })));

        fs::write(&path, "!<arch>\n").unwrap();
        assert!(matches!(unpack_boot(&path, folder.path()), Err(Error::NoData { .. })));

        fs::write(&path, "PK").unwrap();
        assert!(unpack_boot(&path, folder.path()).is_err());
    }
}
