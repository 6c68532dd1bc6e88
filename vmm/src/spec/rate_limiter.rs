//! Validated limits on what a device does in a time.

use std::num::NonZero;

use thiserror::Error;

use crate::config::{RateLimiterSection, TokenBucketSection};

/// The longest refill: the arithmetic of a bucket of 2^64 tokens fits 128 bits with it, and a limit that is
/// felt once a day is none.
const MAX_REFILL_MS: u64 = 24 * 60 * 60 * 1000;

/// Limits, each of which may be absent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RateLimiterSpec {
    /// On bytes.
    pub bandwidth: Option<BucketSpec>,
    /// On operations.
    pub ops: Option<BucketSpec>,
}

/// A number of tokens that come back within a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BucketSpec {
    /// How many tokens there are.
    pub size: NonZero<u64>,
    /// In how many milliseconds all of them come back, a day at most.
    pub refill_time_ms: NonZero<u64>,
    /// Tokens beyond `size`, once.
    pub one_time_burst: u64,
}

/// What becomes of limits at run time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RateLimiterChange {
    /// That on bytes.
    pub bandwidth: BucketChange,
    /// That on operations.
    pub ops: BucketChange,
}

/// What becomes of one limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BucketChange {
    /// It stays.
    #[default]
    Keep,
    /// There is none.
    Lift,
    /// It is this, with all its tokens.
    Set(BucketSpec),
}

impl RateLimiterChange {
    /// Checks the section of a change: a bucket that is absent stays, and one of size or time 0 lifts the limit, as
    /// in Firecracker.
    ///
    /// # Errors
    /// When a time is more than a day.
    pub fn new(section: RateLimiterSection) -> Result<Self, RefillError> {
        let change = |section: Option<TokenBucketSection>| match section {
            Some(section) => BucketSpec::new(section)
                .map(|bucket| bucket.map_or(BucketChange::Lift, BucketChange::Set)),
            None => Ok(BucketChange::Keep),
        };
        Ok(Self { bandwidth: change(section.bandwidth)?, ops: change(section.ops)? })
    }
}

impl BucketChange {
    /// What the limit is after the change; `set` makes a new one.
    pub fn apply<T>(self, current: Option<T>, set: impl FnOnce(BucketSpec) -> T) -> Option<T> {
        match self {
            Self::Keep => current,
            Self::Lift => None,
            Self::Set(bucket) => Some(set(bucket)),
        }
    }
}

/// A limit that is none.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "a rate limiter's refill_time of {0} ms is more than a day ({MAX_REFILL_MS} ms): lower it, and its size"
)]
pub struct RefillError(u64);

impl RateLimiterSpec {
    /// Checks a section. A bucket of size or time 0 is no limit, as in Firecracker.
    ///
    /// # Errors
    /// When a time is more than a day.
    pub fn new(section: RateLimiterSection) -> Result<Self, RefillError> {
        let bucket = |section: Option<TokenBucketSection>| match section {
            Some(section) => BucketSpec::new(section),
            None => Ok(None),
        };
        Ok(Self { bandwidth: bucket(section.bandwidth)?, ops: bucket(section.ops)? })
    }

    /// Makes a change.
    pub fn update(&mut self, change: RateLimiterChange) {
        self.bandwidth = change.bandwidth.apply(self.bandwidth, |bucket| bucket);
        self.ops = change.ops.apply(self.ops, |bucket| bucket);
    }

    /// The section that it came from, if it limits anything.
    pub fn to_section(self) -> Option<RateLimiterSection> {
        (self != Self::default()).then(|| RateLimiterSection {
            bandwidth: self.bandwidth.map(BucketSpec::to_section),
            ops: self.ops.map(BucketSpec::to_section),
        })
    }
}

impl BucketSpec {
    fn new(section: TokenBucketSection) -> Result<Option<Self>, RefillError> {
        if section.refill_time > MAX_REFILL_MS {
            return Err(RefillError(section.refill_time));
        }
        let one_time_burst = section.one_time_burst.unwrap_or(0);
        Ok(NonZero::new(section.size)
            .zip(NonZero::new(section.refill_time))
            .map(|(size, refill_time_ms)| Self { size, refill_time_ms, one_time_burst }))
    }

    fn to_section(self) -> TokenBucketSection {
        TokenBucketSection {
            size: self.size.get(),
            one_time_burst: (self.one_time_burst > 0).then_some(self.one_time_burst),
            refill_time: self.refill_time_ms.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn section(size: u64, one_time_burst: Option<u64>, refill_time: u64) -> RateLimiterSection {
        let bucket = TokenBucketSection { size, one_time_burst, refill_time };
        RateLimiterSection { bandwidth: Some(bucket), ops: None }
    }

    #[test]
    fn a_limit_is_shown_as_it_was_given() {
        let limits = section(1000, Some(5), 100);

        assert_eq!(RateLimiterSpec::new(limits).unwrap().to_section(), Some(limits));
    }

    #[test]
    fn no_tokens_or_no_time_is_no_limit() {
        for none in [section(0, None, 100), section(5, None, 0)] {
            assert_eq!(RateLimiterSpec::new(none).unwrap(), RateLimiterSpec::default());
        }
    }

    #[test]
    fn a_change_keeps_what_is_absent_and_lifts_what_has_no_tokens_or_no_time() {
        let mut limits = RateLimiterSpec::new(section(1000, None, 100)).unwrap();
        let change = |section| RateLimiterChange::new(section).unwrap();
        limits.update(change(RateLimiterSection::default()));
        assert_eq!(limits.to_section(), Some(section(1000, None, 100)));
        limits.update(change(section(7, None, 100)));
        assert_eq!(limits.to_section(), Some(section(7, None, 100)));

        for lifted in [section(0, None, 100), section(5, None, 0), section(0, None, 0)] {
            let mut limits = limits;
            limits.update(change(lifted));
            assert_eq!(limits, RateLimiterSpec::default());
        }
    }

    #[test]
    fn a_time_beyond_a_day_is_refused() {
        assert!(RateLimiterSpec::new(section(1, None, MAX_REFILL_MS)).is_ok());
        assert!(RateLimiterSpec::new(section(1, None, MAX_REFILL_MS + 1)).is_err());
    }
}
