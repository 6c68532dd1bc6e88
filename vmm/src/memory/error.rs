//! Why guest memory cannot be had.

use std::io;

use arch::units::Bytes;
use thiserror::Error;

use crate::sys::huge_pages::pool;

/// Why guest memory could not be made, or not be locked.
#[derive(Debug, Error)]
pub enum Error {
    /// No room for it among the process's addresses.
    #[error(
        "cannot reserve addresses for {size} of guest memory: give less --memory, or look at the \
         host's ulimit -v"
    )]
    AddressSpace {
        /// The size asked for.
        size: Bytes,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file behind the memory cannot be made.
    #[error(
        "cannot create the {backing} file for {size} of guest memory: use --memory-backing \
         anonymous, or a host whose kernel has it"
    )]
    File {
        /// The size asked for.
        size: Bytes,
        /// What the memory was to be made of.
        backing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The host has no huge pages of this size.
    #[error(
        "the host has no huge pages of {page}: /sys/kernel/mm/hugepages has those that it knows; \
         or use another --memory-backing"
    )]
    NoSuchHugePages {
        /// The size of one.
        page: Bytes,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The memory is no whole number of its pages.
    #[error("{size} of guest memory cannot be made of pages of {page}: give a multiple (--memory)")]
    NotWholePages {
        /// The size asked for.
        size: Bytes,
        /// The size of one page.
        page: Bytes,
    },
    /// The pool of huge pages does not have enough of them.
    #[error(
        "{size} of guest memory takes {} huge pages of {page}, and the host has {}: reserve more \
         of them (as root: echo NUMBER > {}), or use another --memory-backing",
        .size.get() / .page.get().max(1),
        .free.map_or("fewer".to_owned(), |free| format!("{free} to give")),
        pool(*.page).join("nr_hugepages").display()
    )]
    HugePages {
        /// The size asked for.
        size: Bytes,
        /// The size of one page.
        page: Bytes,
        /// How many the pool has that are neither used nor promised, if that can be read.
        free: Option<u64>,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel does not map such memory with tags.
    #[error(
        "the host's kernel gives no tags to {backing} memory: that takes Linux {} or newer; use \
         --memory-backing anonymous, or --mte off",
        .since
    )]
    Tags {
        /// What the memory was to be made of.
        backing: &'static str,
        /// The first Linux that gives tags to it.
        since: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The host refused the mapping.
    #[error("cannot map {size} of {backing} guest memory: {}", map_hint(.source))]
    Map {
        /// The size asked for.
        size: Bytes,
        /// What it was to be made of.
        backing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A template cannot be mapped.
    #[error(
        "cannot map the {parts} parts of the template into guest memory: look at ulimit -v and vm.max_map_count, or \
         leave out --shared or --boot-image"
    )]
    Template {
        /// How many.
        parts: usize,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The limit on locked memory is too low.
    #[error(
        "cannot lock {size} of guest memory: RLIMIT_MEMLOCK is too low; raise it above that \
         (ulimit -l, or LimitMEMLOCK= of a service), give CAP_IPC_LOCK, or leave out --lock-memory"
    )]
    LockLimit {
        /// The size of guest memory.
        size: Bytes,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The host does not have the memory.
    #[error(
        "cannot lock {size} of guest memory: the host does not have that much free; give less \
         --memory, or leave out --lock-memory"
    )]
    Lock {
        /// The size of guest memory.
        size: Bytes,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

fn map_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::OutOfMemory => {
            "give less --memory, or look at the host's ulimit -v and overcommit settings"
        }
        _ => "run `tessera doctor` to see what the host lacks",
    }
}
