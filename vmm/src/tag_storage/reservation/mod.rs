//! A VM's tag storage: reserved at once or as its memory is touched, and all that there is to say of it.

pub(crate) mod backend;
pub(crate) mod chunk_table;
pub(crate) mod demand;
pub(crate) mod exhaustion;
pub(crate) mod source;
mod status;
pub(crate) mod strict;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::sync::Arc;

use arch::layout::CHUNK;
use arch::range::MemoryRange;
use arch::units::Bytes;
use rustix::process::Pid;
use serde_json::{Value, json};
use thiserror::Error;
use vm_memory::GuestAddress;

use super::broker::Client;
use super::chunk::ChunkIndex;
use super::placement::borrower;
use super::placement::policy::LendingError;
use super::pool::counters::Counters;
use super::pool::lease::{chunks_of, tags_of};
use crate::memory::{DiscardHooks, GuestRam, NoHooks};
use crate::spec::{ReservationMode, TagStorageSpec};
use crate::tag_storage::supply::SupplyName;
pub use backend::{Answer, PoolClient, PoolClientError};
pub use demand::{ChunkLoader, Demand, Error as DemandError, LoaderReservation, Unreserved};
pub use exhaustion::ExhaustionStatus;
use source::Source;
pub use source::{Error as SourceError, pool_client_for};
pub use status::Status;
pub use strict::Strict;

pub use backend::{Embedded, PoolClientReport};
pub use demand::{DiscardHandler, Exhaustion, FaultCounters};
pub use exhaustion::ExhaustionSnapshot;

/// Why a VM has no tag storage, and so is refused.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no pool for it.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// There is not enough.
    #[error(
        "the VM '{vm}' needs {wanted} of tag storage for {memory} of memory {when}, and is refused"
    )]
    Refused {
        /// The VM.
        vm: String,
        /// What it needs.
        wanted: Bytes,
        /// For what.
        memory: Bytes,
        /// By when.
        when: &'static str,
        /// Why it cannot have it.
        #[source]
        source: PoolClientError,
    },
    /// Its memory cannot be kept where it may be.
    #[error("the memory of a guest with MTE cannot be kept out of tag storage")]
    Lending(#[from] LendingError),
    /// Memory cannot be reserved for on demand.
    #[error(transparent)]
    Demand(#[from] DemandError),
    /// There is no event for the main thread.
    #[error("the host gives no descriptor for events of tag storage: look at ulimit -n")]
    ExhaustionStatus(#[source] io::Error),
}

/// The tag storage of one VM. Dropped, it is free.
pub struct TagReservation {
    hold: Arc<dyn PoolClient>,
    broker: Option<Arc<Client>>,
    spec: TagStorageSpec,
    vm: String,
    memory: Bytes,
    notices: Arc<ExhaustionStatus>,
    kind: Kind,
}

enum Kind {
    Strict(Strict),
    Demand(Demand),
}

impl TagReservation {
    /// Reserves for this memory as the description says, or sees to it that it is when it is touched.
    /// Nothing has touched the memory so far.
    ///
    /// # Errors
    /// When there is no tag storage for the VM, or the host cannot tell of touches.
    pub fn new(spec: &TagStorageSpec, vm: &str, ram: &GuestRam) -> Result<Self, Error> {
        let Source { hold, broker } = pool_client_for(spec, vm)?;
        borrower::keep_off(hold.report().supply, ram)?;
        let memory = ram.range().size;
        let notices = Arc::new(ExhaustionStatus::new().map_err(Error::ExhaustionStatus)?);
        let kind = match spec.when {
            ReservationMode::Strict => {
                let strict = Strict::reserve(Arc::clone(&hold), memory);
                Kind::Strict(strict.map_err(|source| Error::Refused {
                    vm: vm.to_owned(),
                    wanted: tags_of(chunks_of(memory)),
                    memory,
                    when: "before it starts (--tag-storage strict)",
                    source,
                })?)
            }
            ReservationMode::Demand { .. } => Kind::Demand(Demand::start(
                ram.clone(),
                Arc::clone(&hold),
                spec.when.deadline(),
                notices.clone(),
            )?),
        };
        Ok(Self { hold, broker, spec: spec.clone(), vm: vm.to_owned(), memory, notices, kind })
    }

    /// The VMM has written what the guest starts with: see [`Demand::finish_loading`].
    ///
    /// # Errors
    /// When there was no tag storage for all of that.
    pub fn finish_loading(&self) -> Result<(), Error> {
        let Kind::Demand(demand) = &self.kind else { return Ok(()) };
        demand.finish_loading().map_err(|source| Error::Refused {
            vm: self.vm.clone(),
            wanted: tags_of(demand.reserved().saturating_add(1)),
            memory: self.memory,
            when: "at least, to be loaded",
            source,
        })
    }

    /// Reserves on demand for what guest memory shares with a template or a boot image, of which no touch is caught: for each
    /// chunk that has some of it.
    ///
    /// # Errors
    /// When there is no tag storage for all of that.
    pub fn reserve_for_shared(&self, ram: &GuestRam) -> Result<(), Error> {
        let Kind::Demand(demand) = &self.kind else { return Ok(()) };
        let base = ram.range().base.0;
        let is_shared = |chunk: &ChunkIndex| {
            let at = GuestAddress(base + chunk.0 * CHUNK.get());
            ram.is_shared(MemoryRange::new(at, CHUNK))
        };
        let chunks: Vec<_> = (0..demand.chunks()).map(ChunkIndex).filter(is_shared).collect();
        demand.reserve_now(&chunks).map_err(|source| Error::Refused {
            vm: self.vm.clone(),
            wanted: tags_of(chunks.len() as u64),
            memory: self.memory,
            when: "at least, for what it shares with its template or boot image",
            source,
        })
    }

    /// Leaves chunks to what loads them: see [`Demand::leave_to_loader`]. `None` where all of memory is reserved for.
    ///
    /// # Errors
    /// As there.
    pub fn leave_to_loader(
        &self,
        chunks: impl Iterator<Item = ChunkIndex>,
        loader: Arc<dyn ChunkLoader>,
    ) -> Result<Option<LoaderReservation>, Error> {
        match &self.kind {
            Kind::Strict(_) => Ok(None),
            Kind::Demand(demand) => Ok(Some(demand.leave_to_loader(chunks, loader)?)),
        }
    }

    /// What frees tag storage as the memory goes back to the host.
    pub fn discard_hooks(&self) -> Box<dyn DiscardHooks> {
        match &self.kind {
            Kind::Strict(_) => Box::new(NoHooks),
            Kind::Demand(demand) => Box::new(demand.releaser()),
        }
    }

    /// How tag storage is reserved.
    pub fn spec(&self) -> &TagStorageSpec {
        &self.spec
    }

    /// Whether tag storage is freed as memory goes back.
    pub fn is_on_demand(&self) -> bool {
        matches!(self.kind, Kind::Demand(_))
    }

    /// Whether the tag storage is the memory of a NUMA node, off which guest memory is kept.
    pub fn is_on_node(&self) -> bool {
        matches!(self.hold.report().supply, SupplyName::Node(_))
    }

    /// What the main thread watches.
    pub fn notices(&self) -> Arc<ExhaustionStatus> {
        Arc::clone(&self.notices)
    }

    /// How many chunks are touched and wait for tag storage.
    pub fn waiting(&self) -> u64 {
        match &self.kind {
            Kind::Strict(_) => 0,
            Kind::Demand(demand) => demand.waiting(),
        }
    }

    /// For how many chunks that are not touched there is tag storage on demand.
    pub fn ahead(&self) -> u64 {
        match &self.kind {
            Kind::Strict(_) => 0,
            Kind::Demand(demand) => demand.ahead(),
        }
    }

    /// Others may lack tag storage: see [`Demand::yield_ahead`].
    pub fn yield_ahead(&self) {
        if let Kind::Demand(demand) = &self.kind {
            demand.yield_ahead();
        }
    }

    /// Whether this thread waits for tag storage, and cannot leave the guest or a system call before it has
    /// some.
    pub fn is_waiting(&self, thread: Pid) -> bool {
        match &self.kind {
            Kind::Strict(_) => false,
            Kind::Demand(demand) => demand.is_waiting(thread),
        }
    }

    /// There may be tag storage again: touches that wait are tried at once.
    pub fn retry(&self) {
        if let Kind::Demand(demand) = &self.kind {
            demand.retry();
        }
    }

    /// Its broker, if it has one: the main thread handles its events.
    pub fn broker(&self) -> Option<&Arc<Client>> {
        self.broker.as_ref()
    }

    /// Releases all threads that wait for tag storage: see [`Demand::stop`]. A broker is asked for nothing any
    /// more. What is reserved stays so until this is dropped: the guest's memory is still there.
    pub fn stop(&mut self) {
        if let Some(broker) = &self.broker {
            // First, for the fault thread may be waiting for its answer.
            broker.give_up();
        }
        if let Kind::Demand(demand) = &mut self.kind {
            demand.stop();
        }
    }

    /// What is reserved at this moment.
    pub fn status(&self) -> Status {
        let report = self.hold.report();
        let (chunks, populated, ahead) = match &self.kind {
            Kind::Strict(strict) => (strict.chunks(), None, None),
            Kind::Demand(demand) => {
                let ahead = demand.ahead();
                let populated = demand.reserved().saturating_sub(ahead);
                (demand.chunks(), Some(populated), Some(ahead))
            }
        };
        Status {
            mode: self.spec.when,
            supply: report.supply,
            capacity: report.capacity,
            reserved: report.reserved,
            min: self.spec.min,
            max: Some(self.spec.max).filter(|max| *max < Bytes::MAX),
            chunks,
            populated,
            ahead,
            waiting: self.waiting(),
            exhaustion: self.notices.look(),
            counters: self.counters(report.counters),
        }
    }

    /// What is counted, each with its unit at the end of its name.
    pub fn metrics(&self) -> Value {
        let report = self.hold.report();
        json!({
            "reserved_bytes": report.reserved.get(),
            "capacity_bytes": report.capacity.get(),
            "supply": report.supply.to_string(),
            "waiting_chunks": self.waiting(),
            "ahead_chunks": self.ahead(),
            "events": self.counters(report.counters),
        })
    }

    fn counters(&self, pool: Option<Counters>) -> Value {
        let mut counters = match &self.kind {
            Kind::Strict(_) => json!({}),
            Kind::Demand(demand) => {
                let demand = demand.counters();
                json!({
                    "touches_total": demand.touches.get(),
                    "populated_total": demand.populated.get(),
                    "ahead_total": demand.ahead.get(),
                    "taken_back_total": demand.taken_back.get(),
                    "requests_total": demand.requests.get(),
                    "freed_total": demand.freed.get(),
                    "exhausted_total": demand.exhausted.get(),
                    "expired_total": demand.expired.get(),
                    "filled_total": demand.filled.get(),
                })
            }
        };
        if let Some(pool) = pool {
            for (name, count) in pool.named() {
                counters[format!("{name}_total")] = count.into();
            }
        }
        counters
    }
}

#[cfg(test)]
mod tests;
