//! `snapshot[,MIB[,vectors]]`: fills memory (64 MiB) with tags and data that only this run can know, and says on request
//! whether all of it is still so. For guests that are saved and restored: nothing of this is on any disk. With `vectors`
//! a thread of each processor keeps a pattern in the registers of SVE, whenever nothing else runs there.
//!
//! It reports a beat every second, and answers lines on the console until `poweroff`: `verify` is answered by
//! `verified`, `change`, which writes some of the data and the tags anew, by `changed`, and `offline N` and `online N`,
//! which switch a processor off and on, by `switched`.

use std::fs;
use std::io::BufRead;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{After, mte, number};
use crate::region::{GRANULE, Region};
use crate::vectors::{self, Vectors};
use crate::{machine, report, system};

pub(super) const NAME: &str = "snapshot";

/// Between two reports of a beat. Each byte is an exit, and an emulated host that is slower than its clock has ever less
/// time for anything else: what comes at a fixed rate is to be little.
const BEAT: Duration = Duration::from_secs(1);
/// Between two ticks of a processor.
const TICK: Duration = Duration::from_millis(100);
/// How many ticks of each processor a verification waits for.
const TICKS: u64 = 5;
/// How often it looks before it gives a processor up: for four minutes.
const LOOKS: u32 = 2400;
/// Granules that have one kind of pattern: 64 KiB.
const PIECE: usize = 4096;
/// For how many turns of a loop vectors are held: much longer than it takes to load them and to look at them.
const TURNS: u64 = 2_000_000;

pub(super) fn run(argument: Option<&str>) -> Result<After, String> {
    let (size, more) = match argument.and_then(|argument| argument.split_once(',')) {
        Some((size, more)) => (Some(size), more),
        None => (argument, ""),
    };
    if !["", "vectors"].contains(&more) {
        return Err(format!("'{more}' is nothing that this workload does"));
    }
    let mib = usize::try_from(number(size, 64)?).ok();
    let size = mib.and_then(|mib| mib.checked_mul(1 << 20)).ok_or("so much memory is none")?;
    let nonce = system::random_word().map_err(|error| format!("no nonce: {error}"))?;
    let tagged = machine::has_mte();
    let region = Region::new(size, tagged).map_err(|error| format!("no memory: {error}"))?;
    let cpus = machine::online_cpus();
    let mut memory = Memory { region, tagged, nonce, cpus, changes: AtomicU64::new(0) };
    memory.on_each_cpu(Memory::fill)?;
    let mut watch = Watch { beat: Arc::default(), ticks: Vec::new(), held: Vec::new() };
    watch.ticks = memory.cpus.iter().map(|cpu| tick_on(*cpu)).collect();
    if more == "vectors" {
        let seed = |cpu: usize| mix(nonce ^ cpu as u64);
        watch.held = memory.cpus.iter().map(|cpu| hold_on(*cpu, seed(*cpu))).collect();
    }
    let cpus = memory.cpus.len();
    let ready = json!({
        "nonce": memory.nonce(), "cpus": cpus, "mte": tagged, "vector_bytes": vectors::length(),
    });
    report::send(NAME, "ready", ready);
    let beats = Arc::clone(&watch.beat);
    thread::spawn(move || beat_forever(&beats));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("cannot read the console: {error}"))?;
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("verify", "") => report::send(NAME, "verified", memory.verify(&watch)?),
            ("change", "") => {
                memory.change()?;
                report::send(NAME, "changed", json!({}));
            }
            ("poweroff", "") => return Ok(After::PowerOff),
            (action @ ("offline" | "online"), cpu) => {
                let on = action == "online";
                let cpu = switch(cpu, on)?;
                memory.cpus = machine::online_cpus();
                if on {
                    watch.ticks.push(tick_on(cpu));
                }
                report::send(NAME, "switched", json!({ "cpus": memory.cpus.len() }));
            }
            _ => return Err(format!("'{line}' is no command of this workload")),
        }
    }
    // A console that hangs up is no wish to end, nor to lose what was written.
    std::mem::forget(memory);
    Ok(After::Stay)
}

/// Switches a processor on or off.
fn switch(cpu: &str, on: bool) -> Result<usize, String> {
    let cpu = cpu.parse().map_err(|_| format!("'{cpu}' is no processor"))?;
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(&path, if on { "1" } else { "0" }).map_err(|error| format!("{path}: {error}"))?;
    Ok(cpu)
}

/// What other threads count.
struct Watch {
    beat: Arc<AtomicU64>,
    /// Ticks of each processor.
    ticks: Vec<Arc<AtomicU64>>,
    /// How often vectors were held on each processor, and were not as they had been set.
    held: Vec<Arc<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    times: AtomicU64,
    wrong: AtomicU64,
}

/// Keeps a pattern in the vectors of a processor.
fn hold_on(cpu: usize, seed: u64) -> Arc<Held> {
    let held = Arc::new(Held::default());
    let counted = Arc::clone(&held);
    thread::spawn(move || {
        if system::run_on(cpu).is_ok() && system::yield_to_others().is_ok() {
            let pattern = Vectors::pattern(seed);
            loop {
                let same = pattern.hold(TURNS) == pattern;
                counted.wrong.fetch_add(u64::from(!same), Ordering::Relaxed);
                counted.times.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    held
}

fn beat_forever(beat: &AtomicU64) {
    loop {
        let number = beat.fetch_add(1, Ordering::Relaxed);
        let now = system::monotonic_ns();
        report::send(NAME, "beat", json!({ "beat": number, "monotonic_ns": now }));
        thread::sleep(BEAT);
    }
}

/// Counts the ends of sleeps on a processor: each is an interrupt of that processor's timer.
fn tick_on(cpu: usize) -> Arc<AtomicU64> {
    let ticks = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ticks);
    thread::spawn(move || {
        if system::run_on(cpu).is_ok() {
            loop {
                thread::sleep(TICK);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    ticks
}

/// How many of these counters move on by so much.
fn moving<'a>(counters: impl Iterator<Item = &'a AtomicU64> + Clone, by: u64) -> usize {
    let now = || counters.clone().map(|counter| counter.load(Ordering::Relaxed));
    let goals: Vec<u64> = now().map(|count| count.saturating_add(by)).collect();
    let there = || now().zip(&goals).filter(|(count, goal)| count >= *goal).count();
    for _ in 0..LOOKS {
        if there() == goals.len() {
            break;
        }
        thread::sleep(TICK);
    }
    there()
}

/// Memory whose every granule has a tag and data by its place and the nonce.
struct Memory {
    region: Region,
    tagged: bool,
    nonce: u64,
    cpus: Vec<usize>,
    /// How often it has been changed.
    changes: AtomicU64,
}

/// What is not as it was written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Wrong {
    tags: usize,
    words: usize,
}

impl Memory {
    fn nonce(&self) -> String {
        format!("{:016x}", self.nonce)
    }

    fn granules(&self) -> usize {
        self.region.size() / GRANULE
    }

    /// Does something to a part of the granules on each processor, and adds up what is wrong.
    fn on_each_cpu(
        &self,
        work: fn(&Self, std::ops::Range<usize>) -> Wrong,
    ) -> Result<Wrong, String> {
        let failed: OnceLock<String> = OnceLock::new();
        let share = self.granules().div_ceil(self.cpus.len().max(1));
        let mut all = Wrong::default();
        thread::scope(|scope| {
            let failed = &failed;
            let part = |(index, cpu): (usize, &usize)| {
                let cpu = *cpu;
                let first = index.saturating_mul(share).min(self.granules());
                let last = first.saturating_add(share).min(self.granules());
                scope.spawn(move || {
                    if let Err(error) = system::run_on(cpu) {
                        let _ = failed.set(format!("processor {cpu}: {error}"));
                    }
                    work(self, first..last)
                })
            };
            let parts: Vec<_> = self.cpus.iter().enumerate().map(part).collect();
            for part in parts {
                match part.join() {
                    Ok(wrong) => {
                        all.tags = all.tags.saturating_add(wrong.tags);
                        all.words = all.words.saturating_add(wrong.words);
                    }
                    Err(_) => drop(failed.set("a thread has panicked".to_owned())),
                }
            }
        });
        failed.into_inner().map_or(Ok(all), Err)
    }

    fn fill(&self, granules: std::ops::Range<usize>) -> Wrong {
        for index in granules {
            let Granule { tag, words } = Granule::of(self.nonce, index);
            let offset = index.saturating_mul(GRANULE);
            if self.tagged {
                self.region.tag(offset, GRANULE, tag);
            }
            self.region.write_word(offset, words[0]);
            self.region.write_word(offset.saturating_add(8), words[1]);
        }
        Wrong::default()
    }

    /// Writes the granules that this change is of.
    fn rewrite(&self, granules: std::ops::Range<usize>) -> Wrong {
        let change = self.changes.load(Ordering::Relaxed);
        for index in granules {
            let Granule { tag, words } = self.granule(index);
            let offset = index.saturating_mul(GRANULE);
            let what = Changed::by(change, index);
            if self.tagged && what != Changed::Nothing {
                self.region.tag(offset, GRANULE, tag);
            }
            if what == Changed::All {
                self.region.write_word(offset, words[0]);
                self.region.write_word(offset.saturating_add(8), words[1]);
            }
        }
        Wrong::default()
    }

    fn change(&self) -> Result<Wrong, String> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.on_each_cpu(Self::rewrite)
    }

    /// What a granule has, as often as memory has been changed.
    fn granule(&self, index: usize) -> Granule {
        let all = 1..=self.changes.load(Ordering::Relaxed);
        all.fold(Granule::of(self.nonce, index), |before, change| {
            let other = Granule::of(mix(self.nonce ^ change), index);
            match Changed::by(change, index) {
                Changed::Nothing => before,
                Changed::Tag => Granule { tag: other.tag, ..before },
                Changed::All => other,
            }
        })
    }

    fn look(&self, granules: std::ops::Range<usize>) -> Wrong {
        let mut wrong = Wrong::default();
        for index in granules {
            let Granule { tag, words } = self.granule(index);
            let offset = index.saturating_mul(GRANULE);
            let found = [offset, offset.saturating_add(8)].map(|at| self.region.read_word(at));
            wrong.words = wrong.words.saturating_add(usize::from(found != words));
            let differs = self.tagged && self.region.tag_at(offset) != tag;
            wrong.tags = wrong.tags.saturating_add(usize::from(differs));
        }
        wrong
    }

    fn verify(&self, watch: &Watch) -> Result<Value, String> {
        let wrong = self.on_each_cpu(Self::look)?;
        let ticking = moving(watch.ticks.iter().map(|ticks| &**ticks), TICKS);
        // What is held when this begins may have been held since the save.
        let holding = moving(watch.held.iter().map(|held| &held.times), 2);
        let wrong_vectors: u64 =
            watch.held.iter().map(|held| held.wrong.load(Ordering::Relaxed)).sum();
        let stopped = if self.tagged { self.mismatch_is_stopped()? } else { true };
        let children_stopped = if self.tagged { mte::mistakes()? } else { true };
        let moving = ticking == watch.ticks.len() && holding == watch.held.len();
        let right = wrong == Wrong::default() && wrong_vectors == 0;
        Ok(json!({
            "nonce": self.nonce(),
            "beat": watch.beat.load(Ordering::Relaxed),
            "monotonic_ns": system::monotonic_ns(),
            "granules": self.granules(),
            "wrong_tags": wrong.tags,
            "wrong_words": wrong.words,
            "wrong_vectors": wrong_vectors,
            "cpus": self.cpus.len(),
            "ticking": ticking,
            "holding": holding,
            "stopped": stopped,
            "forks": machine::forks().map_err(|error| format!("no log of the kernel: {error}"))?,
            "children_stopped": children_stopped,
            "ok": right && moving && stopped && children_stopped,
        }))
    }

    /// Whether a child that writes to this memory through a pointer with another tag than the granule's is stopped,
    /// and one that has the right tag is not.
    fn mismatch_is_stopped(&self) -> Result<bool, String> {
        // Of a piece in which each granule has a tag of its own.
        let tag = self.granule(1).tag;
        let ends = |tag: u8| {
            system::child_ends_by(|| {
                let checked = mte::check_synchronously().is_ok();
                if checked {
                    self.region.write(GRANULE, tag, 0);
                }
                checked
            })
            .map_err(|error| format!("no child: {error}"))
        };
        Ok(ends(tag)? == system::ChildEnd::Done && ends(tag ^ 1)? == system::ChildEnd::Segfault)
    }
}

/// What a change is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Changed {
    Nothing,
    /// The tag alone: the processor stores no data.
    Tag,
    All,
}

impl Changed {
    /// By the place of a granule: whole pieces, and single granules of pages.
    fn by(change: u64, index: usize) -> Self {
        let kind = (index / PIECE).wrapping_add(change as usize) % 8;
        match (kind, index % 256) {
            (0, _) | (2, 99) => Self::All,
            (1, _) | (3, 99) => Self::Tag,
            _ => Self::Nothing,
        }
    }
}

/// What a granule has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Granule {
    tag: u8,
    words: [u64; 2],
}

impl Granule {
    /// By its place: tags of each kind that a file may have in a form of its own, with data and without.
    fn of(nonce: u64, index: usize) -> Self {
        let at = |index: usize, word: u64| mix(nonce ^ (index as u64) << 8 ^ word);
        let tag = |index: usize| (at(index, 2) & 0xf) as u8;
        let words = [at(index, 0), at(index, 1)];
        let piece = index / PIECE;
        match piece % 5 {
            // Each its own.
            0 => Self { tag: tag(index), words },
            // One for all.
            1 => Self { tag: tag(piece), words },
            // Runs.
            2 => Self { tag: tag(index / 7), words },
            // Pages of zeros, which are not without tags.
            3 => Self { tag: tag(index), words: [0; 2] },
            _ => Self { tag: 0, words },
        }
    }
}

/// SplitMix64's finalizer: every bit of the result depends on every bit of the number.
fn mix(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    fn memory() -> Memory {
        let region = Region::new(1 << 20, false).unwrap();
        Memory { region, tagged: false, nonce: 7, cpus: vec![0], changes: AtomicU64::new(0) }
    }

    #[test]
    fn what_was_written_is_right_and_a_word_that_changes_is_found() {
        let memory = memory();
        memory.on_each_cpu(Memory::fill).unwrap();
        assert_eq!(memory.on_each_cpu(Memory::look), Ok(Wrong::default()));

        memory.region.write_word(GRANULE, !memory.region.read_word(GRANULE));

        assert_eq!(memory.on_each_cpu(Memory::look), Ok(Wrong { tags: 0, words: 1 }));
    }

    #[test]
    fn what_was_changed_is_right_and_what_is_of_another_change_is_found() {
        let memory = memory();
        memory.on_each_cpu(Memory::fill).unwrap();
        for _ in 0..9 {
            memory.change().unwrap();
            assert_eq!(memory.on_each_cpu(Memory::look), Ok(Wrong::default()));
        }
        memory.changes.store(8, Ordering::Relaxed);
        assert!(memory.on_each_cpu(Memory::look).unwrap().words > PIECE);
    }

    #[test]
    fn granules_differ_by_nonce_and_place_and_have_tags_of_each_kind() {
        let tags = |piece: usize| -> BTreeSet<u8> {
            let first = piece * PIECE;
            (first..first + PIECE).map(|index| Granule::of(1, index).tag).collect()
        };

        assert_ne!(Granule::of(1, 0), Granule::of(2, 0));
        assert_ne!(Granule::of(1, 0), Granule::of(1, 1));
        assert_eq!([0, 1, 2, 3, 4].map(|piece| tags(piece).len()), [16, 1, 16, 16, 1]);
        assert_eq!(Granule::of(1, 3 * PIECE).words, [0, 0]);
        assert_eq!(tags(4), BTreeSet::from([0]));
    }
}
