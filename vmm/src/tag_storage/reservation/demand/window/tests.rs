use proptest::prelude::*;

use super::*;

/// Memory of so many chunks, by whether they are absent.
struct Memory(Vec<State>);

impl Memory {
    fn of(chunks: usize) -> Self {
        Self(vec![State::Absent; chunks])
    }

    fn state(&self, chunk: ChunkIndex) -> Option<State> {
        self.0.get(usize::try_from(chunk.0).ok()?).copied()
    }

    /// Touches an absent chunk. Returns how many were reserved for.
    fn touch(&mut self, window: &mut Window, chunk: u64, most: u64) -> u64 {
        let given = window.touch(ChunkIndex(chunk), most, |chunk| self.state(chunk));
        assert!(given.contains(&ChunkIndex(chunk)), "{given:?}");
        for at in given.start.0..given.end.0 {
            assert_eq!(self.state(ChunkIndex(at)), Some(State::Absent), "{given:?}");
            self.0[at as usize] = State::Ahead;
        }
        self.use_it(chunk);
        given.end.0 - given.start.0
    }

    fn use_it(&mut self, chunk: u64) {
        self.0[chunk as usize] = State::Populated;
    }

    /// Touches these chunks one after another. Returns what was reserved for at each that was absent.
    fn walk(&mut self, window: &mut Window, chunks: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut given = Vec::new();
        for chunk in chunks {
            match self.0[chunk as usize] {
                State::Absent => given.push(self.touch(window, chunk, 16)),
                _ => self.use_it(chunk),
            }
        }
        given
    }
}

#[test]
fn a_walk_reserves_for_more_at_each_step_in_both_directions() {
    for walk in [Vec::from_iter(0..64), Vec::from_iter((0..64).rev())] {
        let given = Memory::of(64).walk(&mut Window::default(), walk.into_iter());
        assert_eq!(given, [1, 2, 4, 8, 16, 16, 16, 1]);
    }
}

#[test]
fn touches_in_no_order_reserve_for_one_chunk_each() {
    let mut memory = Memory::of(1 << 12);
    // A step of 1031 through 4096, which is prime to it: no two that follow one another are neighbours.
    let given = memory.walk(&mut Window::default(), (0..512).map(|step| step * 1031 % 4096));
    assert_eq!(given, vec![1; 512]);
}

/// Blocks of two chunks, each upwards, the one below next.
#[test]
fn a_walk_in_blocks_is_one_walk() {
    let blocks = (0..32).rev().flat_map(|block| [2 * block, 2 * block + 1]);
    let given = Memory::of(64).walk(&mut Window::default(), blocks);
    assert_eq!(given, [1, 1, 4, 8, 16, 16, 16, 2]);
}

#[test]
fn what_is_left_out_between_a_walk_and_its_step_is_reserved_for_with_it() {
    let (mut memory, mut window) = (Memory::of(64), Window::default());
    assert_eq!(memory.walk(&mut window, 20..23), [1, 2]);
    assert_eq!(memory.touch(&mut window, 25, 16), 4);
    let ahead = (0..64).filter(|chunk| memory.0[*chunk] == State::Ahead);
    assert_eq!(ahead.collect::<Vec<_>>(), [23, 24, 26]);
}

#[test]
fn walks_at_once_grow_apart() {
    let mut memory = Memory::of(1 << 10);
    let both = (0..32).flat_map(|step| [step, 1023 - step, 300 + step]);
    let given = memory.walk(&mut Window::default(), both);
    assert_eq!(given, [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16]);
}

#[test]
fn a_step_passes_over_chunks_that_have_slots() {
    let mut memory = Memory::of(64);
    for chunk in [1, 2, 5] {
        memory.use_it(chunk);
    }
    let given = memory.walk(&mut Window::default(), 0..12);
    assert_eq!(given, [1, 2, 4, 8], "0; 3 and 4; 6 to 9; 10 to 17");
}

#[test]
fn a_walk_that_leaves_chunks_out_starts_again_with_one() {
    let (mut memory, mut window) = (Memory::of(64), Window::default());
    assert_eq!(memory.walk(&mut window, 0..7), [1, 2, 4]);
    // 8 to 14 are reserved for, and none of them but the first is touched.
    assert_eq!(memory.touch(&mut window, 7, 16), 8);

    assert_eq!(memory.touch(&mut window, 15, 16), 1);
}

#[test]
fn a_window_without_room_reserves_for_what_is_touched() {
    let (mut memory, mut window) = (Memory::of(64), Window::default());
    for chunk in 0..10 {
        assert_eq!(memory.touch(&mut window, chunk, 0), 1);
    }
}

#[test]
fn a_window_that_is_cleared_knows_no_walk() {
    let (mut memory, mut window) = (Memory::of(64), Window::default());
    memory.walk(&mut window, 0..7);
    window.clear();
    assert_eq!(memory.touch(&mut window, 7, 16), 1);
}

proptest! {
    /// Whatever is touched, used and freed: a touch is given itself and absent neighbours, no more than it may have, and
    /// few walks are remembered.
    #[test]
    fn any_touches_are_given_absent_chunks_around_them(
        steps in prop::collection::vec((0..48u64, 0..20u64, 0..6u8), 0..300)
    ) {
        let (mut memory, mut window) = (Memory::of(48), Window::default());
        for (chunk, most, what) in steps {
            match (what, memory.0[chunk as usize]) {
                (0, _) => memory.0[chunk as usize] = State::Absent,
                (1, _) => memory.0[chunk as usize] = State::Discarding,
                (2, _) => window.clear(),
                (_, State::Absent) => {
                    let given = memory.touch(&mut window, chunk, most);
                    prop_assert!(given <= most.max(1), "{} of {}", given, most);
                }
                _ => memory.use_it(chunk),
            }
            prop_assert!(window.walks.len() <= MOST_WALKS);
        }
    }
}
