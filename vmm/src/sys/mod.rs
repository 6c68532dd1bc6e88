//! System calls, wrapped, without policy.

pub(crate) mod accept;
pub(crate) mod append;
pub(crate) mod caches;
pub(crate) mod cgroup;
pub mod fatal;
pub(crate) mod file_lock;
pub(crate) mod huge_pages;
pub(crate) mod mappings;
pub(crate) mod meminfo;
pub(crate) mod nonblocking;
pub(crate) mod numa;
pub(crate) mod open_files;
pub(crate) mod peer;
pub(crate) mod pressure;
pub(crate) mod seqpacket;
pub(crate) mod signals;
pub(crate) mod small_file;
pub(crate) mod startup_pages;
pub(crate) mod supervisor;
pub(crate) mod tap;
#[cfg(test)]
pub(crate) mod testing;
pub mod thread;
pub(crate) mod timer;
pub(crate) mod uffd;
pub(crate) mod unix_socket;
pub mod vectored;
