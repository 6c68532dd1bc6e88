//! What all connections of a broker share.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::borrowers::BorrowerConnections;
use super::pressure::{Number, PressureNotifier};
use crate::metrics::Counter;
use crate::tag_storage::broker::protocol::report::{BrokerReport, Traffic};
use crate::tag_storage::broker::protocol::wire::Terms;
use crate::tag_storage::pool::Pool;
use crate::tag_storage::supply::Node;

/// How long pages that would not move are left alone, and tried again when somebody lacks them: direct I/O has
/// ended by then, as a rule.
const RETRY_PINNED: Duration = Duration::from_secs(10);

/// What a broker serves.
pub struct ServerResources {
    /// The pool.
    pub pool: Pool,
    /// What its clients are told of it.
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
    /// So that they can be ended.
    connections: Mutex<BTreeMap<Number, Arc<OwnedFd>>>,
}

impl ServerState {
    pub(crate) fn new(resources: ServerResources, places: usize) -> Self {
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
            connections: Mutex::default(),
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&self, now: Instant) {
        self.notices.tick(&self.pool, now);
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

    /// Has pages that would not move tried again by whoever reserves next, unless that was so a moment ago.
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
