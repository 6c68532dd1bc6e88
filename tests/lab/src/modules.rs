//! Kernel modules for an initramfs: which ones, in which order, without compression.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;

/// The most a module may hold once decompressed; Debian's largest arm64 ones have some 10 MiB.
const MAX_MODULE: u64 = 64 << 20;

/// Why modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or folder of the module tree.
    #[error("cannot read {path}: remove the lab's artifacts folder and run lab fetch")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Not an ELF file with module information.
    #[error("{path} is no kernel module: remove the lab's artifacts folder and run lab fetch")]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// A dependency is neither built in nor in the tree.
    #[error(
        "module {module} needs {missing}, which this kernel's package lacks: choose another kernel"
    )]
    Missing {
        /// The module.
        module: String,
        /// What it depends on.
        missing: String,
    },
}

/// A module ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The decompressed file.
    pub(crate) data: Vec<u8>,
}

/// All modules below a folder, by name.
#[derive(Debug, Default)]
pub(crate) struct Tree(HashMap<String, PathBuf>);

impl Tree {
    /// Finds the modules below `folder`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn scan(folder: &Path) -> Result<Self, Error> {
        let mut tree = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let failed = |source| Error::Read { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(path);
                } else if let Some(name) = module_name(&path) {
                    tree.0.insert(name, path);
                }
            }
        }
        Ok(tree)
    }

    /// Those of `wanted` that are modules here, each after everything it depends on.
    ///
    /// What is wanted and not here counts as built in or not offered: the kernel decides, not the lab.
    ///
    /// # Errors
    /// When a file is damaged, or a dependency missing.
    pub(crate) fn with_dependencies(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        in_order(wanted, |name| {
            let Some(path) = self.0.get(name) else {
                return Ok(None);
            };
            let data = load(path)?;
            let depends = depends(&data).ok_or_else(|| Error::NotAModule { path: path.clone() })?;
            Ok(Some((data, depends)))
        })
    }
}

/// Loads `wanted` by `load` (data and dependencies, or nothing), dependencies first, each once.
fn in_order(
    wanted: &[&str],
    mut load: impl FnMut(&str) -> Result<Option<(Vec<u8>, Vec<String>)>, Error>,
) -> Result<Vec<Module>, Error> {
    enum Step {
        Visit { name: String, needed_by: Option<String> },
        Emit(Module),
    }
    let mut steps: Vec<Step> = wanted
        .iter()
        .rev()
        .map(|name| Step::Visit { name: (*name).to_owned(), needed_by: None })
        .collect();
    let mut seen = std::collections::HashSet::new();
    let mut modules = Vec::new();
    while let Some(step) = steps.pop() {
        match step {
            Step::Emit(module) => modules.push(module),
            // Seen includes "being visited": a cycle, which depmod forbids, ends here.
            Step::Visit { name, .. } if seen.contains(&name) => {}
            Step::Visit { name, needed_by } => match (load(&name)?, needed_by) {
                (Some((data, depends)), _) => {
                    seen.insert(name.clone());
                    steps.push(Step::Emit(Module { name: name.clone(), data }));
                    steps.extend(depends.into_iter().rev().map(|dependency| Step::Visit {
                        name: dependency,
                        needed_by: Some(name.clone()),
                    }));
                }
                (None, Some(module)) => return Err(Error::Missing { module, missing: name }),
                (None, None) => {}
            },
        }
    }
    Ok(modules)
}

/// `virtio-mmio.ko.xz` → `virtio_mmio`, as the kernel names modules.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz"))?;
    Some(stem.replace('-', "_"))
}

fn load(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let mut data = Vec::new();
    if path.extension().is_some_and(|extension| extension == "xz") {
        XzReader::new(file, true).take(MAX_MODULE).read_to_end(&mut data)
    } else {
        file.take(MAX_MODULE).read_to_end(&mut data)
    }
    .map_err(failed)?;
    Ok(data)
}

/// The `depends=` of a module's `.modinfo` section; empty where it needs nothing.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, b".modinfo")?;
    let list = info
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"depends="))
        .unwrap_or_default();
    Some(
        String::from_utf8_lossy(list)
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect(),
    )
}

/// The section `name` of a little-endian ELF64 file (ELF specification, "Sections").
pub(crate) fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let half =
        |at: usize| Some(u16::from_le_bytes(elf.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let word =
        |at: usize| Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let long = |at: usize| {
        let bytes = elf.get(at..at.checked_add(8)?)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let table = long(0x28)?;
    let (size, count, names) =
        (usize::from(half(0x3a)?), usize::from(half(0x3c)?), usize::from(half(0x3e)?));
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let contents = |at: usize| {
        let (offset, length) = (long(at.checked_add(0x18)?)?, long(at.checked_add(0x20)?)?);
        elf.get(offset..offset.checked_add(length)?)
    };
    let names = contents(header(names)?)?;
    (0..count).find_map(|index| {
        let at = header(index)?;
        let rest = names.get(usize::try_from(word(at)?).ok()?..)?;
        let found = rest.split(|byte| *byte == 0).next()? == name;
        found.then(|| contents(at)).flatten()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// An ELF64 file with a `.modinfo` section that holds `info`.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (info_at, names_at) = (elf.len(), elf.len() + info.len());
        elf.extend_from_slice(info);
        elf.extend_from_slice(names);
        let table = elf.len() as u64;
        for (name, offset, size) in
            [(0u32, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())]
        {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&2u16.to_le_bytes());
        elf
    }

    fn order(wanted: &[&str], graph: &[(&str, &[&str])]) -> Result<Vec<String>, Error> {
        let loaded = in_order(wanted, |name| {
            let found = graph.iter().find(|(module, _)| *module == name);
            Ok(found
                .map(|(_, needs)| (Vec::new(), needs.iter().map(ToString::to_string).collect())))
        })?;
        Ok(loaded.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let graph: &[(&str, &[&str])] = &[
            ("net", &["failover", "core"]),
            ("failover", &["core"]),
            ("core", &[]),
            ("balloon", &["core"]),
        ];

        assert_eq!(
            order(&["net", "balloon"], graph).unwrap(),
            ["core", "failover", "net", "balloon"]
        );
    }

    #[test]
    fn wanted_and_absent_modules_are_built_in() {
        assert_eq!(order(&["ext4", "a"], &[("a", &[])]).unwrap(), ["a"]);
    }

    #[test]
    fn a_missing_dependency_is_named() {
        let error = order(&["a"], &[("a", &["b"])]).unwrap_err();

        assert!(
            matches!(error, Error::Missing { module, missing } if module == "a" && missing == "b")
        );
    }

    #[test]
    fn a_cycle_ends() {
        assert_eq!(order(&["a"], &[("a", &["b"]), ("b", &["a"])]).unwrap().len(), 2);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        let elf = module(b"license=GPL\0depends=virtio-ring,virtio\0name=x\0");

        assert_eq!(depends(&elf).unwrap(), ["virtio_ring", "virtio"]);
        assert!(depends(&module(b"depends=\0")).unwrap().is_empty());
        assert!(depends(&module(b"license=GPL\0")).unwrap().is_empty());
    }

    #[test]
    fn names_follow_the_kernel() {
        assert_eq!(module_name(Path::new("a/virtio-mmio.ko.xz")).unwrap(), "virtio_mmio");
        assert_eq!(module_name(Path::new("evdev.ko")).unwrap(), "evdev");
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    proptest! {
        #[test]
        fn damaged_modules_are_survived(at in 0usize..400, byte: u8, length in 0usize..400) {
            let mut elf = module(b"depends=a,b\0");
            if let Some(target) = elf.get_mut(at) {
                *target = byte;
            }
            elf.truncate(length);
            let _ = depends(&elf);
        }
    }
}
