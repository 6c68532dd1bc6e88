//! VMs with MTE that wait for slots of the pool. Who gets those that are freed is decided by the pool, by its fair shares
//! (`vmm/src/tag_storage/pool/share.rs`). No VM gives back because another waits.

use std::time::Duration;

use vmm::tag_storage::LeaseId;

use super::{CHUNK_PAGES, Host, HostError, Lack, Memory, Tagged};

/// Chunks of one request of a VM that waits: as many as a broker lets one wait for.
const AT_ONCE: u64 = 64;

/// Waiting VMs that are offered something at a time, as by a broker.
const OFFERS: usize = 64;

/// The pool forgets a VM that has not asked again for seconds. One that waits asks all the time: that is one request, at a
/// time beyond all models.
const ALL_THE_TIME: Duration = Duration::from_secs(1 << 32);
const SECONDS: Duration = Duration::from_secs(60);

impl Host {
    /// A VM waits for so many chunks, or for none any more.
    pub(super) fn wait(&self, tagged: &mut Tagged, chunks: u64) -> Lack {
        let waited = std::mem::replace(&mut tagged.waits, chunks) > 0;
        match u32::try_from(chunks.min(AT_ONCE)).unwrap_or(u32::MAX) {
            0 if waited => {
                self.pool.wait_for(tagged.lease, 0, self.now);
                self.pool.expire_waiters(self.now + SECONDS);
            }
            0 => {}
            chunks => self.pool.wait_for(tagged.lease, chunks, self.now + ALL_THE_TIME),
        }
        Lack { pages: 0, chunks }
    }

    /// VMs that wait and for which there is enough now, the first first.
    pub fn next_waiters(&self) -> Vec<LeaseId> {
        self.pool.next_waiters(OFFERS)
    }

    /// Lets a VM that waits ask again, when it wants so many chunks in all. Returns what it lacks then.
    ///
    /// # Errors
    /// When the pool does not know the VM.
    pub fn offer(&mut self, memory: &mut Memory, chunks: u64) -> Result<Lack, HostError> {
        let Memory::Tagged(tagged) = memory else { return Ok(Lack::default()) };
        let missing = |tagged: &Tagged| chunks.saturating_sub(tagged.slots.len() as u64);
        let room = self.node.ordinary_free() / CHUNK_PAGES;
        let many = missing(tagged).min(AT_ONCE).min(room);
        if many == 0 {
            // It would have tag storage and no memory.
            self.wait(tagged, 0);
            return Ok(Lack { pages: missing(tagged) * CHUNK_PAGES, chunks: 0 });
        }
        if !self.reserve(tagged, many as u32)? && many > 1 {
            self.reserve(tagged, 1)?;
        }
        Ok(self.wait(tagged, missing(tagged)))
    }

    /// What a VM that wants so many chunks lacks of a fair share of the pool, in chunks. No lease of the model's has a
    /// minimum or a maximum, so that a share is the same for all.
    pub fn below_share(&self, memory: &Memory, chunks: u64) -> u64 {
        let Memory::Tagged(tagged) = memory else { return 0 };
        let share = self.slots / self.leases.max(1);
        chunks.min(share).saturating_sub(tagged.slots.len() as u64)
    }
}

impl Memory {
    /// The VM's hold on the pool, if it has MTE.
    pub fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Tagged(tagged) => Some(tagged.lease),
            Self::Borrower(_) => None,
        }
    }
}
