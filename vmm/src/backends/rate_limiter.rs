//! Limits on what a device does in a time: Firecracker's token buckets.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::ports::Throttle;
use rustix::fd::{AsRawFd, RawFd};

use crate::error::say;
use crate::spec::{BucketSpec, RateLimiterChange, RateLimiterSpec};
use crate::sys::timer::Timer;

/// A number of tokens that fills up again with time.
///
/// Tokens come back with each moment that passes, not in steps. A request for more than there are is served as
/// soon as there is one token, and the bucket then owes the rest, so that a request larger than the bucket is
/// slow but not stuck.
#[derive(Debug)]
struct Bucket {
    size: i128,
    refill: Duration,
    /// Beyond `size`, once.
    burst: i128,
    /// Below zero while it owes some, in tokens times `refill` nanoseconds.
    level: i128,
    filled: Instant,
}

impl Bucket {
    fn new(spec: BucketSpec, now: Instant) -> Self {
        let refill = Duration::from_millis(spec.refill_time_ms.get());
        let size = i128::from(spec.size.get());
        let mut bucket =
            Self { size, refill, burst: spec.one_time_burst.into(), level: 0, filled: now };
        bucket.level = bucket.full();
        bucket
    }

    /// Nanoseconds of a refill, which a token is divided into: 64 bits hold a year of milliseconds and more.
    fn parts(&self) -> i128 {
        self.refill.as_nanos().max(1) as i128
    }

    fn full(&self) -> i128 {
        self.size * self.parts()
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_nanos() as i128;
        self.level = self.full().min(self.level.saturating_add(self.size.saturating_mul(passed)));
        self.filled = now;
    }

    /// How long until there is a token.
    fn wait(&self) -> Option<Duration> {
        let lacking = self.parts() - self.level;
        (self.burst == 0 && lacking > 0).then(|| {
            let nanos = (lacking + self.size - 1) / self.size;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        })
    }

    fn take(&mut self, tokens: u64) {
        let tokens = i128::from(tokens);
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        self.level = self.level.saturating_sub((tokens - from_burst).saturating_mul(self.parts()));
    }
}

/// What a device may do: so many bytes, and so many operations, in a time.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    timer: Timer,
    waiting: bool,
    throttled: u64,
}

impl RateLimiter {
    /// A limiter whose buckets are full.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(spec: RateLimiterSpec) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            bandwidth: spec.bandwidth.map(|bucket| Bucket::new(bucket, now)),
            ops: spec.ops.map(|bucket| Bucket::new(bucket, now)),
            timer: Timer::new()?,
            waiting: false,
            throttled: 0,
        })
    }

    /// Makes a change: a new bucket is full.
    pub fn update(&mut self, change: RateLimiterChange) {
        let now = Instant::now();
        let full = |bucket| Bucket::new(bucket, now);
        self.bandwidth = change.bandwidth.apply(self.bandwidth.take(), full);
        self.ops = change.ops.apply(self.ops.take(), full);
        // What waits looks at the new ones: it waits for the timer.
        if std::mem::take(&mut self.waiting) {
            // A timer that cannot be set goes off as it was.
            let _ = self.timer.once(Duration::from_nanos(1));
        }
    }

    /// Whether an operation may begin now. If not, [`timer`](Self::timer) goes off when it may.
    pub fn is_open(&mut self) -> bool {
        // Without limits there is no look at the clock.
        self.bandwidth.is_none() && self.ops.is_none() || self.is_open_at(Instant::now())
    }

    fn is_open_at(&mut self, now: Instant) -> bool {
        let buckets = [&mut self.bandwidth, &mut self.ops].into_iter().flatten();
        let wait = buckets
            .filter_map(|bucket| {
                bucket.fill(now);
                bucket.wait()
            })
            .max();
        let Some(wait) = wait else { return true };
        if !self.waiting {
            self.waiting = true;
            self.throttled += 1;
            if let Err(error) = self.timer.once(wait) {
                say(&format!("a device is not limited, as its timer cannot be set: {error}"));
                self.waiting = false;
                return true;
            }
        }
        false
    }

    /// Counts an operation of so many bytes that has been let through.
    pub fn spend(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
    }

    /// What goes off when operations may begin again.
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Takes the timer's event: whether it went off.
    pub fn take_timer(&mut self) -> bool {
        let went_off = self.timer.take();
        self.waiting &= !went_off;
        went_off
    }

    /// How often it has held a device up.
    pub fn throttled(&self) -> u64 {
        self.throttled
    }
}

/// A limiter that a device asks, its thread waits for, and the control socket changes. Clones are one limiter.
#[derive(Clone, Debug)]
pub struct SharedLimiter {
    limiter: Arc<Mutex<RateLimiter>>,
    timer: RawFd,
}

impl SharedLimiter {
    /// A limiter whose buckets are full.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(spec: RateLimiterSpec) -> io::Result<Self> {
        let limiter = RateLimiter::new(spec)?;
        let timer = limiter.timer();
        Ok(Self { limiter: Arc::new(Mutex::new(limiter)), timer })
    }

    /// See [`RateLimiter::update`].
    pub fn update(&self, change: RateLimiterChange) {
        self.lock().update(change);
    }

    /// See [`RateLimiter::timer`]. It is open for as long as this lives.
    pub fn timer(&self) -> RawFd {
        self.timer
    }

    /// See [`RateLimiter::take_timer`].
    pub fn take_timer(&self) -> bool {
        self.lock().take_timer()
    }

    /// See [`RateLimiter::throttled`].
    pub fn throttled(&self) -> u64 {
        self.lock().throttled()
    }

    fn lock(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Throttle for SharedLimiter {
    fn is_open(&mut self) -> bool {
        self.lock().is_open()
    }

    fn spend(&mut self, bytes: u64) {
        self.lock().spend(bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZero;

    use proptest::prelude::*;

    use super::*;
    use crate::spec::BucketChange;

    fn bucket(size: u64, refill_time_ms: u64, one_time_burst: u64) -> BucketSpec {
        let size = NonZero::new(size).unwrap();
        let refill_time_ms = NonZero::new(refill_time_ms).unwrap();
        BucketSpec { size, refill_time_ms, one_time_burst }
    }

    /// How many operations of so many bytes begin in a time, tried every 100 microseconds.
    fn begun(spec: RateLimiterSpec, bytes: u64, time: Duration) -> u64 {
        let mut limiter = RateLimiter::new(spec).unwrap();
        let start = Instant::now();
        let mut begun = 0;
        let mut at = Duration::ZERO;
        while at < time {
            while begun < 1_000_000 && limiter.is_open_at(start + at) {
                limiter.spend(bytes);
                begun += 1;
            }
            limiter.waiting = false;
            at += Duration::from_micros(100);
        }
        begun
    }

    #[test]
    fn operations_come_at_the_rate_whatever_the_length_of_a_refill() {
        let second = Duration::from_secs(1);
        for (size, refill) in [(3000, 1000), (300, 100), (30, 10), (3, 1)] {
            let ops = Some(bucket(size, refill, 0));
            let count = begun(RateLimiterSpec { ops, bandwidth: None }, 4096, second);

            assert!((3000..=3001 + size).contains(&count), "{size} in {refill} ms: {count}");
        }
    }

    #[test]
    fn a_request_larger_than_its_bucket_is_slow_and_not_stuck() {
        let bandwidth = Some(bucket(1000, 100, 0));
        let limits = RateLimiterSpec { bandwidth, ops: None };

        // 1000 bytes at first and 100 000 in the time: twenty requests, and one that owes its bytes.
        assert_eq!(begun(limits, 5000, Duration::from_secs(10)), 21);
    }

    #[test]
    fn a_burst_is_there_once() {
        let ops = Some(bucket(10, 1000, 500));
        let limits = RateLimiterSpec { ops, bandwidth: None };

        assert_eq!(begun(limits, 1, Duration::from_micros(50)), 510);
        assert_eq!(begun(limits, 1, Duration::from_secs(2)), 529);
    }

    #[test]
    fn the_timer_goes_off_when_there_is_a_token() {
        let ops = Some(bucket(1, 1, 0));
        let mut limiter = RateLimiter::new(RateLimiterSpec { ops, bandwidth: None }).unwrap();
        assert!(limiter.is_open());
        limiter.spend(1);
        assert!(!limiter.is_open());

        while !limiter.take_timer() {}

        assert!(limiter.is_open());
        assert_eq!(limiter.throttled(), 1);
    }

    #[test]
    fn new_limits_are_looked_at_at_once() {
        let slow = bucket(1, 86_400_000, 0);
        for ops in [BucketChange::Set(slow), BucketChange::Lift] {
            let limits = RateLimiterSpec { ops: Some(slow), bandwidth: None };
            let mut limiter = RateLimiter::new(limits).unwrap();
            limiter.spend(1);
            assert!(!limiter.is_open());

            limiter.update(RateLimiterChange { ops, ..RateLimiterChange::default() });

            while !limiter.take_timer() {}
            assert!(limiter.is_open());
        }
    }

    #[test]
    fn without_limits_everything_is_let_through() {
        let mut limiter = RateLimiter::new(RateLimiterSpec::default()).unwrap();
        limiter.spend(u64::MAX);

        assert!(limiter.is_open());
    }

    proptest! {
        #[test]
        fn no_limit_makes_it_overflow(
            size in 1u64..,
            refill in 1u64..=86_400_000,
            burst: u64,
            requests in prop::collection::vec((any::<u64>(), 0u64..1 << 40), 0..20),
        ) {
            let now = Instant::now();
            let mut bucket = Bucket::new(bucket(size, refill, burst), now);
            for (tokens, passed) in requests {
                bucket.fill(now + Duration::from_nanos(passed));
                let _ = bucket.wait();
                bucket.take(tokens);
            }
        }
    }
}
