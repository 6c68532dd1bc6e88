//! Frames that a VM had in a pool that is gone: a broker that was started again has a new one, and knows what
//! its VMs tell it.

use super::{Attempt, FrameIndex, LeaseId, Pool, ReserveError, TakeError};

/// What came of frames that a lease was to have again.
#[derive(Debug)]
pub struct Adopted {
    /// For each that was asked for, in this order, the one that the lease has now: the same where it was
    /// free, or another. `None` for what could not be had: ask for it again later.
    pub frames: Vec<Option<FrameIndex>>,
    /// Why not all could be had.
    pub shortfall: Option<ReserveError>,
}

impl Pool {
    /// Reserves frames again that a lease's VM had before, and others for those that are not free. Unlike
    /// [`reserve_many`](Self::reserve_many) it keeps what it got where there is not enough: the VM uses
    /// that memory already.
    ///
    /// It takes time in proportion to `frames`, whose number the caller bounds, and lets others in between.
    ///
    /// # Errors
    /// When the lease is unknown. It then has none of them.
    pub fn adopt(&self, lease: LeaseId, frames: &[FrameIndex]) -> Result<Adopted, ReserveError> {
        let mut adopted = Adopted { frames: vec![None; frames.len()], shortfall: None };
        // The same ones first, so that none is taken in place of another.
        let same = |frame| self.reserve_same(lease, frame);
        let other = |_| self.reserve(lease).map(Some);
        let result = adopted.fill(frames, same).and_then(|()| adopted.fill(frames, other));
        match result {
            Err(error @ ReserveError::UnknownLease(_)) => return Err(error),
            Err(error) => adopted.shortfall = Some(error),
            Ok(()) => {}
        }
        Ok(adopted)
    }

    /// Reserves this very frame if it is free. What fails here fails for every other frame as well.
    fn reserve_same(
        &self,
        lease: LeaseId,
        frame: FrameIndex,
    ) -> Result<Option<FrameIndex>, ReserveError> {
        let (mut state, promised) = self.promise(self.lock(), lease, 1);
        promised?;
        let slot = state.leases.find(lease).ok_or(ReserveError::UnknownLease(lease))?;
        let Some(candidate) = state.frames.choose_this(frame, &state.blocks) else {
            state.retract(lease, 1);
            self.wake(&state);
            return Ok(None);
        };
        let result;
        (state, result) = self.attempt(state, slot, &candidate);
        let result = match result {
            Ok(Attempt::Had(_)) => Ok(Some(frame)),
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
    /// Has `reserve` find frames for those that have none yet.
    fn fill(
        &mut self,
        wanted: &[FrameIndex],
        reserve: impl Fn(FrameIndex) -> Result<Option<FrameIndex>, ReserveError>,
    ) -> Result<(), ReserveError> {
        let places = self.frames.iter_mut().zip(wanted);
        for (place, frame) in places.filter(|(place, _)| place.is_none()) {
            *place = reserve(*frame)?;
        }
        Ok(())
    }
}
