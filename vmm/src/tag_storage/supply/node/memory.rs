//! The node's memory, as far as this process can have it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arch::units::Bytes;

use super::usage::Usage;
use crate::sys::numa::{self, BATCH, LockedMapping, MemPolicy, NodeSet};

/// How long a processor's list of free pages may take to be given up: three of the kernel's rounds of
/// statistics (vm.stat_interval, one second) after its last use, and one more.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the node is looked at during that time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What there is to do with a node's memory. Tests have their own.
pub(crate) trait Memory: Send + Sync {
    /// How much is in use. `exact` takes longer.
    fn usage(&self, exact: bool) -> io::Result<Usage>;

    /// Takes pages of the node for a part of the storage. Says whether the node had them; if not, none is
    /// taken.
    fn take(&self, part: &Range<Bytes>) -> io::Result<bool>;

    /// Gives back what was taken.
    fn release(&self, part: &Range<Bytes>) -> io::Result<()>;

    /// After pages that are free could not be taken: waits until this many more may be had, as long as that is
    /// worth while. Returns whether to try again. No lock is held.
    fn wait(&self, pages: u64) -> io::Result<bool>;

    /// How long free pages may stay out of reach.
    fn patience(&self) -> Duration;

    /// Other nodes, those with the most free memory first.
    fn refuges(&self) -> Vec<u32>;
}

/// The memory of a node of this host.
///
/// Pages are *preferred* from the node, never bound to it: a request that is bound to a node without memory
/// ends in the OOM killer, which may take anybody. One that prefers the node gets another's page instead when
/// the node is down to its low watermark. That page is then moved to the node, down to the minimum
/// watermark, which never wakes the OOM killer either (mm/page_alloc.c, __alloc_pages_may_oom:
/// __GFP_THISNODE); if it cannot, all are given back.
pub(crate) struct HostMemory {
    node: u32,
    others: BTreeSet<u32>,
    held: LockedMapping,
    page: u64,
    /// When waiting was last in vain.
    vain: Mutex<Option<Instant>>,
}

impl HostMemory {
    pub(crate) fn new(
        node: u32,
        others: BTreeSet<u32>,
        size: Bytes,
        huge: bool,
    ) -> io::Result<Self> {
        let held = LockedMapping::new(size, &MemPolicy::First(NodeSet::new([node])), huge)?;
        // A kernel that cannot give back what is locked says so here.
        held.discard(&(Bytes::ZERO..size))?;
        let page = rustix::param::page_size() as u64;
        Ok(Self { node, others, held, page, vain: Mutex::new(None) })
    }

    /// Whether all pages of a part are on the node, or moved there.
    fn is_here(&self, part: &Range<Bytes>) -> io::Result<bool> {
        let own = rustix::process::getpid();
        let pages: Vec<u64> = self.held.addresses(part).step_by(self.page as usize).collect();
        for batch in pages.chunks(BATCH) {
            let mut elsewhere = self.elsewhere(batch)?;
            if elsewhere.is_empty() {
                continue;
            }
            match numa::relocate(own, &elsewhere, self.node) {
                Err(error) if error.raw_os_error() != Some(libc::ENOMEM) => return Err(error),
                _ => elsewhere = self.elsewhere(batch)?,
            }
            if !elsewhere.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn vain(&self) -> MutexGuard<'_, Option<Instant>> {
        self.vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elsewhere(&self, pages: &[u64]) -> io::Result<Vec<u64>> {
        let places = numa::locate(rustix::process::getpid(), pages)?;
        let away = pages.iter().zip(places);
        let away = away.filter(|(_, place)| i64::from(*place) != i64::from(self.node));
        Ok(away.map(|(page, _)| *page).collect())
    }
}

impl Memory for HostMemory {
    fn usage(&self, exact: bool) -> io::Result<Usage> {
        Usage::read(self.node, exact)
    }

    fn take(&self, part: &Range<Bytes>) -> io::Result<bool> {
        let taken = self.held.populate(part).and_then(|()| self.is_here(part));
        if !matches!(taken, Ok(true)) {
            self.held.discard(part)?;
        }
        taken
    }

    fn release(&self, part: &Range<Bytes>) -> io::Result<()> {
        self.held.discard(part)
    }

    /// Pages may be free, but on the list of a processor and of no use to this request: in huge pages, or kept
    /// for the kernel. They come back when that processor has not used its list for a while (mm/vmstat.c,
    /// refresh_cpu_vm_stats); nothing that a program may do makes that sooner.
    fn wait(&self, pages: u64) -> io::Result<bool> {
        let start = Instant::now();
        if self.vain().is_some_and(|last| start.duration_since(last) < PATIENCE) {
            return Ok(false);
        }
        let first = self.usage(false)?;
        let mut usage = first;
        while start.elapsed() < PATIENCE {
            if usage.free < usage.kept.saturating_add(pages) {
                return Ok(false);
            }
            // Not sooner: each try is a use of the list, and puts off the moment it waits for.
            if usage.ready.saturating_add(pages) <= first.ready {
                return Ok(true);
            }
            std::thread::sleep(LOOK_EVERY);
            usage = self.usage(false)?;
        }
        *self.vain() = Some(Instant::now());
        Ok(false)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn refuges(&self) -> Vec<u32> {
        let room = |node: &u32| {
            Usage::read(*node, false).map_or(0, |usage| usage.free.saturating_sub(usage.kept))
        };
        let mut nodes: Vec<(u64, u32)> = self
            .others
            .iter()
            .map(|node| (room(node), *node))
            .filter(|(room, _)| *room > 0)
            .collect();
        nodes.sort_by(|a, b| b.cmp(a));
        nodes.into_iter().map(|(_, node)| node).collect()
    }
}
