use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u64, u32),
    Remove(u64),
    Lose,
    Settle(u64, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..20u64, 0..100u32).prop_map(|(chunk, slot)| Step::Insert(chunk, slot)),
        3 => (0..20u64).prop_map(Step::Remove),
        1 => Just(Step::Lose),
        3 => (0..20u64, 0..100u32).prop_map(|(chunk, slot)| Step::Settle(chunk, slot)),
    ]
}

proptest! {
    #[test]
    fn entries_are_what_a_map_of_them_is(steps in prop::collection::vec(step(), 0..100)) {
        let mut slots = SlotMap::default();
        let mut model: BTreeMap<u64, (u32, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(chunk, slot) => {
                    let back = slots.insert(ChunkIndex(chunk), SlotIndex(slot));
                    let taken = model.contains_key(&chunk);
                    prop_assert_eq!(back, taken.then_some(SlotIndex(slot)));
                    model.entry(chunk).or_insert((slot, true));
                }
                Step::Remove(chunk) => {
                    let expected = model.remove(&chunk).filter(|(_, held)| *held);
                    let removed = slots.remove(ChunkIndex(chunk));
                    prop_assert_eq!(removed.map(|slot| slot.0), expected.map(|(slot, _)| slot));
                }
                Step::Lose => {
                    slots.lose();
                    model.values_mut().for_each(|(_, held)| *held = false);
                }
                Step::Settle(chunk, slot) => {
                    let back = slots.settle(ChunkIndex(chunk), SlotIndex(slot));
                    match model.get_mut(&chunk) {
                        Some(entry @ (_, false)) => {
                            *entry = (slot, true);
                            prop_assert_eq!(back, None);
                        }
                        _ => prop_assert_eq!(back, Some(SlotIndex(slot))),
                    }
                }
            }
            let count = |held| model.values().filter(|entry| entry.1 == held).count();
            prop_assert_eq!(slots.held() as usize, count(true));
            prop_assert_eq!(slots.owed() as usize, count(false));
            let debts: Vec<_> =
                slots.debts().iter().map(|(chunk, slot)| (chunk.0, slot.0)).collect();
            let owed = model.iter().filter(|(_, entry)| !entry.1);
            let owed: Vec<_> = owed.map(|(chunk, entry)| (*chunk, entry.0)).collect();
            prop_assert_eq!(debts, owed);
        }
    }
}
