//! Messages of which a peer decides how many there are.

use std::time::{Duration, Instant};

use crate::error::say;

/// The most messages in one period: a peer that comes and goes again is tried ten times a second, and each time is two
/// messages.
const MOST: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);

/// What has been said in the present period.
#[derive(Debug)]
pub(super) struct Told {
    since: Instant,
    count: u32,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, count: 0 }
    }

    /// Prints a message, if there is room for one.
    pub(super) fn say(&mut self, text: &str) {
        if let Some(text) = self.admit(text, Instant::now()) {
            say(&text);
        }
    }

    fn admit(&mut self, text: &str, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.since) >= PERIOD {
            *self = Self::new(now);
        }
        self.count = self.count.saturating_add(1);
        match self.count {
            ..MOST => Some(text.to_owned()),
            MOST => Some(format!("{text}; of what follows within a minute nothing is said")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_has_so_many_messages_and_the_next_as_many_again() {
        let start = Instant::now();
        let mut told = Told::new(start);
        let mut said = |at: u64, times: u32| {
            let now = start + Duration::from_secs(at);
            (0..times).filter_map(|_| told.admit("gone", now)).collect::<Vec<_>>()
        };

        let first = said(1, 3 * MOST);
        assert_eq!(first.len(), MOST as usize);
        assert_eq!(first[0], "gone");
        assert!(first[MOST as usize - 1].contains("nothing is said"));
        assert!(said(59, 1).is_empty());
        assert_eq!(said(60, MOST + 1).len(), MOST as usize);
    }
}
