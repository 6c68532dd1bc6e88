//! The caches of the host's CPUs, read from sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use arch::caches::{Cache, CacheTopology, IndexFiles, Unknown};

use super::small_file::text;

/// Where the kernel lists its CPUs.
const CPUS: &str = "/sys/devices/system/cpu";
/// The most CPUs that arm64 Linux can be built for (NR_CPUS).
const MOST_CPUS: usize = 4096;

/// The caches that every CPU of the host has.
///
/// # Errors
/// When the kernel does not list them, or they differ.
pub(crate) fn read() -> Result<CacheTopology, Unknown> {
    read_from(Path::new(CPUS))
}

/// The same, from another place. CPUs of one model (MIDR_EL1) have the same caches, so only the first of
/// each is read: a host can have hundreds.
fn read_from(root: &Path) -> Result<CacheTopology, Unknown> {
    let mut models = BTreeSet::new();
    let mut caches = Vec::new();
    for cpu in online(root).iter().map(|number| root.join(format!("cpu{number}"))) {
        // Start-up is not to pay where firmware describes no caches, or has the kernel list them without sizes.
        let first = cpu.join("cache/index0");
        if !first.join("size").exists() {
            if first.exists() {
                return Err(Unknown::Missing { file: "size" });
            }
            continue;
        }
        let model = text(&cpu.join("regs/identification/midr_el1"));
        let known = model.is_some_and(|model| !models.insert(model));
        if !known {
            caches.push(of_cpu(&cpu)?);
        }
    }
    CacheTopology::new(&caches)
}

/// The CPUs that are online, as in "0-3,8".
fn online(root: &Path) -> Vec<u32> {
    let list = text(&root.join("online")).unwrap_or_default();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().take(MOST_CPUS).collect()
}

/// The caches of one CPU.
fn of_cpu(cpu: &Path) -> Result<Vec<Cache>, Unknown> {
    numbered(&cpu.join("cache"), "index").iter().map(|index| parse(index)).collect()
}

fn parse(index: &Path) -> Result<Cache, Unknown> {
    let [level, kind, size, line_size, sets, shared] =
        ["level", "type", "size", "coherency_line_size", "number_of_sets", "shared_cpu_list"]
            .map(|file| text(&index.join(file)));
    Cache::parse(&IndexFiles {
        level: level.as_deref(),
        kind: kind.as_deref(),
        size: size.as_deref(),
        line_size: line_size.as_deref(),
        sets: sets.as_deref(),
        shared: shared.as_deref(),
    })
}

/// The folders `PREFIXn` in `folder`, by their numbers.
fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests;
