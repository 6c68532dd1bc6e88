//! Fair shares of a pool whose VMs together want more than it has. Arithmetic alone; all figures are chunks.
//!
//! - The *share* is what is left of the pool after all minimums, divided by the number of open leases. A lease
//!   whose maximum leaves it less room than that takes less, and the others divide the rest.
//! - The *entitlement* of a lease is its minimum and one share, at most its maximum.
//! - The *distance* of a lease is its entitlement less what it holds: positive below, negative above.
//!
//! Every open lease counts, whatever it holds. That of a VM with all of its memory reserved from the start is
//! no exception: it never waits, and what it holds above its entitlement stays its own.
//!
//! Among leases that wait for chunks, the one with the largest distance comes first; among equals, the one that
//! has waited longest. Entitlements order those that wait and are no limit: a lease that waits alone gets
//! whatever is free.

use std::cmp::Reverse;

/// What a lease may have: minimum and maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub min: u32,
    pub max: u32,
}

impl Limits {
    fn room(self) -> u32 {
        self.max.saturating_sub(self.min)
    }

    /// What a lease is entitled to when this is the share.
    pub(crate) fn entitlement(self, share: u32) -> u32 {
        self.min.saturating_add(share.min(self.room()))
    }

    /// How far a lease that holds so much is below its entitlement.
    pub(crate) fn distance(self, share: u32, held: u32) -> i64 {
        i64::from(self.entitlement(share)) - i64::from(held)
    }
}

/// The share of each of these leases in a pool of so many chunks; [`u32::MAX`] where all can have their
/// maximum.
pub(crate) fn share(capacity: u32, leases: impl Iterator<Item = Limits>) -> u32 {
    let mut rest = capacity;
    let mut rooms = Vec::new();
    for limits in leases {
        rest = rest.saturating_sub(limits.min);
        rooms.push(limits.room());
    }
    rooms.sort_unstable();
    for (at, room) in rooms.iter().enumerate() {
        // A pool has at most `MAX_LEASES` of them.
        let share = rest / (rooms.len() - at) as u32;
        if *room >= share {
            return share;
        }
        rest -= room;
    }
    u32::MAX
}

/// The place of a lease among those that wait: the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    distance: Reverse<i64>,
    arrival: u64,
}

impl Rank {
    /// Of a lease at this distance; arrivals are numbered.
    pub(crate) fn new(distance: i64, arrival: u64) -> Self {
        Self { distance: Reverse(distance), arrival }
    }
}

/// Divides what is lacking among leases in proportion to what each can give: never more than that, and never
/// more than is lacking in all. What does not divide goes to the largest remainders, the first ones among
/// equals.
pub(crate) fn asks(lacking: u32, can_give: &[u32]) -> Vec<u32> {
    let all: u64 = can_give.iter().copied().map(u64::from).sum();
    let lacking = u64::from(lacking).min(all);
    if lacking == 0 {
        return vec![0; can_give.len()];
    }
    // Less than 2^32 each, and no more than can be given.
    let part = |can: u32| (u64::from(can) * lacking / all) as u32;
    let remainder = |can: u32| u64::from(can) * lacking % all;
    let mut asks: Vec<u32> = can_give.iter().map(|can| part(*can)).collect();
    let asked: u64 = asks.iter().copied().map(u64::from).sum();
    let mut order: Vec<usize> = (0..can_give.len()).collect();
    order.sort_by_key(|at| Reverse(can_give.get(*at).map_or(0, |can| remainder(*can))));
    // Fewer than there are leases with a remainder.
    for at in order.into_iter().take((lacking - asked) as usize) {
        if let Some(ask) = asks.get_mut(at) {
            *ask += 1;
        }
    }
    asks
}

#[cfg(test)]
mod tests;
