//! The system calls for memory on NUMA nodes, and nothing else: where memory is to be, where it is, and
//! moving it.
//!
//! None of them changes the contents of memory that anybody uses, so that they are safe to call; what holds
//! memory is [`LockedMapping`].
//!
//! # References
//! mbind(2), set_mempolicy(2), move_pages(2), madvise(2); Linux include/uapi/linux/mempolicy.h,
//! mm/mempolicy.c, mm/migrate.c
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use arch::units::Bytes;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::Pid;

/// Nodes that a [`NodeSet`] has room for: the most that Linux can be built for (MAX_NUMNODES).
pub(crate) const MAX_NODES: u32 = 1024;

/// Pages that one call of move_pages is for: a huge page's worth where pages have 4 KiB.
pub(crate) const BATCH: usize = 512;

/// The kernel wants one bit more than there are: mm/mempolicy.c, get_nodes.
const BITS: libc::c_ulong = MAX_NODES as libc::c_ulong + 1;
const WORD: u32 = libc::c_ulong::BITS;

/// `MPOL_PREFERRED_MANY`, since Linux 5.15.
const PREFERRED_MANY: libc::c_int = 5;
/// `MPOL_MF_STRICT` and `MPOL_MF_MOVE`.
const STRICT: libc::c_uint = 1;
const MOVE: libc::c_uint = 1 << 1;
/// `MPOL_F_ADDR`.
const OF_ADDRESS: libc::c_ulong = 1 << 1;
/// `MADV_POPULATE_WRITE`, since Linux 5.14, and `MADV_DONTNEED_LOCKED`, since 5.18.
const POPULATE_WRITE: libc::c_int = 23;
const DISCARD_LOCKED: libc::c_int = 24;

/// A set of NUMA nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeSet([libc::c_ulong; (MAX_NODES / WORD) as usize + 1]);

impl NodeSet {
    pub(crate) fn new(nodes: impl IntoIterator<Item = u32>) -> Self {
        let mut words = [0; (MAX_NODES / WORD) as usize + 1];
        for node in nodes.into_iter().filter(|node| *node < MAX_NODES) {
            words[(node / WORD) as usize] |= 1 << (node % WORD);
        }
        Self(words)
    }
}

/// Where memory is to be taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemPolicy {
    /// This node while it has more than its low watermark, then any.
    First(NodeSet),
    /// These nodes while they have anything, then any.
    Prefer(NodeSet),
    /// These nodes or none.
    Bind(NodeSet),
}

impl MemPolicy {
    fn parts(&self) -> (libc::c_int, &NodeSet) {
        match self {
            Self::First(nodes) => (libc::MPOL_PREFERRED, nodes),
            Self::Prefer(nodes) => (PREFERRED_MANY, nodes),
            Self::Bind(nodes) => (libc::MPOL_BIND, nodes),
        }
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets where the pages of these addresses are to be taken from. Pages that are there stay, unless they
/// shall `follow`.
///
/// # Errors
/// What the host answers; EIO when pages could not follow. The rule holds even then.
pub(crate) fn set_rule(addresses: Range<u64>, rule: &MemPolicy, follow: bool) -> io::Result<()> {
    let (mode, nodes) = rule.parts();
    bind(addresses, mode, nodes, if follow { STRICT | MOVE } else { 0 })
}

fn bind(
    addresses: Range<u64>,
    mode: libc::c_int,
    nodes: &NodeSet,
    flags: libc::c_uint,
) -> io::Result<()> {
    // SAFETY: the call reads `BITS` bits, which the set has, and changes where pages are, not what is in
    // them. The kernel checks the addresses.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            addresses.start,
            addresses.end.saturating_sub(addresses.start),
            mode,
            nodes.0.as_ptr(),
            BITS,
            flags,
        )
    };
    done(result)
}

/// Where the pages of some addresses are taken from, in the kernel's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    mode: libc::c_int,
    nodes: NodeSet,
}

impl Rule {
    /// That of the mapping at this address; `None` where the kernel has no NUMA nodes.
    ///
    /// # Errors
    /// What the host answers: EFAULT where there is no mapping.
    pub(crate) fn at(address: u64) -> io::Result<Option<Self>> {
        let mut rule = Self { mode: 0, nodes: NodeSet::new([]) };
        // SAFETY: the call writes the mode, and at most `BITS` bits, which the set has. The kernel checks the address.
        let result = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut rule.mode,
                rule.nodes.0.as_mut_ptr(),
                BITS,
                address,
                OF_ADDRESS,
            )
        };
        match done(result) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(None),
            read => read.map(|()| Some(rule)),
        }
    }

    /// Whether it is that of the thread which touches them.
    pub(crate) fn is_default(&self) -> bool {
        self.mode == libc::MPOL_DEFAULT
    }

    /// Has the pages of other addresses taken from there, those that are to come.
    ///
    /// # Errors
    /// What the host answers.
    pub(crate) fn set(&self, addresses: Range<u64>) -> io::Result<()> {
        bind(addresses, self.mode, &self.nodes, 0)
    }
}

/// Sets where this thread, and every thread that it starts later, takes memory from that has no rule of its
/// own.
///
/// # Errors
/// What the host answers.
pub(crate) fn set_rule_of_thread(rule: &MemPolicy) -> io::Result<()> {
    let (mode, nodes) = rule.parts();
    // SAFETY: the call reads `BITS` bits, which the set has.
    done(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.0.as_ptr(), BITS) })
}

/// The nodes that the pages of a process are on: below zero for what is on none. For [`BATCH`] pages at most;
/// what is beyond is left out.
///
/// # Errors
/// What the host answers: ESRCH without such a process, EPERM where this user may not look.
pub(crate) fn locate(pid: Pid, pages: &[u64]) -> io::Result<Vec<i32>> {
    move_pages(pid, pages, None)
}

/// Asks the kernel to move pages of a process to a node: [`BATCH`] at most. Which of them did move is in
/// [`locate`] alone, as the kernel does not say it of all.
///
/// # Errors
/// As [`locate`]; ENOMEM when the node has no room; ENODEV when there is no such node. Some may have moved.
pub(crate) fn relocate(pid: Pid, pages: &[u64], node: u32) -> io::Result<()> {
    move_pages(pid, pages, Some(node)).map(drop)
}

/// The system call of this name: without a node it moves nothing and tells where the pages are.
fn move_pages(pid: Pid, pages: &[u64], to: Option<u32>) -> io::Result<Vec<i32>> {
    let pages = &pages[..pages.len().min(BATCH)];
    let nodes = to.map(|node| vec![node; pages.len()]);
    let flags = if to.is_some() { MOVE } else { 0 };
    // Should the kernel leave one out, it is on no node.
    let mut status = vec![-libc::ENOENT; pages.len()];
    // SAFETY: all lists have as many entries as the call's count. Moving a page keeps its contents, and only
    // pages that no other process maps are moved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid.as_raw_nonzero().get(),
            pages.len(),
            pages.as_ptr(),
            nodes.as_ref().map_or(ptr::null(), |nodes| nodes.as_ptr()),
            status.as_mut_ptr(),
            flags,
        )
    };
    done(result)?;
    Ok(status)
}

/// Addresses of this process that hold pages so that no other process has them. Nothing is ever in them.
#[derive(Debug)]
pub(crate) struct LockedMapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory without thread affinity, and no code reads or writes it.
unsafe impl Send for LockedMapping {}
// SAFETY: as above.
unsafe impl Sync for LockedMapping {}

impl LockedMapping {
    /// Addresses for `size` bytes, without pages. What pages they get is taken by `rule`, is never swapped out,
    /// and comes in huge pages only if `huge`.
    ///
    /// # Errors
    /// What the host answers; ENOMEM or EPERM when this user may not lock so much memory.
    pub(crate) fn new(size: Bytes, rule: &MemPolicy, huge: bool) -> io::Result<Self> {
        let length = usize::try_from(size.get()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), length, access, flags) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let held = Self { base, length };
        let all = Bytes::ZERO..size;
        match held.advise(&all, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE }) {
            // A kernel built without huge pages knows neither.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            done => done?,
        }
        held.advise(&all, libc::MADV_DONTFORK)?;
        held.advise(&all, libc::MADV_DONTDUMP)?;
        set_rule(held.addresses(&all), rule, false)?;
        // SAFETY: the range is the whole mapping, which is owned; locking changes nothing in it.
        let locked = unsafe { libc::mlock2(base.as_ptr().cast(), length, libc::MLOCK_ONFAULT) };
        done(locked.into())?;
        Ok(held)
    }

    /// The addresses of a part.
    pub(crate) fn addresses(&self, part: &Range<Bytes>) -> Range<u64> {
        let base = self.base.as_ptr() as u64;
        base.saturating_add(part.start.get())..base.saturating_add(part.end.get())
    }

    fn advise(&self, part: &Range<Bytes>, advice: libc::c_int) -> io::Result<()> {
        let (start, end) = (part.start.get(), part.end.get());
        if start > end || end > self.length as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the part lies in the owned mapping, as just checked, and no code uses what is in it.
        let result = unsafe {
            libc::madvise(
                self.base.as_ptr().add(start as usize).cast(),
                (end - start) as usize,
                advice,
            )
        };
        done(result.into())
    }

    /// Gives a part pages.
    ///
    /// # Errors
    /// When there are not enough; some may be there then.
    pub(crate) fn populate(&self, part: &Range<Bytes>) -> io::Result<()> {
        self.advise(part, POPULATE_WRITE)
    }

    /// Gives the pages of a part back.
    ///
    /// # Errors
    /// EINVAL for a part that is not of this mapping, and before Linux 5.18.
    pub(crate) fn discard(&self, part: &Range<Bytes>) -> io::Result<()> {
        self.advise(part, DISCARD_LOCKED)
    }
}

impl Drop for LockedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of an owned mapping: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_rule_is_taken_over_from_other_addresses() {
        let size = Bytes::mib(2);
        let held = |rule| LockedMapping::new(size, &rule, false).unwrap();
        let (from, to) =
            (held(MemPolicy::Prefer(NodeSet::new([0]))), held(MemPolicy::Bind(NodeSet::new([0]))));
        let addresses = |held: &LockedMapping| held.addresses(&(Bytes::ZERO..size));
        let rule_of = |held| Rule::at(addresses(held).start).unwrap();
        let Some(rule) = rule_of(&from) else { return };
        assert_ne!(rule_of(&to), Some(rule));

        rule.set(addresses(&to)).unwrap();

        assert_eq!(rule_of(&to), Some(rule));
        // A mapping without a rule has one too, by which a rule is taken back.
        let none = vec![0u8; 1 << 20];
        Rule::at(none.as_ptr() as u64).unwrap().unwrap().set(addresses(&to)).unwrap();
        assert_ne!(rule_of(&to), Some(rule));
    }
}
