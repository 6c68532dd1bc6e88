//! Chance that can be had again from its seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A sequence of numbers without rhyme (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of this seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence with a fresh seed, which is printed.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = (now.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(32);
        println!("the dice have the seed {seed:#x}");
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below this one, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }

    /// A time up to this one.
    pub fn time(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.roll() as f64 / u64::MAX as f64)
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}
