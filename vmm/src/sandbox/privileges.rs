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

/// What lets a process pass the modes of files: a VM of root's reaches brokers, sockets and disks of other users by it.
/// Kept where Landlock says which files there are; without it, modes are all that bounds the process.
const PAST_MODES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// What decides on the capabilities of threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Whether the process opens devices again.
    pub(super) opens_devices: bool,
    /// Whether there are rules for files.
    pub(super) has_file_rules: bool,
}

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

/// Drops the capabilities of the calling thread that its role has no use for.
///
/// # Errors
/// What the kernel answers.
pub(super) fn drop_unneeded(role: Role, kept: Kept) -> io::Result<()> {
    let kept = needed(role, kept) & capabilities(None)?.permitted;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// What a thread of this role may need, if it has it.
fn needed(role: Role, kept: Kept) -> CapabilitySet {
    let own = match role {
        Role::Broker | Role::BrokerSession => OF_A_BROKER,
        Role::Net if kept.opens_devices => OF_A_TAP,
        _ => CapabilitySet::empty(),
    };
    // These open and remove no file, and connect to none, by a path.
    let is_without_paths =
        matches!(role, Role::Vcpu | Role::Disk | Role::Footprint | Role::BrokerSession);
    if kept.has_file_rules && !is_without_paths { own | PAST_MODES } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::thread::ROLES;

    #[test]
    fn modes_of_files_are_passed_only_under_rules_for_files() {
        for role in ROLES {
            for opens_devices in [false, true] {
                let kept = Kept { opens_devices, has_file_rules: false };
                assert!(!needed(role, kept).intersects(PAST_MODES), "{role:?}");
                let ruled = needed(role, Kept { has_file_rules: true, ..kept });
                assert_eq!(ruled - PAST_MODES, needed(role, kept), "{role:?}");
            }
        }
        let ruled = Kept { opens_devices: false, has_file_rules: true };
        assert_eq!(needed(Role::Vcpu, ruled), CapabilitySet::empty());
        assert_eq!(needed(Role::Main, ruled), PAST_MODES);
    }
}
