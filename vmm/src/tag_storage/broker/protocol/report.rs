//! What there is to say about a broker.

use serde::{Deserialize, Serialize};

use crate::tag_storage::pool::{LeaseId, PoolReport};
use crate::tag_storage::supply::node::NodeReport;

/// A broker at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct BrokerReport {
    /// The broker's process.
    pub pid: u32,
    /// Who says that the pool has this capacity.
    pub capacity_source: String,
    /// What becomes of tag storage that is not needed for tags.
    pub lend: String,
    /// Its pool.
    pub pool: PoolReport,
    /// The NUMA node that is its supply, if it is one.
    pub node: Option<NodeReport>,
    /// The process behind each lease.
    pub holders: Vec<Holder>,
    /// Processes that may live in what is lent.
    pub borrowers: Vec<u32>,
    /// What its clients do.
    pub traffic: Traffic,
}

/// Who holds a lease.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The lease.
    pub lease: LeaseId,
    /// The process that opened it, as the kernel says; 0 where that is in another PID namespace.
    pub pid: u32,
}

/// What the clients do, since the broker was started.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Connections at this moment.
    pub connections: u64,
    /// The most there can be.
    pub connections_max: u64,
    /// Connections turned away because there were as many as there can be.
    pub turned_away: u64,
    /// Connections ended because what came was no message, or not one for that moment.
    pub violations: u64,
    /// Slots that a client wanted to free without holding them.
    pub foreign_frees: u64,
    /// Slots that clients brought along from a broker before this one.
    pub adopted: u64,
    /// Requests to give memory back.
    pub give_backs: u64,
    /// Notices that there is tag storage again.
    pub reliefs: u64,
    /// Notices that a client did not take.
    pub notices_lost: u64,
}

impl BrokerReport {
    /// The process that holds a lease.
    pub fn pid_of(&self, lease: LeaseId) -> Option<u32> {
        self.holders.iter().find(|holder| holder.lease == lease).map(|holder| holder.pid)
    }
}
