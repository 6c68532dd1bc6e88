//! Why there is no VM.

use std::io;

use thiserror::Error;

use super::state::VcpuStateError;
use crate::memory::Backing;

/// Why KVM cannot give the VM that was asked for.
#[derive(Debug, Error)]
pub enum Error {
    /// /dev/kvm cannot be opened.
    #[error("cannot open /dev/kvm: {hint}")]
    Open {
        /// What to do.
        hint: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// /dev/kvm is not the KVM that is known.
    #[error("/dev/kvm speaks API version {0}, not 12: it is not a KVM this VMM knows")]
    ApiVersion(i32),
    /// MTE was required and the host cannot give it.
    #[error(
        "MTE is required for this guest and the host cannot give it: {0}. Run `tessera doctor`, or use --mte auto or --mte off"
    )]
    MteMissing(&'static str),
    /// KVM has MTE and does not enable it for this VM.
    #[error("KVM of this host does not enable MTE for this guest: use --mte auto or --mte off")]
    MteRefused {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A PMU was asked for and the host has none for guests.
    #[error(
        "KVM of this host offers guests no PMU: leave out --pmu, or use a host whose CPUs and kernel have one \
         (CONFIG_ARM_PMUV3)"
    )]
    NoPmu,
    /// More vCPUs than the host allows.
    #[error("{asked} vCPUs are more than the {max} that {limit} allows: give --cpus {max} or less")]
    TooManyCpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        max: u32,
        /// Who sets the limit.
        limit: &'static str,
    },
    /// More memory than the host's guest-physical address space holds.
    #[error(transparent)]
    Memory(#[from] arch::layout::Error),
    /// The host has no interrupt controller that KVM can emulate for the guest.
    #[error("KVM offers the guest neither a GICv3 nor a GICv2 on this host")]
    NoGic,
    /// KVM does not take memory of this kind for a guest with MTE.
    #[error(
        "KVM of this host does not take {backing} memory for a guest with MTE, as it does from Linux {since} \
         on: use --memory-backing anonymous, or --mte off"
    )]
    TaggedBacking {
        /// What the memory is made of.
        backing: Backing,
        /// The first Linux that takes it.
        since: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The host lacks what saved vCPUs have.
    #[error(
        "the saved vCPUs have {feature}, which this host does not offer guests: restore on a host with such CPUs \
         and a kernel that offers it"
    )]
    SavedFeature {
        /// What it lacks.
        feature: &'static str,
    },
    /// A vCPU does not take its saved state.
    #[error(transparent)]
    SavedVcpu(#[from] VcpuStateError),
    /// The interrupt controller is another.
    #[error(
        "the saved guest has a GICv{saved}, and this host offers a GICv{here}: restore on a host with the same"
    )]
    SavedGic {
        /// The version that was saved.
        saved: u8,
        /// The host's.
        here: u8,
    },
    /// The registers of the interrupt controller are not those that there are.
    #[error(
        "the saved state of the interrupt controller is damaged, or of a host whose interrupt controller has other \
         registers: restore from another snapshot"
    )]
    SavedGicRegisters,
    /// An operation on KVM failed.
    #[error("KVM: cannot {what}{}", vcpu.map(|n| format!(" of vCPU {n}")).unwrap_or_default())]
    Call {
        /// What was tried.
        what: &'static str,
        /// For which vCPU.
        vcpu: Option<u32>,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}
