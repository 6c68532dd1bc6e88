//! Kernel modules that the initramfs carries for this very kernel.

use std::fs::{self, File};
use std::path::Path;

use crate::{machine, system};

/// What every guest loads; one folder a kernel release, files are named in the order of loading.
pub(crate) const ALL_GUESTS: &str = "/lib/modules-min";
/// What a guest with the agent loads beside.
pub(crate) const AGENT: &str = "/lib/modules-agent";

/// Loads all modules of a folder for the running kernel; returns what failed, one text a module.
///
/// Another kernel than the one the initramfs was made for has no folder, and nothing is loaded.
pub(crate) fn load_all(folder: &str) -> Vec<String> {
    load_all_with(folder, |_| {})
}

/// The same, with something done before each module is loaded, by the name of its file.
pub(crate) fn load_all_with(folder: &str, mut before: impl FnMut(&str)) -> Vec<String> {
    let folder = Path::new(folder).join(machine::kernel_release());
    let mut paths: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
        .iter()
        .filter_map(|path| {
            before(&path.to_string_lossy());
            let loaded = File::open(path).and_then(|file| system::load_module(&file));
            loaded.err().map(|error| format!("{}: {error}", path.display()))
        })
        .collect()
}
