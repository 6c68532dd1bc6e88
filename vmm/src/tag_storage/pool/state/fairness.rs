//! Which leases come first when there is not enough for all.

use std::time::Instant;

use super::super::pressure::{CanGive, Pressure};
use super::super::share;
use super::super::waiters::Standing;
use super::{BlockState, Lease, LeaseId, State};

impl State {
    /// Divides the pool among its open leases.
    pub(super) fn divide(&mut self) {
        let open = self.leases.iter().filter(|lease| !lease.closing);
        self.share = share::share(self.slots.len(), open.map(Lease::limits));
    }

    /// How far the lease at an index is below its entitlement.
    fn distance(&self, index: u32) -> i64 {
        let lease = self.leases.get(index);
        lease.map_or(i64::MIN, |lease| {
            let has = lease.held.saturating_add(lease.claimed);
            lease.limits().distance(self.share, has)
        })
    }

    /// Slots beside those set aside that a lease needs for what it waits for.
    fn needs(&self, standing: &Standing) -> u32 {
        self.leases.get(standing.index).map_or(0, |lease| lease.growth(standing.chunks))
    }

    /// Slots that are kept for leases that wait and rank before the one at this index.
    pub(super) fn ahead_of(&self, index: u32) -> u32 {
        if self.waiters.len() == 0 {
            return 0;
        }
        let own = self.waiters.rank(index, self.distance(index));
        let ahead = |other: &Standing| other.index != index && other.rank < own;
        let mut left = self.available();
        let waiting = self.waiting(ahead);
        waiting.iter().filter_map(|other| self.keep(other, &mut left)).sum()
    }

    /// Those of the leases that wait that meet a condition, the first first.
    fn waiting(&self, condition: impl Fn(&Standing) -> bool) -> Vec<Standing> {
        let waiting = self.waiters.standings(|index| self.distance(index));
        let mut waiting: Vec<_> = waiting.filter(condition).collect();
        waiting.sort_unstable_by_key(|standing| standing.rank);
        waiting
    }

    /// Takes what is kept for a lease that waits off what is left: all that it waits for or, where there is
    /// less, its first chunk, which it asks for next. More would be kept from others for a request that
    /// may never be met. `None` where nothing is left for it.
    fn keep(&self, standing: &Standing, left: &mut u32) -> Option<u32> {
        let lease = self.leases.get(standing.index)?;
        let needs = [standing.chunks, standing.chunks.min(1)].map(|chunks| lease.growth(chunks));
        let kept = needs.into_iter().find(|needs| needs <= left)?;
        *left -= kept;
        Some(kept)
    }

    /// A lease waits for so many chunks.
    pub(crate) fn start_wait(&mut self, id: LeaseId, chunks: u32, now: Instant) {
        if let Some(index) = self.leases.find(id) {
            self.waiters.join(index, chunks, now);
        }
    }

    /// A lease has what it waited for.
    pub(crate) fn end_wait(&mut self, id: LeaseId) {
        if let Some(index) = self.leases.find(id) {
            self.waiters.leave(index);
        }
    }

    /// The first of the leases that wait for which there is enough, for one chunk at least.
    pub(crate) fn next_waiters(&self, most: usize) -> Vec<LeaseId> {
        let mut left = self.available();
        let waiting = self.waiting(|standing| standing.chunks > 0);
        let next = waiting.iter().filter(|standing| self.keep(standing, &mut left).is_some());
        let leases = next.filter_map(|standing| self.leases.get(standing.index));
        leases.take(most).map(|lease| lease.id).collect()
    }

    /// What the leases that wait lack together, and who could give it.
    pub(crate) fn pressure(&self) -> Pressure {
        let waiting = || self.waiters.standings(|index| self.distance(index));
        let wanted = waiting().fold(0u32, |sum, other| sum.saturating_add(self.needs(&other)));
        let lacking = match wanted.saturating_sub(self.available()) {
            // There is enough, and it cannot be had: what is in its blocks does not move.
            0 if self.blocks.total(BlockState::Lent) + self.blocks.total(BlockState::Pinned)
                > 0 =>
            {
                waiting().fold(0u32, |sum, other| sum.saturating_add(other.chunks))
            }
            lacking => lacking,
        };
        let entitled = self.entitled();
        let leases = self.leases.iter().map(|lease| CanGive {
            lease: lease.id,
            chunks: self.spare(lease, entitled),
            held: lease.held,
        });
        Pressure { lacking, can_give: leases.filter(|lease| lease.chunks > 0).collect() }
    }

    /// What a lease can give to those that wait.
    pub(crate) fn can_give(&self, id: LeaseId) -> u32 {
        let lease = self.leases.find(id).and_then(|index| self.leases.get(index));
        lease.map_or(0, |lease| self.spare(lease, self.entitled()))
    }

    /// What the leases that wait lack together of what they are entitled to.
    fn entitled(&self) -> u32 {
        let lack = |other: Standing| {
            let below = u32::try_from(self.distance(other.index)).unwrap_or(0);
            self.needs(&other).min(below)
        };
        let waiting = self.waiters.standings(|index| self.distance(index));
        waiting.map(lack).fold(0, u32::saturating_add)
    }

    /// What a lease can give where others lack so much of what they are entitled to. From above one entitlement to
    /// below another, nothing goes back and forth.
    fn spare(&self, lease: &Lease, entitled: u32) -> u32 {
        match self.waiters.contains(lease.id.index()) {
            _ if lease.closing => 0,
            true => lease.held.saturating_sub(lease.limits().entitlement(self.share)).min(entitled),
            false => lease.above_min(),
        }
    }
}
