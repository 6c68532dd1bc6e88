//! The host's NUMA nodes, and which of them can be tag storage.
//!
//! # References
//! Linux Documentation/ABI/stable/sysfs-devices-node

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys::numa::MAX_NODES;

/// Where the host shows its nodes.
const NODES: &str = "/sys/devices/system/node";

/// Why a node cannot be tag storage.
#[derive(Debug, Error)]
pub enum Error {
    /// The host's kernel does not show nodes.
    #[error(
        "the host does not show its NUMA nodes in {}: use --supply ledger, or a kernel with CONFIG_NUMA",
        path.display()
    )]
    Unknown {
        /// Where they should be.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What it shows is not a list of numbers.
    #[error("{} is no list of numbers: {text:?}; use --supply ledger", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What it has.
        text: String,
    },
    /// There is no such node.
    #[error(
        "the host has no NUMA node {node}: name one of {online}, without CPUs, or use --supply ledger"
    )]
    Missing {
        /// The number.
        node: u32,
        /// The nodes there are.
        online: String,
    },
    /// The node has no memory.
    #[error(
        "NUMA node {0} has no memory: bring its memory online (/sys/devices/system/memory), or use \
         --supply ledger"
    )]
    NoMemory(u32),
    /// The node has processors: its memory is everybody's first choice and never only tag storage.
    #[error(
        "NUMA node {node} has CPUs ({cpus}): tag storage is a node without any; name another, or use \
         --supply ledger"
    )]
    HasCpus {
        /// The number.
        node: u32,
        /// Its processors.
        cpus: String,
    },
    /// What is on the node has nowhere else to go.
    #[error("NUMA node {0} has all of the host's memory: use --supply ledger")]
    OnlyNode(u32),
}

/// The nodes of a host.
#[derive(Clone, Debug)]
pub struct Topology {
    folder: PathBuf,
}

impl Default for Topology {
    /// This host's.
    fn default() -> Self {
        Self::at(Path::new(NODES))
    }
}

impl Topology {
    /// The nodes that a folder like /sys/devices/system/node shows.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn read(&self, name: &str) -> Result<(PathBuf, String), Error> {
        let path = self.folder.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text.trim().to_owned())),
            Err(source) => Err(Error::Unknown { path, source }),
        }
    }

    fn list(&self, name: &str) -> Result<BTreeSet<u32>, Error> {
        let (path, text) = self.read(name)?;
        numbers(&text).ok_or(Error::List { path, text })
    }

    /// Checks that the memory of a node can be tag storage, and returns the other nodes with memory.
    ///
    /// # Errors
    /// When it cannot: there is no such node, it has no memory, it has processors, or there is no other.
    pub fn others(&self, node: u32) -> Result<BTreeSet<u32>, Error> {
        if !self.list("online")?.contains(&node) {
            return Err(Error::Missing { node, online: self.read("online")?.1 });
        }
        let mut others = self.list("has_memory")?;
        if !others.remove(&node) {
            return Err(Error::NoMemory(node));
        }
        if self.list("has_cpu")?.contains(&node) {
            let cpus = self.read(&format!("node{node}/cpulist"))?.1;
            return Err(Error::HasCpus { node, cpus });
        }
        if others.is_empty() {
            return Err(Error::OnlyNode(node));
        }
        Ok(others)
    }
}

/// Reads a list like `0-1,3`.
fn numbers(text: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // No kernel has more, and a file that says so would fill the memory.
        if last >= MAX_NODES || first > last {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tempfile::TempDir;

    use super::*;

    fn host(files: &[(&str, &str)]) -> (TempDir, Topology) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let topology = Topology::at(folder.path());
        (folder, topology)
    }

    const FOUR: [(&str, &str); 4] =
        [("online", "0-3"), ("has_memory", "0-1,3"), ("has_cpu", "0,3"), ("node3/cpulist", "4-7")];

    #[test]
    fn a_node_with_memory_and_no_cpus_will_do() {
        let (_folder, topology) = host(&FOUR);

        assert_eq!(topology.others(1).unwrap(), BTreeSet::from([0, 3]));
    }

    #[test]
    fn each_other_node_is_refused_by_name() {
        let (_folder, topology) = host(&FOUR);

        let refused = |node| topology.others(node).unwrap_err();
        assert!(matches!(refused(2), Error::NoMemory(2)));
        assert!(matches!(refused(3), Error::HasCpus { node: 3, cpus } if cpus == "4-7"));
        assert!(matches!(refused(4), Error::Missing { node: 4, online } if online == "0-3"));
        assert!(matches!(refused(u32::MAX), Error::Missing { .. }));
    }

    #[test]
    fn the_only_node_is_refused() {
        let (_folder, topology) = host(&[("online", "0"), ("has_memory", "0"), ("has_cpu", "")]);

        assert!(matches!(topology.others(0).unwrap_err(), Error::OnlyNode(0)));
    }

    #[test]
    fn a_host_that_does_not_show_nodes_is_told_from_one_that_shows_nonsense() {
        let (_folder, none) = host(&[]);
        assert!(matches!(none.others(0).unwrap_err(), Error::Unknown { .. }));
        for text in ["x", "0-", "-", "3-1", "0-4294967295", "99999999999"] {
            let (_folder, nonsense) = host(&[("online", text)]);
            assert!(matches!(nonsense.others(0).unwrap_err(), Error::List { .. }), "{text}");
        }
    }

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(numbers(""), Some(BTreeSet::new()));
        assert_eq!(numbers("7"), Some(BTreeSet::from([7])));
        assert_eq!(numbers("0-2,5,8-9"), Some(BTreeSet::from([0, 1, 2, 5, 8, 9])));
    }
}
