//! Programs of Debian's with the libraries that they need, for hosts and guests that have no system of their own.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::artifacts::{self, SUITE};
use crate::deb;
use crate::debian::{self, ARM64, Archive};
use crate::modules::section;
use crate::places;
use crate::session::Lab;

/// What loads a program and its libraries (the C library's ABI for arm64).
const LOADER: &str = "ld-linux-aarch64.so.1";

/// Where packages have libraries, some of them in folders below it.
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";

/// Where packages have programs.
const PROGRAMS: &str = "usr/bin";

/// Says what a folder was made of; written last.
const STAMP: &str = "stamp.json";

// Tags of the dynamic section (ELF specification, "Dynamic Section").
const NEEDED: u64 = 1;
const SONAME: u64 = 14;

/// Why programs cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The packages cannot be had.
    #[error(transparent)]
    Debian(#[from] debian::Error),
    /// A package cannot be unpacked.
    #[error(transparent)]
    Package(#[from] deb::Error),
    /// The lab's folders.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// The stamp cannot be written.
    #[error(transparent)]
    Stamp(#[from] artifacts::Error),
    /// No package has it.
    #[error(
        "none of the packages has {name}, which {user} needs: name the package that has it as well"
    )]
    Missing {
        /// The program or library.
        name: String,
        /// What needs it.
        user: String,
    },
    /// A file cannot be copied.
    #[error("cannot use {path}: check the space left and the permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Puts these programs into `bin` of a folder below the lab's products, and all libraries that they need into `lib`,
/// where that is not done yet. A program of them is run by the loader in `lib`.
///
/// # Errors
/// When something cannot be fetched, is not there, or cannot be written.
pub(crate) fn ensure(
    lab: &Lab,
    name: &str,
    packages: &[String],
    programs: &[String],
) -> Result<PathBuf, Error> {
    let folder = lab.places.programs_of(name);
    let _lock = places::lock(&folder, &lab.interrupt, lab.progress)?;
    let made_of = (packages.to_vec(), programs.to_vec());
    let stamp = folder.join(STAMP);
    let made = fs::read(&stamp).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if made.as_ref() == Some(&made_of) {
        return Ok(folder);
    }
    let _ = fs::remove_file(&stamp);
    let files = {
        // apt's state is the lab's.
        let _lock = lab.places.lock(&lab.interrupt, lab.progress)?;
        let archive = Archive::open(&lab.places.apt(), SUITE, ARM64, &lab.interrupt, lab.progress)?;
        archive.refresh()?;
        archive.select(packages)?.files
    };
    let unpacked = folder.join("unpacked");
    for part in ["bin", "lib", "unpacked"] {
        let _ = fs::remove_dir_all(folder.join(part));
        fs::create_dir_all(folder.join(part)).map_err(failed(&folder))?;
    }
    let mut libraries = Vec::new();
    for (number, file) in files.iter().enumerate() {
        deb::unpack(file, &lab.interrupt, lab.progress, |inside| {
            let name = inside.file_name()?.to_str()?;
            if inside.parent() == Some(Path::new(PROGRAMS)) {
                return programs
                    .iter()
                    .any(|known| known == name)
                    .then(|| folder.join("bin").join(name));
            }
            let is_library = name == LOADER || name.contains(".so");
            if !is_library || !inside.starts_with(LIBRARIES) {
                return None;
            }
            // Folders have libraries of the same name, for other kinds of processors for example.
            let depth = inside.components().count();
            let target = unpacked.join(format!("{number}-{}-{name}", libraries.len()));
            libraries.push((depth, target.clone()));
            Some(target)
        })?;
    }
    libraries.sort();
    gather(&folder, programs, libraries.iter().map(|(_, path)| path.as_path()))?;
    fs::remove_dir_all(&unpacked).map_err(failed(&unpacked))?;
    artifacts::write_json(&stamp, &made_of)?;
    Ok(folder)
}

/// Copies what the programs need from libraries, of which the first of a name counts, to `lib`.
fn gather<'a>(
    folder: &Path,
    programs: &[String],
    libraries: impl Iterator<Item = &'a Path>,
) -> Result<(), Error> {
    let mut known: HashMap<String, (&Path, Vec<String>)> = HashMap::new();
    for path in libraries {
        let data = fs::read(path).map_err(failed(path))?;
        if let Some((Some(name), needed)) = dynamic(&data) {
            known.entry(name).or_insert((path, needed));
        }
    }
    let mut wanted = vec![(LOADER.to_owned(), "every program".to_owned())];
    for program in programs {
        let path = folder.join("bin").join(program);
        let missing = |_| Error::Missing { name: program.clone(), user: "the lab".to_owned() };
        let data = fs::read(&path).map_err(missing)?;
        executable(&path)?;
        let needed = dynamic(&data).map(|(_, needed)| needed).unwrap_or_default();
        wanted.extend(needed.into_iter().map(|name| (name, program.clone())));
    }
    while let Some((name, user)) = wanted.pop() {
        let target = folder.join("lib").join(&name);
        if target.exists() {
            continue;
        }
        let Some((path, needed)) = known.get(&name) else {
            return Err(Error::Missing { name, user });
        };
        fs::copy(path, &target).map_err(failed(&target))?;
        executable(&target)?;
        wanted.extend(needed.iter().map(|needed| (needed.clone(), name.clone())));
    }
    Ok(())
}

fn executable(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

/// The name by which programs know a library, and the libraries that a file needs. `None` for a file that is not
/// linked at run time.
fn dynamic(elf: &[u8]) -> Option<(Option<String>, Vec<String>)> {
    let names = section(elf, b".dynstr")?;
    let text = |at: u64| {
        let rest = names.get(usize::try_from(at).ok()?..)?;
        let name = rest.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let (entries, _) = section(elf, b".dynamic")?.as_chunks::<16>();
    let mut soname = None;
    let mut needed = Vec::new();
    for entry in entries {
        let [a, b, c, d, e, f, g, h, value @ ..] = *entry;
        match u64::from_le_bytes([a, b, c, d, e, f, g, h]) {
            NEEDED => needed.extend(text(u64::from_le_bytes(value))),
            SONAME => soname = text(u64::from_le_bytes(value)),
            _ => {}
        }
    }
    Some((soname, needed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_a_program_needs_is_read_from_it() {
        let own = fs::read("/proc/self/exe").unwrap();

        let (soname, needed) = dynamic(&own).unwrap();

        assert_eq!(soname, None);
        assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");
        assert_eq!(dynamic(&own[..100]), None);
        assert_eq!(dynamic(b"#!/bin/sh"), None);
    }

    #[test]
    fn libraries_come_with_what_they_need_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::copy("/proc/self/exe", folder.path().join("bin/x")).unwrap();

        let error = gather(folder.path(), &["x".to_owned()], std::iter::empty()).unwrap_err();

        assert!(matches!(error, Error::Missing { .. }), "{error}");
    }
}
