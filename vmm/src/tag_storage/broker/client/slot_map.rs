//! The slots of one VM, under names of its own.
//!
//! A slot's number may change when a broker is started again, and the VM must not notice: it knows a slot
//! by its place here. A place whose slot the new broker does not have is a debt.

use crate::tag_storage::pool::SlotIndex;

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing, and the next place that has nothing.
    Vacant(Option<u32>),
    /// A slot of the broker.
    Held(SlotIndex),
    /// None: the broker has none left. The one that it was.
    Owed(SlotIndex),
}

/// All places.
#[derive(Debug, Default)]
pub(crate) struct SlotMap {
    places: Vec<Place>,
    vacant: Option<u32>,
    held: u32,
    owed: u32,
}

/// A place and the slot that was there when it was looked at.
pub(crate) type Known = (SlotIndex, SlotIndex);

impl SlotMap {
    /// Slots that the broker has reserved for this VM.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Slots that the VM uses and the broker does not know.
    pub(crate) fn owed(&self) -> u32 {
        self.owed
    }

    /// Adds a slot.
    pub(crate) fn add(&mut self, slot: SlotIndex) -> SlotIndex {
        self.held += 1;
        if let Some(at) = self.vacant
            && let Some(place) = self.places.get_mut(at as usize)
            && let Place::Vacant(next) = *place
        {
            (*place, self.vacant) = (Place::Held(slot), next);
            return SlotIndex(at);
        }
        // A pool has less than 2^32 slots.
        self.places.push(Place::Held(slot));
        SlotIndex(self.places.len() as u32 - 1)
    }

    /// Removes what is at a place. Returns the broker's slot if it has one.
    pub(crate) fn remove(&mut self, at: SlotIndex) -> Option<SlotIndex> {
        let place = self.places.get_mut(at.0 as usize)?;
        let slot = match *place {
            Place::Vacant(_) => return None,
            Place::Held(slot) => {
                self.held -= 1;
                Some(slot)
            }
            Place::Owed(_) => {
                self.owed -= 1;
                None
            }
        };
        *place = Place::Vacant(self.vacant);
        self.vacant = Some(at.0);
        slot
    }

    /// The broker is gone, and with it all slots.
    pub(crate) fn lose(&mut self) {
        for place in &mut self.places {
            if let Place::Held(slot) = *place {
                *place = Place::Owed(slot);
            }
        }
        self.owed += std::mem::take(&mut self.held);
    }

    /// All debts.
    pub(crate) fn debts(&self) -> Vec<Known> {
        let places = self.places.iter().enumerate();
        let debt = |(at, place): (usize, &Place)| match *place {
            Place::Owed(slot) => Some((SlotIndex(at as u32), slot)),
            Place::Vacant(_) | Place::Held(_) => None,
        };
        places.filter_map(debt).collect()
    }

    /// The broker has given a slot for a debt. Returns it if the debt is gone meanwhile.
    pub(crate) fn settle(&mut self, at: SlotIndex, slot: SlotIndex) -> Option<SlotIndex> {
        match self.places.get_mut(at.0 as usize) {
            Some(place @ Place::Owed(_)) => {
                *place = Place::Held(slot);
                self.owed -= 1;
                self.held += 1;
                None
            }
            _ => Some(slot),
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
            3 => (0..20u32, 0..100u32).prop_map(|(at, slot)| Step::Settle(at, slot)),
        ]
    }

    proptest! {
        #[test]
        fn places_are_what_a_map_of_them_is(steps in prop::collection::vec(step(), 0..100)) {
            let mut holdings = SlotMap::default();
            let mut model: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Add(slot) => {
                        let at = holdings.add(SlotIndex(slot));
                        prop_assert_eq!(model.insert(at.0, (slot, true)), None);
                    }
                    Step::Remove(at) => {
                        let expected = model.remove(&at).filter(|(_, held)| *held);
                        let removed = holdings.remove(SlotIndex(at));
                        prop_assert_eq!(removed.map(|slot| slot.0), expected.map(|(slot, _)| slot));
                    }
                    Step::Lose => {
                        holdings.lose();
                        model.values_mut().for_each(|(_, held)| *held = false);
                    }
                    Step::Settle(at, slot) => {
                        let back = holdings.settle(SlotIndex(at), SlotIndex(slot));
                        match model.get_mut(&at) {
                            Some(place @ (_, false)) => {
                                *place = (slot, true);
                                prop_assert_eq!(back, None);
                            }
                            _ => prop_assert_eq!(back, Some(SlotIndex(slot))),
                        }
                    }
                }
                let count = |held| model.values().filter(|place| place.1 == held).count();
                prop_assert_eq!(holdings.held() as usize, count(true));
                prop_assert_eq!(holdings.owed() as usize, count(false));
                let debts: Vec<_> =
                    holdings.debts().iter().map(|(at, slot)| (at.0, slot.0)).collect();
                let owed = model.iter().filter(|(_, place)| !place.1);
                let owed: Vec<_> = owed.map(|(at, place)| (*at, place.0)).collect();
                prop_assert_eq!(debts, owed);
            }
        }
    }
}
