//! What all connections of a broker share.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::borrowers::BorrowerConnections;
use super::grace::Grace;
use super::pressure::{Number, PressureNotifier};
use crate::metrics::Counter;
use crate::tag_storage::broker::protocol::report::{BrokerReport, Traffic};
use crate::tag_storage::broker::protocol::wire::Terms;
use crate::tag_storage::pool::Pool;
use crate::tag_storage::supply::Node;

/// How long pages that would not move are left alone, and tried again when a VM lacks them: direct I/O has
/// ended by then, as a rule.
const RETRY_PINNED: Duration = Duration::from_secs(10);

/// What a broker serves.
pub struct ServerResources {
    /// The pool.
    pub pool: Pool,
    /// What its clients are sent about it.
    pub terms: Terms,
    /// Who says that it has this capacity.
    pub capacity_source: String,
    /// The node that its supply is, if it is one.
    pub node: Option<Arc<Node>>,
}

/// What all connections of a broker share.
pub(crate) struct ServerState {
    pub pool: Pool,
    pub terms: Terms,
    pub capacity_source: String,
    pub borrowers: BorrowerConnections,
    node: Option<Arc<Node>>,
    pub notices: PressureNotifier,
    pub violations: Counter,
    pub foreign_frees: Counter,
    pub adopted: Counter,
    /// Connections that a report is being sent to.
    pub readers: AtomicUsize,
    pub turned_away: Counter,
    /// The most connections.
    pub places: usize,
    /// When pages that would not move were last to be tried again.
    retried: Mutex<Option<Instant>>,
    /// Whether there is a grace period: the usual path takes no lock.
    is_recovering: AtomicBool,
    grace: Mutex<Option<Grace>>,
    /// So that they can be ended.
    connections: Mutex<BTreeMap<Number, Arc<OwnedFd>>>,
}

impl ServerState {
    pub(crate) fn new(resources: ServerResources, places: usize, grace: Option<Grace>) -> Self {
        let ServerResources { pool, terms, capacity_source, node } = resources;
        let borrowers = node.as_ref().map(|node| BorrowerConnections::of(node.borrowers()));
        Self {
            pool,
            terms,
            capacity_source,
            borrowers: borrowers.unwrap_or_default(),
            node,
            notices: PressureNotifier::default(),
            violations: Counter::default(),
            foreign_frees: Counter::default(),
            adopted: Counter::default(),
            readers: AtomicUsize::new(0),
            turned_away: Counter::default(),
            places,
            retried: Mutex::default(),
            is_recovering: AtomicBool::new(grace.is_some()),
            grace: Mutex::new(grace),
            connections: Mutex::default(),
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&self, now: Instant) {
        self.is_recovering(now);
        self.notices.tick(&self.pool, now);
    }

    /// Whether only VMs that come back are served.
    pub(crate) fn is_recovering(&self, now: Instant) -> bool {
        if !self.is_recovering.load(Ordering::Relaxed) {
            return false;
        }
        let mut grace = self.grace();
        if grace.is_some_and(|grace| !grace.is_over(now)) {
            return true;
        }
        *grace = None;
        self.is_recovering.store(false, Ordering::Relaxed);
        drop(grace);
        self.notices.freed(&self.pool);
        false
    }

    /// A VM has come back with something.
    pub(crate) fn has_adopted(&self, now: Instant) {
        if self.is_recovering.load(Ordering::Relaxed) {
            self.grace().iter_mut().for_each(|grace| grace.adopted(now));
        }
    }

    fn grace(&self) -> MutexGuard<'_, Option<Grace>> {
        self.grace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the leases of connections whose client has hung up and whose session is still at work for it. A
    /// client that gave up waiting and comes back finds what it holds free for it to adopt.
    pub(crate) fn close_gone(&self) {
        let connections: Vec<(Number, Arc<OwnedFd>)> =
            self.connections().iter().map(|(number, socket)| (*number, socket.clone())).collect();
        // A hang-up is reported whatever is asked for.
        let mut fds: Vec<PollFd<'_>> = connections
            .iter()
            .map(|(_, socket)| PollFd::new(socket.as_ref(), PollFlags::empty()))
            .collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
            return;
        }
        for ((number, _), fd) in connections.iter().zip(&fds) {
            let lease =
                fd.revents().contains(PollFlags::HUP).then(|| self.notices.lease_of(*number));
            if let Some(lease) = lease.flatten() {
                // It fails where the session was faster.
                let _ = self.pool.close_lease(lease);
            }
        }
    }

    pub(crate) fn report(&self) -> BrokerReport {
        self.pool.follow_at_once();
        // In this order a lease is never without its process because it came between.
        let pool = self.pool.snapshot();
        BrokerReport {
            pid: std::process::id(),
            capacity_source: self.capacity_source.clone(),
            lend: self.terms.lend.to_string(),
            pool,
            node: self.node.as_ref().map(|node| node.report()),
            holders: self.notices.holders(),
            borrowers: self.borrowers.pids(),
            traffic: Traffic {
                connections: self.connections().len() as u64,
                connections_max: self.places as u64,
                turned_away: self.turned_away.get(),
                violations: self.violations.get(),
                foreign_frees: self.foreign_frees.get(),
                adopted: self.adopted.get(),
                give_backs: self.notices.give_backs.get(),
                reliefs: self.notices.reliefs.get(),
                notices_lost: self.notices.lost.get(),
            },
        }
    }

    /// Has pages that would not move tried again by the next request, unless that was so a moment ago.
    /// Returns whether there are any.
    pub(crate) fn retry_pinned(&self) -> bool {
        let mut retried = self.retried.lock().unwrap_or_else(PoisonError::into_inner);
        if retried.is_some_and(|at| at.elapsed() < RETRY_PINNED) {
            return false;
        }
        *retried = Some(Instant::now());
        self.pool.retry_pinned() > 0
    }

    pub(crate) fn connections(&self) -> MutexGuard<'_, BTreeMap<Number, Arc<OwnedFd>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
