//! Block device (section 5.2).
//!
//! The model understands requests and answers them. What is to be done to the disk it hands out:
//! [`Device::serve`] collects requests, the thread that serves the device takes them with [`Block::take`],
//! does them without the transport's lock, and completes them with [`Block::complete`].

mod config;
mod request;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use self::config::{Limit, Space};
use self::request::{
    DISCARD_SECTORS, Geometry, MOST_SEGMENTS, Parsed, SERIAL, WRITE_ZEROES_SECTORS, parse,
};
pub use self::request::{Extent, Operation, Request, SECTOR, Status};
use super::{Broken, Chain, Device, DeviceId, Features, Ring};
use crate::ports::Throttle;
use crate::state::{RestoreError, Stateful, check};

/// The greatest size of its one queue, requestq (5.2.2).
const QUEUE_SIZE: u16 = 256;

/// Most segments of data in a request: with header and status, a chain is as long as its queue.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Most requests that are taken at a time. They are completed together, so that the driver gets one
/// interrupt; the first waits for the last.
const BATCH: usize = 32;

/// A batch ends with the request that reaches so many bytes: the driver is not to wait for long.
const BATCH_BYTES: u64 = 1 << 20;

/// Features of a block device (5.2.3).
mod feature {
    use super::Features;

    pub(super) const SEG_MAX: Features = Features(1 << 2);
    pub(super) const RO: Features = Features(1 << 5);
    pub(super) const BLK_SIZE: Features = Features(1 << 6);
    pub(super) const FLUSH: Features = Features(1 << 9);
    pub(super) const DISCARD: Features = Features(1 << 13);
    pub(super) const WRITE_ZEROES: Features = Features(1 << 14);
}

/// A disk, as the device shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Disk {
    /// Whole sectors of 512 bytes, below 2^54.
    pub sectors: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// Blocks can be given up, and zeroed without writing them.
    pub discards: bool,
    /// The smallest unit that it reads and writes well, in bytes: a power of two from 512 on.
    pub block_size: u32,
}

/// What has been done to a disk. Readable at any time, by any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads that were completed, failed or not.
    pub reads: AtomicU64,
    /// Bytes that were read.
    pub read_bytes: AtomicU64,
    /// Writes that were completed, failed or not.
    pub writes: AtomicU64,
    /// Bytes that were written.
    pub written_bytes: AtomicU64,
    /// Flushes that were completed, failed or not.
    pub flushes: AtomicU64,
    /// Requests to discard or zero that were completed, failed or not.
    pub discards: AtomicU64,
    /// Bytes that were discarded or zeroed.
    pub discarded_bytes: AtomicU64,
    /// Requests that the disk failed.
    pub failures: AtomicU64,
    /// Requests that are malformed, or not for this disk.
    pub refusals: AtomicU64,
}

/// The state of a block device: what its driver agreed to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// The size that the driver knows, in sectors.
    sectors: u64,
}

/// Whether requests are under way. A reset waits for them: the driver may use their buffers for anything
/// afterwards.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<(Mutex<UnderWay>, Condvar)>);

#[derive(Debug, Default)]
struct UnderWay {
    requests: usize,
    /// They are not waited for.
    abandoned: bool,
}

impl InFlight {
    /// So many requests have been done, and touch guest memory no more. Called without the transport's lock.
    pub fn done(&self, requests: usize) {
        let mut under_way = self.lock();
        under_way.requests = under_way.requests.saturating_sub(requests);
        if under_way.requests == 0 {
            self.0.1.notify_all();
        }
    }

    /// The guest does not run again: no reset waits any more, say for a disk that hangs.
    pub fn abandon(&self) {
        self.lock().abandoned = true;
        self.0.1.notify_all();
    }

    fn begin(&self, requests: usize) {
        self.lock().requests += requests;
    }

    fn is_idle(&self) -> bool {
        self.lock().requests == 0
    }

    fn wait(&self) {
        let waits = |under_way: &mut UnderWay| under_way.requests > 0 && !under_way.abandoned;
        let idle = self.0.1.wait_while(self.lock(), waits);
        drop(idle.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk of the guest.
pub struct Block {
    disk: Disk,
    serial: [u8; SERIAL],
    throttle: Box<dyn Throttle>,
    /// The driver does without FLUSH.
    durable: bool,
    taken: Vec<Request>,
    in_flight: InFlight,
    generation: u64,
    counters: Arc<Counters>,
}

impl Block {
    /// A disk with a serial number, of which the first 20 bytes are used, and limits on what is done to it.
    pub fn new(disk: Disk, serial: &str, throttle: Box<dyn Throttle>) -> Self {
        let mut bytes = [0; SERIAL];
        bytes.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self {
            disk,
            serial: bytes,
            throttle,
            durable: false,
            taken: Vec::new(),
            in_flight: InFlight::default(),
            generation: 0,
            counters: Arc::default(),
        }
    }

    /// The device's counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Says when requests are done. Clones are the same.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.clone()
    }

    /// The disk.
    pub fn disk(&self) -> Disk {
        self.disk
    }

    /// Replaces the disk by one that has another size: call
    /// [`config_changed`](super::mmio::Transport::config_changed) then. What the features say of it stays.
    pub fn resize(&mut self, sectors: u64) {
        self.disk.sectors = sectors;
    }

    /// The requests that were collected, in their order. Each is [done](InFlight::done) and then completed.
    pub fn take(&mut self) -> Vec<Request> {
        self.in_flight.begin(self.taken.len());
        std::mem::take(&mut self.taken)
    }

    /// Answers requests. Those of a driver that has reset the device meanwhile are forgotten.
    ///
    /// # Errors
    /// When the driver has broken the device.
    pub fn complete<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        done: impl IntoIterator<Item = (Request, Status)>,
    ) -> Result<(), Broken> {
        for (request, status) in done {
            self.count(&request.operation, status);
            if request.generation != self.generation {
                continue;
            }
            let read = match &request.operation {
                Operation::Read { into, .. } if status == Status::Ok => into.len(),
                _ => 0,
            };
            answer(ring, request.head, request.status, status, read)?;
        }
        Ok(())
    }

    fn count(&self, operation: &Operation, status: Status) {
        let counters = &*self.counters;
        let extents = |extents: &[Extent]| extents.iter().map(|extent| extent.length).sum();
        let (requests, bytes, moved) = match operation {
            Operation::Read { into, .. } => (&counters.reads, &counters.read_bytes, into.len()),
            Operation::Write { from, .. } => {
                (&counters.writes, &counters.written_bytes, from.len())
            }
            Operation::Flush => (&counters.flushes, &counters.discarded_bytes, 0),
            Operation::Discard(parts) | Operation::WriteZeroes(parts) => {
                (&counters.discards, &counters.discarded_bytes, extents(parts))
            }
        };
        add(requests, 1);
        match status {
            Status::Ok => add(bytes, moved),
            Status::IoError | Status::Unsupported => add(&counters.failures, 1),
        }
    }

    fn geometry(&self) -> Geometry {
        let Disk { sectors, read_only, discards, .. } = self.disk;
        Geometry { sectors, read_only, discards, durable: self.durable }
    }

    fn space(&self) -> Space {
        let limit = |sectors| match self.discards() {
            true => Limit { sectors, segments: MOST_SEGMENTS },
            false => Limit::default(),
        };
        let block_size = self.disk.block_size;
        Space {
            capacity: self.disk.sectors,
            seg_max: SEG_MAX,
            block_size,
            discard: limit(DISCARD_SECTORS),
            discard_alignment: if self.discards() { block_size / SECTOR as u32 } else { 0 },
            write_zeroes: limit(WRITE_ZEROES_SECTORS),
        }
    }

    fn discards(&self) -> bool {
        self.disk.discards && !self.disk.read_only
    }

    /// Collects or answers one request. Returns how many bytes of the disk it reads or writes.
    fn accept<M: GuestMemory>(
        &mut self,
        chain: Chain,
        ring: &mut Ring<'_, M>,
    ) -> Result<u64, Broken> {
        let head = chain.head();
        match parse(chain, ring.memory(), self.geometry())? {
            Parsed::Work { operation, status } => {
                let bytes = operation.bytes();
                let generation = self.generation;
                self.taken.push(Request { head, operation, status, generation });
                Ok(bytes)
            }
            Parsed::Id { mut into, status } => {
                let id = &self.serial[..SERIAL.min(into.len() as usize)];
                into.write(ring.memory(), id)?;
                answer(ring, head, status, Status::Ok, id.len() as u64)?;
                Ok(0)
            }
            Parsed::Refused { why, status } => {
                add(&self.counters.refusals, 1);
                answer(ring, head, status, why, 0)?;
                Ok(0)
            }
        }
    }
}

/// Writes the status and gives the chain back, in which `read` bytes of data have been written.
fn answer<M: GuestMemory>(
    ring: &mut Ring<'_, M>,
    head: super::Head,
    mut place: super::Stream,
    status: Status,
    read: u64,
) -> Result<(), Broken> {
    place.write(ring.memory(), &[status.byte()])?;
    // The used ring counts up to where bytes were written without a gap. A chain has less than 4 GiB.
    let written = if status == Status::Ok { read as u32 + 1 } else { 0 };
    ring.complete(head, written)
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Device for Block {
    fn id(&self) -> DeviceId {
        DeviceId::BLOCK
    }

    fn features(&self) -> Features {
        let mut offered = feature::SEG_MAX.with(feature::BLK_SIZE).with(feature::FLUSH);
        if self.disk.read_only {
            offered = offered.with(feature::RO);
        }
        if self.discards() {
            offered = offered.with(feature::DISCARD).with(feature::WRITE_ZEROES);
        }
        offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.space().read(offset, data);
    }

    /// Nothing in it can be written without CONFIG_WCE (5.2.4).
    fn write_config(&mut self, _: u64, _: &[u8]) -> Option<usize> {
        None
    }

    fn activate(&mut self, acked: Features) {
        self.durable = !acked.contains(feature::FLUSH);
    }

    /// requestq (5.2.6): collects requests, as many as a batch has and the limits allow.
    fn serve<M: GuestMemory>(&mut self, _: usize, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        let mut bytes: u64 = self.taken.iter().map(|request| request.operation.bytes()).sum();
        loop {
            if self.taken.len() >= BATCH || bytes >= BATCH_BYTES {
                ring.end_turn();
                return Ok(());
            }
            // A limiter's timer has the queue served again.
            if !self.throttle.is_open() {
                return Ok(());
            }
            let Some(chain) = ring.take()? else { return Ok(()) };
            let moved = self.accept(chain, ring)?;
            self.throttle.spend(moved);
            bytes += moved;
        }
    }

    fn reset(&mut self) {
        self.in_flight.wait();
        self.taken.clear();
        self.generation += 1;
        self.durable = false;
    }
}

impl Stateful for Block {
    type State = State;

    fn quiesce(&mut self) -> bool {
        self.taken.is_empty() && self.in_flight.is_idle()
    }

    fn save(&self) -> State {
        State { sectors: self.disk.sectors }
    }

    /// The driver is told of another size when the transport is restored; a disk that has become smaller is not
    /// the one that the guest knows.
    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        check(state.sectors < 1 << 54, "sectors", "is more than any disk has")?;
        match state.sectors <= self.disk.sectors {
            true => Ok(()),
            false => Err(RestoreError::configuration("disk", "is smaller than the guest knows it")),
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("disk", &self.disk)
            .field("taken", &self.taken)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
