//! What several threads did to a pool, and whether one order of it makes sense.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What a thread asked for. Leases go by their place in the test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Reserve(usize),
    ReserveMany(usize, u32),
    Free(usize, SlotIndex),
    Close(usize),
    Open { min: u32 },
}

/// What it got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Slots(Vec<SlotIndex>),
    Done,
    Exhausted,
    OverMax,
    UnknownLease,
    NotHeld,
}

impl Answer {
    pub(crate) fn of(result: Result<Vec<SlotIndex>, ReserveError>) -> Self {
        match result {
            Ok(slots) => Self::Slots(slots),
            Err(ReserveError::Exhausted { .. }) => Self::Exhausted,
            Err(ReserveError::OverMax { .. }) => Self::OverMax,
            Err(ReserveError::UnknownLease(_)) => Self::UnknownLease,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn of_free(result: Result<(), FreeError>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(FreeError::NotHeld { .. }) => Self::NotHeld,
            Err(FreeError::UnknownLease(_)) => Self::UnknownLease,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A request from when it was made to when it was answered.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub made: u32,
    pub answered: u32,
    pub request: Request,
    pub answer: Answer,
}

/// A pool as people think of it: every request takes effect at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Ideal {
    pub free: BTreeSet<SlotIndex>,
    /// Free, but never to be had.
    pub stuck: BTreeSet<SlotIndex>,
    /// What is set aside for leases that were opened on the way.
    pub extra: u32,
    pub leases: BTreeMap<usize, IdealLease>,
}

#[derive(Clone, Debug)]
pub(crate) struct IdealLease {
    pub min: u32,
    pub max: u32,
    pub held: BTreeSet<SlotIndex>,
}

impl Ideal {
    fn set_aside(&self, but: Option<usize>) -> u32 {
        let others = self.leases.iter().filter(|(lease, _)| Some(**lease) != but);
        let of_leases: u32 =
            others.map(|(_, lease)| lease.min.saturating_sub(lease.held.len() as u32)).sum();
        of_leases + self.extra
    }

    fn room(&self, lease: Option<usize>) -> u32 {
        let free = (self.free.len() + self.stuck.len()) as u32;
        free.saturating_sub(self.set_aside(lease))
    }

    /// Whether this answer is right now; then it takes effect.
    fn answer(&mut self, request: Request, answer: &Answer) -> bool {
        match request {
            Request::Reserve(lease) => self.reserve(lease, 1, answer),
            Request::ReserveMany(lease, chunks) => self.reserve(lease, chunks, answer),
            Request::Free(lease, slot) => {
                let lease = self.leases.get_mut(&lease);
                let right = match lease.map(|lease| lease.held.remove(&slot)) {
                    None => Answer::UnknownLease,
                    Some(true) => Answer::Done,
                    Some(false) => Answer::NotHeld,
                };
                if right == Answer::Done {
                    self.free.insert(slot);
                }
                *answer == right
            }
            Request::Close(lease) => match self.leases.remove(&lease) {
                Some(lease) => {
                    self.free.extend(lease.held);
                    *answer == Answer::Done
                }
                None => *answer == Answer::UnknownLease,
            },
            Request::Open { min } => {
                let fits = min <= self.room(None);
                self.extra += if fits { min } else { 0 };
                *answer == if fits { Answer::Done } else { Answer::Exhausted }
            }
        }
    }

    fn reserve(&mut self, lease: usize, chunks: u32, answer: &Answer) -> bool {
        let room = self.room(Some(lease));
        let Some(known) = self.leases.get_mut(&lease) else {
            return *answer == Answer::UnknownLease;
        };
        if known.held.len() as u32 + chunks > known.max {
            return *answer == Answer::OverMax;
        }
        if chunks > room || chunks > self.free.len() as u32 {
            return *answer == Answer::Exhausted;
        }
        let Answer::Slots(slots) = answer else { return false };
        slots.len() as u32 == chunks
            && slots.iter().all(|slot| self.free.remove(slot) && known.held.insert(*slot))
    }
}

/// Whether the events make sense in some order that agrees with their times.
pub(crate) fn is_linear(ideal: &Ideal, events: &[Event]) -> bool {
    let Some(first_answer) = events.iter().map(|event| event.answered).min() else { return true };
    (0..events.len()).any(|at| {
        let event = &events[at];
        let mut after = ideal.clone();
        if event.made > first_answer || !after.answer(event.request, &event.answer) {
            return false;
        }
        let mut rest = events.to_vec();
        rest.remove(at);
        is_linear(&after, &rest)
    })
}

#[test]
fn a_history_without_sense_is_recognised() {
    let lease = IdealLease { min: 0, max: 9, held: BTreeSet::new() };
    let ideal = Ideal {
        free: [SlotIndex(0)].into(),
        stuck: BTreeSet::new(),
        extra: 0,
        leases: [(0, lease)].into(),
    };
    let got = Answer::Slots(vec![SlotIndex(0)]);
    let event = |made, answered, answer: &Answer| Event {
        made,
        answered,
        request: Request::Reserve(0),
        answer: answer.clone(),
    };

    // Refused while another may have been first; refused before anybody was; given twice.
    assert!(is_linear(&ideal, &[event(0, 2, &Answer::Exhausted), event(1, 3, &got)]));
    assert!(!is_linear(&ideal, &[event(0, 1, &Answer::Exhausted), event(2, 3, &got)]));
    assert!(!is_linear(&ideal, &[event(0, 1, &got), event(2, 3, &got)]));
}
