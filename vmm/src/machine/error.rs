//! Why there is no machine.

use std::io;

use arch::layout;
use thiserror::Error;

use super::{StateError, lazy};
use crate::backends::{block, net, vsock};
use crate::error::is_denied;
use crate::exit_status::ExitStatus;
use crate::hypervisor;
use crate::memory::{self, LoadError};
use crate::snapshot;
use crate::tag_storage::{BorrowerLeaseError, ReservationError};
use crate::template::BootError;
use crate::vcpu;

/// Why there is no machine.
#[derive(Debug, Error)]
pub enum Error {
    /// The hypervisor cannot give it.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// Its memory cannot be had.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Kernel or initrd cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The boot image cannot be had.
    #[error(transparent)]
    BootImage(#[from] BootError),
    /// The memory of a boot image cannot be kept where it must be.
    #[error(
        "the broker's tag storage is the memory of a NUMA node, off which the memory of a boot image cannot be kept: \
         leave out --boot-image, or --broker"
    )]
    BootImageOnNode,
    /// The device tree cannot be made.
    #[error("cannot describe the machine to the guest")]
    Fdt(#[from] arch::fdt::Error),
    /// The device tree cannot be put into guest memory.
    #[error("cannot write the device tree into guest memory")]
    WriteFdt(#[source] vm_memory::GuestMemoryError),
    /// The first vCPU cannot be made ready.
    #[error("cannot set the registers that the guest boots with")]
    BootState(#[source] io::Error),
    /// The host has no randomness for the guest's seeds.
    #[error("the host gives no random bytes for the guest's seeds")]
    Seeds(#[source] rustix::io::Errno),
    /// There is no generation ID.
    #[error("the host gives no memory or no random bytes for the VM's generation ID")]
    Generation(#[source] rustix::io::Errno),
    /// The guest cannot be notified of its new generation ID.
    #[error("KVM does not raise the interrupt for the VM's generation ID; please report this")]
    GenerationInterrupt(#[source] io::Error),
    /// Two devices claim one address.
    #[error("the memory map is contradictory; please report this")]
    Bus(#[from] devices::bus::Error),
    /// There are more virtio devices than places for them.
    #[error("there are more than {} virtio devices: leave some out", layout::MAX_VIRTIO_DEVICES)]
    NoSlot,
    /// There is no tag storage for the VM.
    #[error(transparent)]
    TagStorage(#[from] ReservationError),
    /// It may not live beside the broker's tag storage.
    #[error(transparent)]
    BorrowerLease(#[from] BorrowerLeaseError),
    /// A disk cannot be had.
    #[error(transparent)]
    Disk(#[from] block::Error),
    /// The sockets of the guest cannot be served.
    #[error(transparent)]
    Vsock(#[from] vsock::Error),
    /// The host's side of a network interface cannot be had.
    #[error("cannot connect the network interface {id}")]
    Net {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: net::OpenError,
    },
    /// The timers of a device cannot be had.
    #[error("the host gives no timers for the {device}: look at ulimit -n")]
    Timers {
        /// Which.
        device: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The thread of a device cannot be started.
    #[error("cannot start the thread {name}: look at ulimit -n and ulimit -u")]
    Worker {
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The state of a device cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The saved counter counts at another rate.
    #[error(
        "the saved guest's counter counts at {saved} Hz, and this host's at {here} Hz: its clock would run wrong. \
         Restore on a host with the same"
    )]
    CounterFrequency {
        /// When it was saved.
        saved: u32,
        /// The host's.
        here: u32,
    },
    /// The saved memory cannot be loaded as it is touched.
    #[error(transparent)]
    Lazy(#[from] lazy::Error),
    /// A clone's memory cannot be kept where it must be.
    #[error(
        "the broker's tag storage is the memory of a NUMA node, off which a clone's memory cannot be kept: leave out \
         --shared, or --broker"
    )]
    SharedOnNode,
    /// The saved memory cannot be loaded.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The number of vCPUs that were saved is not the VM's.
    #[error("the snapshot has the states of {saved} vCPUs, and its VM has {vcpus}: it is damaged")]
    SavedVcpus {
        /// How many were saved.
        saved: usize,
        /// How many there are.
        vcpus: usize,
    },
    /// The vCPUs' threads cannot be started.
    #[error(transparent)]
    Vcpus(#[from] vcpu::Error),
}

impl Error {
    /// Whether the VM can be had, but not with MTE.
    pub(super) fn is_lack_of_mte(&self) -> bool {
        use hypervisor::Error as Hypervisor;
        matches!(
            self,
            Self::Memory(memory::Error::Tags { .. })
                | Self::Hypervisor(
                    Hypervisor::TaggedBacking { .. }
                        | Hypervisor::MteMissing(_)
                        | Hypervisor::MteRefused { .. }
                )
        )
    }

    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Hypervisor(hypervisor::Error::Open { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ExitStatus::NoPermission
            }
            Self::TagStorage(error) if is_denied(error) => ExitStatus::NoPermission,
            Self::BorrowerLease(error) if is_denied(error) => ExitStatus::NoPermission,
            Self::Net { source, .. } if source.is_denied() => ExitStatus::NoPermission,
            Self::Load(error) => error.status(),
            Self::BootImage(error) => error.status(),
            Self::Disk(error) => error.status(),
            Self::Vsock(error) => error.status(),
            Self::Hypervisor(_)
            | Self::Memory(_)
            | Self::BootState(_)
            | Self::Seeds(_)
            | Self::Generation(_)
            | Self::GenerationInterrupt(_)
            | Self::TagStorage(_)
            | Self::BorrowerLease(_)
            | Self::Net { .. }
            | Self::Timers { .. }
            | Self::Worker { .. }
            | Self::Vcpus(_) => ExitStatus::Unavailable,
            Self::Snapshot(error) => error.status(),
            Self::State(_) | Self::SavedVcpus { .. } => ExitStatus::BadImage,
            Self::Lazy(lazy::Error::Snapshot(error)) => error.status(),
            Self::Lazy(_) | Self::CounterFrequency { .. } => ExitStatus::Unavailable,
            Self::NoSlot | Self::SharedOnNode | Self::BootImageOnNode => ExitStatus::Config,
            Self::Fdt(_) | Self::WriteFdt(_) | Self::Bus(_) => ExitStatus::VmmFault,
        }
    }
}
