//! The processes around a VM in a jail: one outside that was started, and process 1 inside.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::exit;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_open, setrlimit, setsid, umask,
};
use rustix::thread::CapabilitySet;

use super::cgroup::{Entrance, Group};
use super::namespaces::Network;
use super::process::{Forked, OneThread, fork};
use super::root::Root;
use super::{Access, Error, Folder, JailArgs, Seen, User, devices, namespaces, process, user};
use crate::exit_status::ExitStatus;
use crate::sys::signals::Signals;

/// What process 1 of a jail needs: to forward signals to another user's process and to end it, and to remove a control group
/// at the root of the hierarchy, whose mode lets no user write.
const OF_INIT: CapabilitySet = CapabilitySet::KILL.union(CapabilitySet::DAC_OVERRIDE);

/// A jail that is to be made: all of it that can be checked before has been.
#[derive(Debug)]
pub struct Plan {
    folder: Folder,
    user: User,
    network: Option<Network>,
    group: Group,
    inherited: Vec<RawFd>,
    seen: Vec<Seen>,
    kept: Vec<RawFd>,
    locks_memory: bool,
}

impl Plan {
    /// The jail that flags ask for, in this folder, for a VM of this name. To be called before this process has opened
    /// anything. Nothing is made.
    ///
    /// # Errors
    /// When there can be no such jail.
    pub fn new(args: &JailArgs, folder: &std::path::Path, name: String) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let inherited = process::inherited().map_err(Error::Process)?;
        let user =
            User { uid: args.jail_uid.unwrap_or_default(), gid: args.jail_gid.unwrap_or_default() };
        // -1 is none for setresuid(2).
        if [user.uid, user.gid].iter().any(|id| [0, u32::MAX].contains(id)) {
            return Err(Error::RootUser);
        }
        let folder = Folder::open(folder, user)?;
        let network = args.jail_netns.as_deref().map(Network::open).transpose()?;
        let parent = args.jail_parent_cgroup.as_deref();
        let group = Group::of_a_vm(parent, name, args.jail_cgroup.clone())?;
        let (seen, kept) = (super::seen_of_the_kernel(), Vec::new());
        Ok(Self { folder, user, network, group, inherited, seen, kept, locks_memory: false })
    }

    /// The jail's folder, a path from the root.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Whether the VM is in a network namespace that was named.
    pub fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// Shows something of the host in the jail, and says where.
    ///
    /// # Errors
    /// When it is not there, is reached by a link in the jail's folder that leads out of it, or has that folder in it.
    pub fn show(&mut self, path: &std::path::Path, access: Access) -> Result<PathBuf, Error> {
        let seen = Seen::new(path, access)?;
        seen.check(self.folder.path())?;
        let at = seen.at().to_owned();
        match self.seen.iter_mut().find(|known| known.at() == at) {
            // Of two uses the one that writes counts.
            Some(known) if access == Access::Write => *known = seen,
            Some(_) => {}
            None => self.seen.push(seen),
        }
        Ok(at)
    }

    /// Whether the jail's user can change a folder: it is its own, or in the jail's folder.
    pub fn is_of_its_user(&self, folder: &std::path::Path) -> bool {
        let owner = |path: &std::path::Path| std::fs::metadata(path).map(|it| it.uid());
        folder.starts_with(self.folder.path())
            || owner(folder).is_ok_and(|owner| owner == self.user.uid)
    }

    /// Has the VM keep a descriptor that this process was started with.
    pub fn keep(&mut self, descriptor: RawFd) {
        self.kept.push(descriptor);
    }

    /// Lets the VM keep all its memory from swap.
    pub fn lock_memory(&mut self) {
        self.locks_memory = true;
    }
}

/// Which of its processes [`enter`] has returned in.
#[derive(Debug)]
pub enum Side {
    /// The VM's, in the jail.
    Inside,
    /// The one that was started: the VM has ended, with this status, and nothing of the jail is left.
    Outside(u8),
}

/// Makes a jail, and a process in it. `publish` is called outside when there is a process for the VM, and what it returns is
/// dropped when the VM has ended.
///
/// # Errors
/// When there can be no jail, or `publish` fails. Nothing is left then. An error of the process inside is returned there.
pub fn enter<T, E: From<Error>>(
    plan: Plan,
    publish: impl FnOnce() -> Result<T, E>,
) -> Result<Side, E> {
    let failed = |error| E::from(Error::Process(error));
    let one = OneThread::new().map_err(failed)?;
    let signals = Signals::block().map_err(failed)?;
    let (life, mut alive) = std::io::pipe().map_err(failed)?;
    namespaces::new_pids()?;
    match fork(one).map_err(failed)? {
        Forked::Child => {
            // The pipe ends with the supervisor.
            drop(alive);
            init(plan, one, signals, life)?;
            Ok(Side::Inside)
        }
        Forked::Parent(init) => {
            drop(life);
            let Plan { group, .. } = plan;
            let published = match publish() {
                Ok(published) => published,
                Err(error) => {
                    drop(alive);
                    process::wait_for(init);
                    return Err(error);
                }
            };
            let status = supervise_init(init, &signals, &mut alive);
            group.remove();
            drop(published);
            Ok(Side::Outside(status))
        }
    }
}

fn supervise_init(init: Pid, signals: &Signals, alive: &mut PipeWriter) -> u8 {
    // It has ended where it does not read.
    let _ = alive.write_all(b"1");
    watch(init, signals, None);
    process::wait_for(init)
}

/// Process 1 of the jail. It returns in the process that it starts for the VM alone, or with an error.
fn init(plan: Plan, one: OneThread, signals: Signals, mut life: PipeReader) -> Result<(), Error> {
    // The VM is not to have the terminal of the session that has started it (TIOCSTI). A copy leads no group, so that it
    // cannot fail.
    let _ = setsid();
    // Without an answer the supervisor has gone, or has nothing to run.
    if life.read_exact(&mut [0]).is_err() {
        exit((ExitStatus::Success as u8).into());
    }
    let Plan { folder, user, network, group, inherited, mut seen, kept, locks_memory } = plan;
    let mask = umask(Mode::from_raw_mode(0o022));
    let entrance = group.make()?;
    // For the limits of the group, which the VM reads.
    seen.extend(Seen::new(&group.folder(), Access::Read));
    namespaces::enter(network.as_ref())?;
    let nodes = devices::of_the_host();
    Root { folder: &folder, user, nodes, seen }.enter()?;
    umask(mask);
    drop(network);
    match fork(one).map_err(Error::Process)? {
        Forked::Child => {
            // The folder is locked as long as process 1 has it, and no longer by what the VM does.
            drop((signals, life, group, folder));
            process::close(inherited.into_iter().filter(|number| !kept.contains(number)));
            become_vm(user, &entrance, locks_memory)
        }
        Forked::Parent(vm) => {
            drop(entrance);
            user::forget_capabilities().map_err(Error::User)?;
            user::keep(OF_INIT).map_err(Error::User)?;
            watch(vm, &signals, Some(&life));
            let status = process::wait_for(vm);
            group.remove();
            exit(status.into());
        }
    }
}

fn become_vm(user: User, entrance: &Entrance, locks_memory: bool) -> Result<(), Error> {
    entrance.enter().map_err(Error::User)?;
    if locks_memory {
        let all = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Memlock, all)
            .map_err(|errno| Error::Limit { what: "memlock", source: errno.into() })?;
    }
    user.become_it().map_err(Error::User)
}

/// Forwards signals to a process until it has ended, and ends it when the pipe does.
fn watch(pid: Pid, signals: &Signals, life: Option<&PipeReader>) {
    // It is not waited for yet, so that the number is still its own.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    loop {
        let fd = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![fd(process.as_fd()), fd(signals.as_fd())];
        fds.extend(life.map(|life| fd(life.as_fd())));
        // An interrupted wait is made again.
        let _ = poll(&mut fds, None);
        let has = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        if has(0) {
            return;
        }
        if let Some(signal) = has(1).then(|| signals.take()).flatten().and_then(signal) {
            let _ = kill_process(pid, signal);
        }
        if has(2) {
            let _ = kill_process(pid, Signal::KILL);
            return;
        }
    }
}

/// The signal that ends a process with this status.
fn signal(status: ExitStatus) -> Option<Signal> {
    match status {
        ExitStatus::Hangup => Some(Signal::HUP),
        ExitStatus::Interrupted => Some(Signal::INT),
        ExitStatus::Quit => Some(Signal::QUIT),
        ExitStatus::Terminated => Some(Signal::TERM),
        _ => None,
    }
}
