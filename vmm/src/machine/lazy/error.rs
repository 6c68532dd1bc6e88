//! Why guest memory cannot be loaded as it is touched.

use std::io;

use thiserror::Error;

use crate::sys::uffd;
use crate::tag_storage::{ReservationError, Unreserved};
use crate::{memory, snapshot};

/// Why memory cannot be loaded when it is touched.
#[derive(Debug, Error)]
pub enum Error {
    /// A page of hugetlbfs cannot be given to the guest when it is filled.
    #[error(
        "memory of hugetlbfs cannot be restored lazily, and that of the snapshot is such: leave out --lazy"
    )]
    Backing,
    /// The host's kernel cannot stop touches of it.
    #[error(
        "this host's kernel cannot load guest memory as it is touched (userfaultfd with UFFDIO_MOVE, Linux 6.8, or \
         UFFDIO_POISON, 6.6, for a VM with --memory-backing memfd): leave out --lazy"
    )]
    Kernel(#[source] io::Error),
    /// This user may not stop touches in the kernel, as those of KVM are.
    #[error(
        "this user may not catch KVM's page faults: give it access to /dev/userfaultfd, or set the sysctl \
         vm.unprivileged_userfaultfd=1, or leave out --lazy"
    )]
    Denied(#[source] io::Error),
    /// There would be too many mappings.
    #[error(
        "memory with this many gaps takes too many mappings: raise vm.max_map_count, or leave out --lazy"
    )]
    Mappings(#[source] io::Error),
    /// There is no memory aside from the guest's.
    #[error(transparent)]
    Aside(#[from] memory::Error),
    /// The system gives no descriptor or thread, or does not take pages back.
    #[error(
        "the host does not let guest memory be loaded as it is touched: look at ulimit -n and ulimit -u"
    )]
    Host(#[source] io::Error),
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The pages of a chunk cannot be moved.
    #[error("chunk {chunk} of the snapshot cannot be moved into guest memory")]
    Move {
        /// Which chunk.
        chunk: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A chunk that no thread waits for has no tag storage, and is not loaded now.
    #[error(
        "there is no tag storage for chunk {chunk}, which is not loaded yet: free guest memory, or wait until others do"
    )]
    NoTagStorage {
        /// Which chunk.
        chunk: u64,
        /// Why.
        #[source]
        source: Unreserved,
    },
    /// Tag storage is not reserved on demand for what is loaded.
    #[error(transparent)]
    TagStorage(#[from] ReservationError),
    /// Some of it could not be loaded before, for this reason.
    #[error("guest memory cannot be loaded from the snapshot: {0}")]
    Failed(String),
}

impl From<uffd::Error> for Error {
    fn from(error: uffd::Error) -> Self {
        match error {
            uffd::Error::Denied(source) => Self::Denied(source),
            uffd::Error::Descriptor(source) => Self::Host(source),
            uffd::Error::Register(source) if source.raw_os_error() == Some(libc::ENOMEM) => {
                Self::Mappings(source)
            }
            uffd::Error::Missing(source)
            | uffd::Error::Version(source)
            | uffd::Error::NoMove(source)
            | uffd::Error::NoMinorFaults(source)
            | uffd::Error::Register(source)
            | uffd::Error::Read(source) => Self::Kernel(source),
        }
    }
}
