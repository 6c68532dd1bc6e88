//! How much of a node's memory is free, and how much could be.
//!
//! # References
//! Linux mm/vmstat.c (zoneinfo_show_print), mm/page_alloc.c (zone_watermark_ok)

use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the host shows its zones.
const ZONES: &str = "/proc/zoneinfo";

/// Has the kernel add up what each processor has counted for itself. Root only; without, a figure may be
/// off by some pages for each processor.
const ADD_UP: &str = "/proc/sys/vm/stat_refresh";

/// What the kernel may come to need of the node for itself, beside what it keeps free: without it, the last
/// chunk could be had on one day and not on the next.
const GROWTH: u64 = 512 << 10;

/// How often reports have the figures of all processors added up: the kernel schedules work on each of them for
/// that, and any client may ask for a report at any rate.
const REFRESH_EVERY: Duration = Duration::from_millis(100);

/// When figures were last exact.
#[derive(Debug, Default)]
pub(crate) struct Refresh(Mutex<Option<Instant>>);

impl Refresh {
    /// Whether figures are to be exact now; they are from now on for a while.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= REFRESH_EVERY);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

/// Pages of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Free, those that are kept ready for a processor among them.
    pub free: u64,
    /// Those of them that are kept ready for a processor.
    pub ready: u64,
    /// Ordinary memory of programs and files, which can move.
    pub movable: u64,
    /// What the kernel keeps free, for its own requests and for each processor: no program gets these.
    pub kept: u64,
}

impl Usage {
    /// A node's memory now. `exact` takes longer.
    pub(crate) fn read(node: u32, exact: bool) -> io::Result<Self> {
        if exact {
            // Not permitted to most, and no loss.
            let _ = fs::read(ADD_UP);
        }
        let text = fs::read_to_string(ZONES)?;
        let lacks =
            || io::Error::new(io::ErrorKind::InvalidData, format!("{ZONES} lacks node {node}"));
        Self::parse(&text, node).ok_or_else(lacks)
    }

    /// Pages that are no part of a capacity.
    pub(crate) fn spared(&self, page: u64) -> u64 {
        self.kept.saturating_add(GROWTH.div_ceil(page.max(1)))
    }

    fn parse(text: &str, node: u32) -> Option<Self> {
        let mut usage = None;
        let mut here = false;
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if first == "Node" {
                here = words.next()?.strip_suffix(',')?.parse() == Ok(node);
                continue;
            }
            if !here {
                continue;
            }
            let usage = usage.get_or_insert_with(Self::default);
            // `pages free 24953` is the one line with two words before its number.
            let first = if first == "pages" { words.next().unwrap_or_default() } else { first };
            let Some(Ok(number)) = words.next().map(str::parse::<u64>) else { continue };
            match first {
                "free" => usage.free = usage.free.saturating_add(number),
                "count:" => {
                    usage.free = usage.free.saturating_add(number);
                    usage.ready = usage.ready.saturating_add(number);
                }
                // Of the zone; each processor has a `high:` of its own. Requests stop at the low watermark;
                // and about as much again stays on the lists of processors (mm/page_alloc.c,
                // zone_set_pageset_high_and_batch, where high_min is the low watermark shared out).
                "high" | "low" => usage.kept = usage.kept.saturating_add(number),
                "nr_zone_inactive_anon"
                | "nr_zone_active_anon"
                | "nr_zone_inactive_file"
                | "nr_zone_active_file"
                | "nr_zone_unevictable" => usage.movable = usage.movable.saturating_add(number),
                _ => {}
            }
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
Node 0, zone   Normal
  pages free     900000
        high     9000
  pagesets
    cpu: 0
              count:    63
Node 1, zone   Normal
  per-node stats
      nr_inactive_anon 777
  pages free     26027
        boost    0
        min      506
        low      632
        high     758
        protection: (0, 0, 0, 0, 0)
      nr_free_pages 26027
      nr_zone_inactive_anon 1
      nr_zone_active_anon 20
      nr_zone_inactive_file 300
      nr_zone_active_file 4000
      nr_zone_unevictable 50000
  pagesets
    cpu: 0
              count:    187
              high:     938
              batch:    7
  vm stats threshold: 4
    cpu: 1
              count: 741
              high:  1391
  node_unreclaimable:  0
Node 1, zone  Movable
  pages free     0
        high     32
";

    #[test]
    fn all_zones_of_the_node_and_the_lists_of_processors_are_added_up() {
        let usage = Usage::parse(TWO, 1).unwrap_or_default();

        assert_eq!(usage.free, 26027 + 187 + 741);
        assert_eq!(usage.ready, 187 + 741);
        assert_eq!(usage.movable, 54321);
        assert_eq!(usage.kept, 758 + 632 + 32);
        assert_eq!(usage.spared(4096), 1422 + 128);
        assert_eq!(Usage::parse(TWO, 0).unwrap_or_default().free, 900_063);
    }

    #[test]
    fn however_often_figures_are_asked_for_they_are_exact_now_and_then() {
        let (refresh, start) = (Refresh::default(), Instant::now());

        let exact =
            (0..1000).filter(|millis| refresh.is_due(start + Duration::from_millis(*millis)));

        assert_eq!(exact.count(), 10);
    }

    #[test]
    fn a_node_that_is_not_there_has_no_usage() {
        assert_eq!(Usage::parse(TWO, 2), None);
        assert_eq!(Usage::parse("", 0), None);
        assert_eq!(Usage::parse("Node\nNode x", 0), None);
    }

    #[test]
    fn numbers_beyond_measure_do_not_overflow() {
        let text =
            format!("Node 1, zone\n pages free {0}\n count: {0}\n count: x\n cpu: {0}", u64::MAX);

        assert_eq!(Usage::parse(&text, 1).map(|usage| usage.free), Some(u64::MAX));
    }
}
