//! Slots that a VM had in a pool that is gone: a broker that was started again has a new one, and knows what
//! its VMs tell it.

use std::time::Instant;

use super::requests::{Attempt, Order, is_late};
use super::{LeaseId, Pool, ReserveError, SlotIndex, TakeError};

/// What came of slots that a lease was to have again.
#[derive(Debug)]
pub struct Adopted {
    /// For each that was asked for, in this order, the one that the lease has now: the same where it was
    /// free, or another. `None` for what could not be had: ask for it again later.
    pub slots: Vec<Option<SlotIndex>>,
    /// Why not all could be had.
    pub shortfall: Option<ReserveError>,
}

impl Pool {
    /// Reserves slots again that a lease's VM had before, and others for those that are not free. Unlike
    /// [`reserve_many`](Self::reserve_many) it keeps what it got where there is not enough: the VM uses
    /// that memory already. Nothing proves that: [`Order::First`] is for the time in which no other request is
    /// served.
    ///
    /// It takes time in proportion to `slots`, whose number the caller bounds, and lets others in between.
    ///
    /// # Errors
    /// When the lease is unknown. It then has none of them.
    pub(crate) fn adopt(
        &self,
        lease: LeaseId,
        slots: &[SlotIndex],
        order: Order,
    ) -> Result<Adopted, ReserveError> {
        self.adopt_by(lease, slots, order, self.deadline(slots.len() as u32))
    }

    /// As [`adopt`](Self::adopt), and tries no further slot after this time: those are lacking.
    ///
    /// # Errors
    /// As [`adopt`](Self::adopt).
    pub(crate) fn adopt_by(
        &self,
        lease: LeaseId,
        slots: &[SlotIndex],
        order: Order,
        deadline: Option<Instant>,
    ) -> Result<Adopted, ReserveError> {
        let mut adopted = Adopted { slots: vec![None; slots.len()], shortfall: None };
        // The same ones first, so that none is taken in place of another.
        let in_time = || match is_late(deadline) {
            true => Err(self.lock().timed_out(1)),
            false => Ok(()),
        };
        let same = |slot| in_time().and_then(|()| self.reserve_same((lease, order), slot));
        let other = |_| {
            in_time()?;
            self.reserve_long(self.lock(), (lease, order), deadline).1.map(Some)
        };
        let result = adopted.fill(slots, same).and_then(|()| adopted.fill(slots, other));
        match result {
            Err(error @ ReserveError::UnknownLease(_)) => return Err(error),
            Err(error) => adopted.shortfall = Some(error),
            Ok(()) => {
                let mut state = self.lock();
                state.end_wait(lease);
                self.count_waiters(&state);
            }
        }
        Ok(adopted)
    }

    /// Reserves this very slot if it is free. What fails here fails for every other slot as well.
    fn reserve_same(
        &self,
        (lease, order): (LeaseId, Order),
        slot: SlotIndex,
    ) -> Result<Option<SlotIndex>, ReserveError> {
        let (mut state, promised) = self.promise(self.lock(), (lease, order), 1);
        promised?;
        let index = state.leases.find(lease).ok_or(ReserveError::UnknownLease(lease))?;
        let Some(candidate) = state.slots.choose_this(slot, &state.blocks) else {
            state.retract(lease, 1);
            self.wake(&state);
            return Ok(None);
        };
        let result;
        (state, result) = self.attempt(state, index, &candidate);
        let result = match result {
            Ok(Attempt::Had(_)) => Ok(Some(slot)),
            Ok(Attempt::Failed(TakeError::Busy | TakeError::Pinned(_))) => Ok(None),
            Ok(Attempt::Failed(source)) => Err(self.refused(source)),
            Err(error) => Err(error),
        };
        if !matches!(result, Ok(Some(_))) {
            state.retract(lease, 1);
        }
        if let Err(error) = &result {
            state.count_failure(error);
        }
        self.wake(&state);
        result
    }
}

impl Adopted {
    /// Has `reserve` find slots for those that have none yet.
    fn fill(
        &mut self,
        wanted: &[SlotIndex],
        reserve: impl Fn(SlotIndex) -> Result<Option<SlotIndex>, ReserveError>,
    ) -> Result<(), ReserveError> {
        let places = self.slots.iter_mut().zip(wanted);
        for (place, slot) in places.filter(|(place, _)| place.is_none()) {
            *place = reserve(*slot)?;
        }
        Ok(())
    }
}
