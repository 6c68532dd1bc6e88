//! The frames of one VM, under names of its own.
//!
//! A frame's number may change when a broker is started again, and the VM must not notice: it knows a frame
//! by its place here. A place whose frame the new broker does not have is a debt.

use crate::tag_storage::pool::FrameIndex;

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing, and the next place that has nothing.
    Vacant(Option<u32>),
    /// A frame of the broker.
    Held(FrameIndex),
    /// None: the broker has none left. The one that it was.
    Owed(FrameIndex),
}

/// All places.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    places: Vec<Place>,
    vacant: Option<u32>,
    held: u32,
    owed: u32,
}

/// A place and the frame that was there when it was looked at.
pub(crate) type Known = (FrameIndex, FrameIndex);

impl Holdings {
    /// Frames that the broker has reserved for this VM.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Frames that the VM uses and the broker does not know.
    pub(crate) fn owed(&self) -> u32 {
        self.owed
    }

    /// Adds a frame.
    pub(crate) fn add(&mut self, frame: FrameIndex) -> FrameIndex {
        self.held += 1;
        if let Some(at) = self.vacant
            && let Some(place) = self.places.get_mut(at as usize)
            && let Place::Vacant(next) = *place
        {
            (*place, self.vacant) = (Place::Held(frame), next);
            return FrameIndex(at);
        }
        // A pool has less than 2^32 frames.
        self.places.push(Place::Held(frame));
        FrameIndex(self.places.len() as u32 - 1)
    }

    /// Removes what is at a place. Returns the broker's frame if it has one.
    pub(crate) fn remove(&mut self, at: FrameIndex) -> Option<FrameIndex> {
        let place = self.places.get_mut(at.0 as usize)?;
        let frame = match *place {
            Place::Vacant(_) => return None,
            Place::Held(frame) => {
                self.held -= 1;
                Some(frame)
            }
            Place::Owed(_) => {
                self.owed -= 1;
                None
            }
        };
        *place = Place::Vacant(self.vacant);
        self.vacant = Some(at.0);
        frame
    }

    /// The broker is gone, and with it all frames.
    pub(crate) fn lose(&mut self) {
        for place in &mut self.places {
            if let Place::Held(frame) = *place {
                *place = Place::Owed(frame);
            }
        }
        self.owed += std::mem::take(&mut self.held);
    }

    /// All debts.
    pub(crate) fn debts(&self) -> Vec<Known> {
        let places = self.places.iter().enumerate();
        let debt = |(at, place): (usize, &Place)| match *place {
            Place::Owed(frame) => Some((FrameIndex(at as u32), frame)),
            Place::Vacant(_) | Place::Held(_) => None,
        };
        places.filter_map(debt).collect()
    }

    /// The broker has given a frame for a debt. Returns it if the debt is gone meanwhile.
    pub(crate) fn settle(&mut self, at: FrameIndex, frame: FrameIndex) -> Option<FrameIndex> {
        match self.places.get_mut(at.0 as usize) {
            Some(place @ Place::Owed(_)) => {
                *place = Place::Held(frame);
                self.owed -= 1;
                self.held += 1;
                None
            }
            _ => Some(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Add(u32),
        Remove(u32),
        Lose,
        Settle(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..100u32).prop_map(Step::Add),
            3 => (0..20u32).prop_map(Step::Remove),
            1 => Just(Step::Lose),
            3 => (0..20u32, 0..100u32).prop_map(|(at, frame)| Step::Settle(at, frame)),
        ]
    }

    proptest! {
        #[test]
        fn places_are_what_a_map_of_them_is(steps in prop::collection::vec(step(), 0..100)) {
            let mut holdings = Holdings::default();
            let mut model: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Add(frame) => {
                        let at = holdings.add(FrameIndex(frame));
                        prop_assert_eq!(model.insert(at.0, (frame, true)), None);
                    }
                    Step::Remove(at) => {
                        let expected = model.remove(&at).filter(|(_, held)| *held);
                        let removed = holdings.remove(FrameIndex(at));
                        prop_assert_eq!(removed.map(|frame| frame.0), expected.map(|(frame, _)| frame));
                    }
                    Step::Lose => {
                        holdings.lose();
                        model.values_mut().for_each(|(_, held)| *held = false);
                    }
                    Step::Settle(at, frame) => {
                        let back = holdings.settle(FrameIndex(at), FrameIndex(frame));
                        match model.get_mut(&at) {
                            Some(place @ (_, false)) => {
                                *place = (frame, true);
                                prop_assert_eq!(back, None);
                            }
                            _ => prop_assert_eq!(back, Some(FrameIndex(frame))),
                        }
                    }
                }
                let count = |held| model.values().filter(|place| place.1 == held).count();
                prop_assert_eq!(holdings.held() as usize, count(true));
                prop_assert_eq!(holdings.owed() as usize, count(false));
                let debts: Vec<_> =
                    holdings.debts().iter().map(|(at, frame)| (at.0, frame.0)).collect();
                let owed = model.iter().filter(|(_, place)| !place.1);
                let owed: Vec<_> = owed.map(|(at, place)| (*at, place.0)).collect();
                prop_assert_eq!(debts, owed);
            }
        }
    }
}
