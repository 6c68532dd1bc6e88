//! Numbers that a seed decides: the same on every machine, as all of it is arithmetic of integers.

/// A stream of numbers.
///
/// # References
/// Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014: SplitMix64
#[derive(Clone, Debug)]
pub struct Dice(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Dice {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for each number of a thing: what befalls one thing is no other's.
    pub fn of(seed: u64, number: u64) -> Self {
        Self(Self(seed ^ Self(number).draw()).draw())
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The upper half of the product is below `end`.
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// A number from the first up to the second, which is not less.
    pub fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        low + self.below(high - low + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_numbers() {
        let mut dice = Dice::new(1_234_567);
        let first = [dice.draw(), dice.draw(), dice.draw()];
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first, expected);
    }

    #[test]
    fn numbers_are_within_their_bounds() {
        let mut dice = Dice::of(1, 2);
        let seen: std::collections::BTreeSet<u64> =
            (0..200).map(|_| dice.between((3, 6))).collect();
        assert_eq!(seen, (3..=6).collect());
    }
}
