//! What a process may do beyond other processes of its user.
//!
//! # References
//! capabilities(7), PR_SET_NO_NEW_PRIVS(2const), PR_SET_DUMPABLE(2const), getrlimit(2)

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::Role;
use crate::sys::open_files;

/// What a broker needs that lends a node: to move pages of others' processes, to see which they have, and to lock what
/// no VM has.
const OF_A_BROKER: CapabilitySet =
    CapabilitySet::SYS_NICE.union(CapabilitySet::SYS_PTRACE).union(CapabilitySet::IPC_LOCK);

/// What the thread of a network needs that opens its tap again: of a tap without an owner, Linux wants it.
const OF_A_TAP: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Prepares this thread, and those that it starts: no program that it executes has more rights, and where `all` is to
/// go, no core is written.
///
/// # Errors
/// What the kernel answers.
pub(super) fn prepare(all: bool) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    if all {
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    }
    Ok(())
}

/// Limits the process once its work begins: to so many descriptors more than it has, and, where it can do so, to its own
/// looks at its memory.
///
/// # Errors
/// What the kernel answers.
pub(super) fn limit(role: Role, descriptors: u64) -> io::Result<()> {
    open_files::lower_limit(descriptors)?;
    // The files of such a process in /proc are root's. A VM of another user could not open its own any more.
    if role != Role::Main || geteuid().is_root() {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

/// Drops the capabilities of the calling thread that its role has no use for, where the process opens devices again or
/// does not.
///
/// # Errors
/// What the kernel answers.
pub(super) fn drop_all(role: Role, opens_devices: bool) -> io::Result<()> {
    let needed = match role {
        Role::Broker | Role::BrokerSession => OF_A_BROKER,
        Role::Net if opens_devices => OF_A_TAP,
        _ => CapabilitySet::empty(),
    };
    let kept = needed & capabilities(None)?.permitted;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
