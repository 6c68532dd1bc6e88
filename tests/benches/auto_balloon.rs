//! Three guests of 1 GiB on a host of 2 GiB, of which one at a time works with 800 MiB: what `--balloon auto` makes of
//! that, beside no balloon and balloons of one size. Throughput in MiB a second of the host's clock, which counts
//! instructions; a guest that has the host for itself is the measure, and a host of 4 GiB.
//!
//! A guest reads a disk of that size again and again, whose pages stay in its cache when it is done; or it writes to a
//! file in its memory, in huge pages as those of programs are, which it frees when it is done.

use std::fs;
use std::iter;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tesseractl::client::{Client, DEFAULT_TIMEOUT};
use testing::figures::{Entry, counted, kept};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::scratch::Scratch;
use vmm::api::model::Balloon;

const BENCH: &str = "auto_balloon";

/// MiB: of a guest, of what it works with, and of the balloon that lets three guests fit.
const MEMORY: &str = "1G";
const LOAD: u64 = 800;
const STATIC: &str = "target=440M";

/// How often a guest goes through its load until everything has settled, the host at rest between, and measured. Rests cost
/// no instructions, passes do: six seconds at rest are more than all that the policy waits for after a change, but for the
/// ten in which a guest that was short is asked for nothing.
const SETTLING: u32 = 2;
const REST: Duration = Duration::from_secs(6);
const MEASURED: u32 = 1;

/// Of the throughput on a host with memory for all, at least.
const LEAST: f64 = 0.9;

/// What the host's kernel counts while a load is measured (/proc/vmstat): faults, huge ones and those that found no huge
/// page, and what it did for free memory.
const COUNTED: [&str; 6] = [
    "pgfault",
    "thp_fault_alloc",
    "thp_fault_fallback",
    "compact_stall",
    "pgsteal_kswapd",
    "pgsteal_direct",
];

const LIMIT: Duration = Duration::from_secs(3000);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    Caches,
    Programs,
}

/// Whose turn it is: each load after each, and each guest.
const TURNS: [(usize, Load); 5] = [
    (0, Load::Caches),
    (1, Load::Caches),
    (2, Load::Programs),
    (0, Load::Programs),
    (1, Load::Caches),
];

impl Load {
    /// What a guest's shell does once.
    fn script(self) -> String {
        match self {
            Self::Caches => "dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null".to_owned(),
            Self::Programs => format!(
                "mkdir -p /load; grep -q ' /load ' /proc/mounts || mount -t tmpfs -o size=900m,huge=always tmpfs /load; \
                 dd if=/dev/zero of=/load/held bs=1M count={LOAD} conv=notrunc 2>/dev/null"
            ),
        }
    }
}

/// Goes through a load once: for how many seconds of the host's clock. `None` if the guest, or its program, is no more.
fn pass(guest: &Guest, load: Load) -> Option<f64> {
    let start = Instant::now();
    let output = guest.shell(&load.script()).output().ok().filter(|output| output.status.success());
    output.map(|_| start.elapsed().as_secs_f64())
}

/// How a load did, in MiB a second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    /// Once all had settled.
    settled: f64,
    /// A program whose memory was taken while the guest had little has it in small pages, however much there is later. So
    /// this is the same program, begun anew.
    anew: Option<f64>,
}

/// `None` if the guest, or its program, is no more.
fn throughput(guest: &Guest, load: Load) -> Option<Rates> {
    let mut settling = Vec::new();
    for _ in 0..SETTLING {
        settling.push(pass(guest, load)?);
        thread::sleep(REST);
    }
    let before = COUNTED.map(|name| field("/proc/vmstat", name));
    let mut seconds = 0.0;
    for _ in 0..MEASURED {
        seconds += pass(guest, load)?;
    }
    for (name, before) in COUNTED.iter().zip(before) {
        print!("    {name} {}", field("/proc/vmstat", name) - before);
    }
    println!();
    if load == Load::Caches {
        println!("    {} MiB of the disk in the guest's cache", mib_of(guest, "Buffers"));
    }
    let mut anew = None;
    if load == Load::Programs {
        println!(
            "    {} MiB of the guest's files in memory are in huge pages, of {} MiB",
            mib_of(guest, "ShmemHugePages"),
            mib_of(guest, "Shmem")
        );
        guest.shell("rm /load/held").output().ok().filter(|output| output.status.success())?;
        pass(guest, load)?;
        anew = Some(LOAD as f64 / pass(guest, load)?);
        println!("    begun anew: {} MiB in huge pages", mib_of(guest, "ShmemHugePages"));
        guest.shell("umount /load").output().ok().filter(|output| output.status.success())?;
    }
    let settling: Vec<u64> =
        settling.iter().map(|seconds| (LOAD as f64 / seconds) as u64).collect();
    print!("    MiB a second until settled {settling:?}, ");
    Some(Rates { settled: f64::from(MEASURED) * LOAD as f64 / seconds, anew })
}

/// What a guest's kernel tells of its memory (/proc/meminfo). Of a guest that does not answer, 0.
fn mib_of(guest: &Guest, name: &str) -> u64 {
    let read = || {
        let output = guest.shell(&format!("grep ^{name}: /proc/meminfo")).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    read().map_or(0, |kib| kib >> 10)
}

/// A field of a file of the kernel's.
fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.split([':', ' ']).next() == Some(name)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn taken_mib() -> u64 {
    (field("/proc/meminfo", "MemTotal") - field("/proc/meminfo", "MemAvailable")) >> 10
}

/// Looks at the host's memory until it is dropped.
struct Peak {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peak {
    fn start() -> Self {
        let (most, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (Arc::clone(&most), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                seen.fetch_max(taken_mib(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        Self { most, stop, thread: Some(thread) }
    }

    /// In MiB.
    fn take(&self) -> u64 {
        self.most.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A guest whose disk has as many bytes as its load, and takes none of the host.
fn start(balloon: &str) -> (Scratch, Guest) {
    let scratch = Scratch::new();
    let disk = scratch.join("disk");
    fs::File::create(&disk).unwrap().set_len(LOAD << 20).unwrap();
    let plan = Plan::agent(&scratch).append("nokaslr").with("--memory", MEMORY);
    let plan = plan.with("--mte", "require").with("--balloon", balloon);
    let guest = plan.with("--disk", disk.to_str().unwrap()).start();
    guest.answers();
    // Fewer and larger requests: the disk is not what is measured. A disk that no program has open has no pages in the cache.
    let prepare = "echo 1024 >/sys/block/vda/queue/read_ahead_kb; \
                   setsid sleep 1000000 </dev/vda >/dev/null 2>/dev/null &";
    guest.sh(prepare);
    (scratch, guest)
}

/// A guest's balloon, if its VM is there.
fn balloon_of(socket: &Path) -> Option<Balloon> {
    let mut client = Client::connect(socket, DEFAULT_TIMEOUT).ok()?;
    client.balloon().ok()
}

/// What became of the turns.
#[derive(Debug, Default)]
struct Outcome {
    /// Until a turn in which something was killed.
    rates: Vec<Rates>,
    /// MiB.
    peak: u64,
    /// Processes that the host killed, and those that guests killed.
    killed: (u64, u64),
}

impl Outcome {
    fn record(&self, name: &str) {
        let rates = self.rates.iter().map(|rates| Some(*rates)).chain(iter::repeat(None));
        for (turn, ((guest, load), rates)) in (1..).zip(TURNS.into_iter().zip(rates)) {
            let figure = |what| {
                let case = format!("{name}, turn {turn}: {load:?} of guest {guest}{what}");
                measured().case(&case)
            };
            match rates {
                Some(rates) => {
                    figure("").record(rates.settled);
                    if let Some(anew) = rates.anew {
                        figure(", begun anew").record(anew);
                    }
                }
                None => figure("").cannot("something was killed in this turn, or before it"),
            }
        }
        let (host, guests) = self.killed;
        for (what, unit, value) in [
            ("memory of the host in use at most", "MiB", self.peak),
            ("processes that the host killed", "processes", host),
            ("processes that guests killed", "processes", guests),
        ] {
            kept(BENCH, what, unit).case(name).guest(MEMORY, 1).record(value as f64);
        }
    }
}

fn measured() -> Entry {
    let figure = counted(BENCH, "throughput", "MiB a second of the counting clock");
    figure.guest(MEMORY, 1).supply("ledger").more_is_better()
}

fn turns(name: &str, balloon: &str) -> Outcome {
    let start_of = Instant::now();
    let before = field("/proc/vmstat", "oom_kill");
    let guests: Vec<(Scratch, Guest)> = (0..3).map(|_| start(balloon)).collect();
    println!("{name}: {} MiB of the host taken by three idle guests", taken_mib());
    let peak = Peak::start();
    let mut outcome = Outcome::default();
    for (number, load) in TURNS {
        let guest = &guests[number].1;
        let rates = throughput(guest, load);
        let most = peak.take();
        outcome.peak = outcome.peak.max(most);
        let Some(rates) = rates else {
            println!("{name}: {load:?} of guest {number}: lost; {most} MiB at most");
            break;
        };
        let targets: Vec<u64> = guests
            .iter()
            .map(|(_, guest)| balloon_of(guest.socket()).map_or(0, |balloon| balloon.actual_mib))
            .collect();
        println!(
            "{name}: {load:?} of guest {number}: {rates:.0?} MiB a second; {most} MiB at most; in balloons {targets:?}"
        );
        outcome.rates.push(rates);
        if field("/proc/vmstat", "oom_kill") > before {
            println!("{name}: the host has killed a VM");
            break;
        }
    }
    let in_guest = |guest: &Guest| {
        let output = guest.shell("grep oom_kill /proc/vmstat").output().ok()?;
        String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let in_guests = guests.iter().filter_map(|(_, guest)| in_guest(guest)).sum();
    outcome.killed = (field("/proc/vmstat", "oom_kill") - before, in_guests);
    outcome.record(name);
    println!("{name}: {outcome:?}, {:.1} s of the host's clock", start_of.elapsed().as_secs_f64());
    outcome
}

/// What a guest does that has the host for itself.
fn alone() -> [Rates; 2] {
    let (_scratch, guest) = start("target=0");
    [Load::Caches, Load::Programs].map(|load| {
        let rates = throughput(&guest, load).unwrap();
        println!("alone: {load:?}: {rates:.0?} MiB a second");
        measured().case(&format!("alone: {load:?}")).record(rates.settled);
        rates
    })
}

#[test]
fn loads_that_take_turns_fit_a_host_of_half_their_memory() {
    Lab::new().counting_instructions().memory("2G").timeout(LIMIT).run(|| {
        let reference = alone();
        let auto = turns("auto", "auto");
        let off = turns("off", "target=0");
        let fixed = turns("static", STATIC);

        let share = |outcome: &Outcome| {
            let rates = outcome.rates.iter().zip(TURNS);
            rates
                .map(|(rates, (_, load))| rates.settled / reference[load as usize].settled)
                .collect::<Vec<f64>>()
        };
        println!(
            "| | peak of the host | killed by host, by guests | of the throughput, turn by turn |"
        );
        for (name, outcome) in [("off", &off), ("static", &fixed), ("auto", &auto)] {
            println!(
                "| {name} | {} MiB | {:?} | {:.2?} |",
                outcome.peak,
                outcome.killed,
                share(outcome)
            );
        }
        assert!(off.killed.0 > 0, "the loads fit without balloons: they show nothing");
        assert_eq!(auto.killed, (0, 0));
        assert_eq!(auto.rates.len(), TURNS.len());
        assert!(share(&auto).iter().all(|share| *share >= LEAST), "{:?}", share(&auto));
    });
}

#[test]
fn the_same_loads_on_a_host_that_has_memory_for_all() {
    Lab::new().counting_instructions().memory("4G").timeout(LIMIT).run(|| {
        let outcome = turns("4 GiB", "target=0");

        assert_eq!((outcome.rates.len(), outcome.killed), (TURNS.len(), (0, 0)));
    });
}
