//! Whether a worker looks at its queue once more before it waits for the guest's notification.
//!
//! Where worker and vCPU share a processor, the notification of the first of many requests has the worker run at once,
//! and each of them is a batch of its own. A worker that then yields, with notifications off, finds the others together
//! when the guest waits. A guest that has one request at a time is better off with a notification each: its vCPU takes
//! the interrupt before it has to wait. Where the worker has a processor of its own, it finds nothing by yielding.

use std::time::{Duration, Instant};

/// A yield that takes longer let another program run, which a worker that is woken would have preempted. A guest that
/// fills a queue meanwhile may need that long as well.
const LONG: Duration = Duration::from_micros(500);

/// As many requests as are worth a long yield.
const WORTH: u64 = 16;

/// After so many turns in a row with less than two requests, ...
const MOST_MISSES: u32 = 8;
/// ... or a long yield that brought few, none is tried for so many events.
const REST: u32 = 256;

/// Most looks in a row, so that the worker sees its other events.
const MOST_LOOKS: u32 = 64;

/// Decides it by how the last looks went.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    looks: u32,
    /// The last yield was long.
    was_long: bool,
    misses: u32,
    resting: u32,
}

impl Lookout {
    /// Begins with an event of the queue. Whether to look again after what it brought has been done: notifications
    /// stay off then.
    pub(super) fn begin(&mut self) -> bool {
        self.looks = 0;
        self.was_long = false;
        self.resting = self.resting.saturating_sub(1);
        self.resting == 0
    }

    /// Learns how many requests a turn had. Whether to look again.
    pub(super) fn found(&mut self, requests: u64) -> bool {
        self.misses = if requests < 2 { self.misses + 1 } else { 0 };
        if self.misses >= MOST_MISSES {
            self.rest();
        }
        self.resting == 0
    }

    /// Learns how many requests a turn had that may have come after a yield.
    pub(super) fn brought(&mut self, requests: u64) {
        if std::mem::take(&mut self.was_long) && requests < WORTH {
            self.rest();
        }
    }

    /// Yields before the next look. Whether there is one: otherwise the queue is to be signalled, as its notifications
    /// are off.
    pub(super) fn look_again(&mut self) -> bool {
        self.looks += 1;
        self.give_way();
        self.looks < MOST_LOOKS
    }

    /// Yields. For what is done already, an interrupt may follow: that of what comes meanwhile is the same.
    pub(super) fn give_way(&mut self) {
        let start = Instant::now();
        std::thread::yield_now();
        self.was_long = start.elapsed() > LONG;
    }

    fn rest(&mut self) {
        self.misses = 0;
        self.resting = REST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_requests_end_the_looks_which_are_tried_again_later() {
        let mut lookout = Lookout::default();
        assert!(lookout.begin());
        let looks = (0..MOST_MISSES).take_while(|_| lookout.found(1)).count();
        assert_eq!(looks as u32, MOST_MISSES - 1);

        let rest = (0..REST).take_while(|_| !lookout.begin()).count();

        assert_eq!(rest as u32, REST - 1);
    }

    #[test]
    fn many_requests_at_once_are_looked_for() {
        let mut lookout = Lookout::default();
        for _ in 0..MOST_MISSES {
            assert!(lookout.begin());
            assert!(lookout.found(1) && lookout.found(2));
        }
    }

    #[test]
    fn looks_in_a_row_have_an_end() {
        let mut lookout = Lookout::default();
        assert!(lookout.begin());

        assert!((0..MOST_LOOKS).any(|_| !lookout.look_again()));
    }

    #[test]
    fn a_long_yield_that_brought_few_is_not_tried_again_soon() {
        for (requests, again) in [(0, false), (WORTH - 1, false), (WORTH, true)] {
            let mut lookout = Lookout { was_long: true, ..Lookout::default() };

            lookout.brought(requests);

            assert_eq!(lookout.begin(), again, "{requests}");
        }
    }
}
