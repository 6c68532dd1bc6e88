//! The ring of events, its writers and its readers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Event;

/// Events that are kept for a reader who comes late or is slow. A guest can cause some of them again and again, so
/// there is a bound; a VM's life has a handful. With the longest [`Detail`](super::Detail) they take 300 KiB.
const MOST_EVENTS: usize = 128;

/// A log of what happens to one VM. Clones are the same log; the default one keeps nothing.
#[derive(Clone, Debug, Default)]
pub struct EventLog(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<Ring>,
    /// Signalled by each event.
    appended: EventFd,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    /// The sequence number of the last event; the first one has 1.
    last: u64,
}

/// One event as it is sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// Its sequence number.
    pub seq: u64,
    /// A JSON object and a newline.
    pub text: Arc<str>,
}

#[derive(Serialize)]
struct Stamped<'a> {
    seq: u64,
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl EventLog {
    /// A log that has readers.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let appended = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Some(Arc::new(Inner { ring: Mutex::default(), appended }))))
    }

    /// Appends an event, the oldest one making room, and wakes the readers.
    pub fn publish(&self, event: &Event) {
        let Some(inner) = &self.0 else { return };
        let mut ring = inner.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        // An event is plain data, and is written as JSON always.
        let written = serde_json::to_string(&Stamped { seq: ring.last, time, event });
        if let Ok(text) = written {
            if ring.lines.len() == MOST_EVENTS {
                ring.lines.pop_front();
            }
            let line = Line { seq: ring.last, text: format!("{text}\n").into() };
            ring.lines.push_back(line);
        }
        drop(ring);
        // A full event counter is an event as well.
        let _ = inner.appended.write(1);
    }

    /// The oldest event that is kept and has this sequence number or a higher one.
    pub fn from(&self, seq: u64) -> Option<Line> {
        let inner = self.0.as_ref()?;
        let ring = inner.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ring.lines.partition_point(|line| line.seq < seq);
        ring.lines.get(at).cloned()
    }

    /// The sequence number of the last event; 0 if nothing has happened.
    pub fn last(&self) -> u64 {
        let last =
            |inner: &Arc<Inner>| inner.ring.lock().unwrap_or_else(PoisonError::into_inner).last;
        self.0.as_ref().map_or(0, last)
    }

    /// What becomes readable with each event, for the loop of the readers. `None` for a log that keeps nothing.
    pub fn fd(&self) -> Option<RawFd> {
        self.0.as_ref().map(|inner| inner.appended.as_raw_fd())
    }

    /// Takes the event that made [`fd`](Self::fd) readable.
    pub fn take(&self) {
        if let Some(inner) = &self.0 {
            // Nothing to read is nothing to take.
            let _ = inner.appended.read();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;

    fn seqs(log: &EventLog, mut from: u64) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(line) = log.from(from) {
            found.push(line.seq);
            from = line.seq + 1;
        }
        found
    }

    #[test]
    fn an_event_is_a_numbered_json_object_with_its_time_on_a_line_of_its_own() {
        let log = EventLog::new().unwrap();

        log.publish(&Event::TagStorageExhausted { detail: "one\nchunk".into() });
        log.publish(&Event::Resumed);

        let text = log.from(1).unwrap().text;
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let first: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(first["seq"], 1);
        assert_eq!(first["event"], "tag_storage_exhausted");
        assert_eq!(first["detail"], "one\u{fffd}chunk");
        assert!(first["time"].as_str().unwrap().ends_with('Z'), "{text}");
        let second: Value = serde_json::from_str(&log.from(2).unwrap().text).unwrap();
        assert_eq!(second["event"], "resumed");
        assert_eq!(log.from(3), None);
    }

    #[test]
    fn the_oldest_events_make_room_and_leave_a_gap_in_the_numbers() {
        let log = EventLog::new().unwrap();

        (0..MOST_EVENTS + 3).for_each(|_| log.publish(&Event::Resumed));

        let all = seqs(&log, 1);
        assert_eq!(all.len(), MOST_EVENTS);
        assert_eq!(all.first(), Some(&4));
        assert_eq!(all.last(), Some(&(MOST_EVENTS as u64 + 3)));
    }

    #[test]
    fn each_event_wakes_the_readers() {
        let log = EventLog::new().unwrap();
        let inner = log.0.clone().unwrap();
        assert!(inner.appended.read().is_err());

        log.clone().publish(&Event::BrokerLost);

        assert_eq!(inner.appended.read().unwrap(), 1);
        log.take();
        assert_eq!(log.fd(), Some(inner.appended.as_raw_fd()));
    }

    #[test]
    fn a_log_without_readers_keeps_nothing() {
        let log = EventLog::default();

        log.publish(&Event::Resumed);

        assert_eq!((log.from(0), log.fd()), (None, None));
    }
}
