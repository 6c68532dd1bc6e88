//! The filters of system calls that vmm/build.rs has made of the tables in resources/seccomp/.

use crate::sys::thread::Role;

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// Whether there are filters for this architecture.
pub(super) const ARE_KNOWN: bool = cfg!(target_arch = "aarch64");

/// The program for threads of a role.
pub(super) fn of(role: Role) -> &'static [u64] {
    match role {
        Role::Main => &MAIN,
        Role::Vcpu => &VCPU,
        Role::Faults => &FAULTS,
        Role::Loader => &LOADER,
        Role::Disk => &DISK,
        Role::Net => &NET,
        Role::Vsock => &VSOCK,
        Role::BrokerClient => &BROKER_CLIENT,
        Role::Footprint => &FOOTPRINT,
        Role::Broker => &BROKER_MAIN,
        Role::BrokerSession => &BROKER_SESSION,
        Role::Template => &TEMPLATE,
    }
}
