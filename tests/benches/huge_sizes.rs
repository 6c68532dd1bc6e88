//! Guests of several sizes, with tag storage reserved strictly and on demand, whose memory goes to the host and comes
//! again some times, by the balloon or by reports: how much of it is huge soon after, and what touching it costs.
//!
//! A touch of memory that the host has taken back costs what the host's kernel needs to find and clear it. That is counted
//! apart: the faults of huge and of small pages, each with what it costs a guest that does nothing but touch its memory
//! (`testing::fault_prices`). What is left of what the touching vCPU took is the guest's own, beside the same touch of a
//! guest that did the same, and gave nothing back. The other vCPUs share the host's only processor with it; on a host with
//! more they would not be in its way.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use arch::layout::CHUNK;
use tesseractl::bench::OWN;
use testing::balloon;
use testing::fault_prices::{CHUNKS, Toucher};
use testing::figures::{Entry, counted, kept};
use testing::footprint::{Curve, mib};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::{PageCounter, tagged_ram};
use testing::setting::Setting;

/// Of what a guest has free after its start, in percent: what it touches each time, what a balloon takes between, and what
/// is taken, checked and freed all the time while memory goes and comes. Of a guest of 1 GiB that is 400 and 700 MiB.
const TOUCHED: u64 = 43;
const BALLOON: u64 = 75;
const CHECKED: u64 = 5;

/// MiB that a balloon leaves free, which only the smallest guest notices: with less it takes pages, and gives them back for
/// want of memory, for ever.
const LEFT: u64 = 8;

/// The least of what is resident and can be huge that is huge in the end, in percent; and within how long.
const HUGE: f64 = 95.0;
const SOON: Duration = Duration::from_secs(10);

/// What touches cost without the faults at most, of those of a guest that gave nothing back. It is recorded and not asserted:
/// what a guest's allocator has to do differs by more from guest to guest.
const COST: f64 = 1.05;

/// Between two looks, each of which takes as many instructions as a touch.
const LOOK: Duration = Duration::from_secs(1);

/// How long memory is taken and checked where nothing goes, or is reported: all that time the host has instructions to count.
const PRESSED: Duration = Duration::from_secs(1);

/// Some rounds of the driver's, which reports half of what is left in each.
const ROUNDS: Duration = Duration::from_secs(9);

const LIMIT: Duration = Duration::from_secs(3600);

const BENCH: &str = "huge_sizes";

/// The figure that has the aim: single touches of one guest differ by 18 %.
const MEAN: &str = "vCPU in a touch without the faults, mean";

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

#[derive(Clone, Copy, Debug)]
enum Way {
    /// Nothing goes.
    Keeps,
    Balloon,
    Reports,
}

/// How a guest is started.
#[derive(Clone, Copy, Debug)]
struct Case {
    memory: &'static str,
    tags: &'static str,
    way: Way,
    /// How often memory goes and comes: the larger a guest is, the more instructions that takes.
    cycles: u64,
}

impl Case {
    fn figure(&self, figure: Entry) -> Entry {
        figure.guest(self.memory, 4).supply("ledger")
    }

    fn start(&self) -> Guest {
        let balloon = match self.way {
            Way::Keeps | Way::Balloon => "reporting=off,target=0",
            Way::Reports => "reporting=on",
        };
        // A guest's own huge pages come and go as its memory is in pieces or not.
        let plan = Plan::workload("memory").append("nokaslr transparent_hugepage=never");
        let plan = plan.with("--memory", self.memory);
        let plan = plan.with("--cpus", "4").with("--mte", "require").with("--balloon", balloon);
        plan.with("--tag-storage", self.tags).start()
    }
}

/// What a guest works with, in MiB.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    touched: u64,
    balloon: u64,
    checked: u64,
}

impl Sizes {
    fn of(guest: &mut Guest) -> Self {
        let ready = guest.report("ready");
        let free = ready["free_kib"].as_u64().unwrap() >> 10;
        let part = |percent: u64| (free * percent / 100).max(2);
        let balloon = part(BALLOON).min(free.saturating_sub(LEFT));
        assert!(balloon > 0, "{free} MiB are free");
        Self { touched: part(TOUCHED), balloon, checked: part(CHECKED).min(16) }
    }
}

/// Faults that the host's kernel has served for a process, small and huge; and how often a vCPU has left the guest. Those
/// for the guest's faults on memory that the host still has, but KVM no longer maps, are no faults of the process.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    small: f64,
    huge: f64,
    exits: f64,
}

/// Where KVM counts, of all VMs.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";

/// Mounts what has it. The host is of this test alone.
fn mount_counters() {
    if !fs::exists(EXITS).unwrap() {
        let mount = ["-t", "debugfs", "none", "/sys/kernel/debug"];
        assert!(Command::new("mount").args(mount).status().unwrap().success());
    }
}

impl Faults {
    /// Those of this process until now.
    fn now(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // proc_pid_stat(5): the 10th field, of which the first two end with a parenthesis.
        let all = stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap();
        let vmstat = fs::read_to_string("/proc/vmstat").unwrap();
        let huge = vmstat.lines().find_map(|line| line.strip_prefix("thp_fault_alloc ")).unwrap();
        let exits = fs::read_to_string(EXITS).unwrap();
        let [all, huge, exits]: [f64; 3] =
            [all, huge, exits.trim()].map(|count| count.parse().unwrap());
        Self { small: all - huge, huge, exits }
    }

    fn since(self, before: Self) -> Self {
        Self {
            small: self.small - before.small,
            huge: self.huge - before.huge,
            exits: self.exits - before.exits,
        }
    }
}

/// For how long each thread of a VMM has had the host's only processor, in millions of instructions: its name, and that.
fn run_times(pid: u32) -> BTreeMap<String, f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |task: PathBuf| {
        let name = fs::read_to_string(task.join("comm")).unwrap();
        // Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat.
        let text = fs::read_to_string(task.join("schedstat")).unwrap();
        let nanoseconds: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
        (name.trim().to_owned(), nanoseconds / 1e6)
    };
    tasks.map(|task| read(task.unwrap().path())).collect()
}

/// A touch: millions of instructions, those that each thread of the VMM had meanwhile, and the faults.
#[derive(Clone, Debug)]
struct Touch {
    cost: f64,
    threads: BTreeMap<String, f64>,
    faults: Faults,
}

/// What a guest's touch takes, `cost` having it touch.
fn counted_touch(pid: u32, cost: impl FnOnce() -> f64) -> Touch {
    let (faults, before) = (Faults::now(pid), run_times(pid));
    let cost = cost();
    let mut threads = run_times(pid);
    for (name, time) in &mut threads {
        *time -= before.get(name).unwrap_or(&0.0);
    }
    threads.retain(|_, time| *time >= 0.05);
    Touch { cost, threads, faults: Faults::now(pid).since(faults) }
}

fn touch(guest: &mut Guest, sizes: Sizes) -> Touch {
    counted_touch(guest.pid(), || {
        let report = guest.order(&format!("touch {}", sizes.touched), "touched");
        report["took_ns"].as_u64().unwrap() as f64 / 1e6
    })
}

impl Touch {
    /// What the busiest vCPU took, at most the time of the touch, as threads are looked at for longer. It is taken for the
    /// one that touched, which is wrong where the guest moves the toucher to another.
    fn vcpu(&self) -> f64 {
        let vcpus = self.threads.iter().filter(|(name, _)| name.starts_with("vcpu"));
        vcpus.map(|(_, time)| *time).fold(0.0, f64::max).min(self.cost)
    }

    /// Exits that are for no fault.
    fn own_exits(&self) -> f64 {
        self.faults.exits - self.faults.small - self.faults.huge
    }
}

fn free(guest: &mut Guest) {
    assert_eq!(guest.order("free", "freed")["wrong"], 0);
}

/// Where a process's huge pages are split, "PID,START,END" (mm/huge_memory.c). KVM maps none of the pages then.
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";

fn split_huge_pages(pid: u32) {
    for piece in tagged_ram(pid) {
        let std::ops::Range { start, end } = piece.addresses;
        fs::write(SPLIT, format!("{pid},{start:#x},{end:#x}")).unwrap();
    }
}

/// What faults cost a guest that does nothing else, in millions of instructions.
#[derive(Clone, Copy, Debug)]
struct Prices {
    /// Of a huge page, and of a small one.
    huge: f64,
    small: f64,
    /// Of an exit for a small page that the host has and KVM no longer maps.
    unmapped: f64,
}

/// Bytes from one touched word to the next: of small pages.
const SMALL: u64 = 4096;

/// Has a guest touch its memory.
fn stride(guest: &mut Toucher, stride: u64) -> Touch {
    counted_touch(guest.pid(), || guest.touch(stride) / 1e6)
}

impl Prices {
    fn measure(case: Case) -> Self {
        let options = [("--tag-storage", case.tags), ("--balloon", "reporting=off")];
        let (huge, unmapped) = {
            let mut guest = Toucher::start(&options);
            let [fresh, again] = [(); 2].map(|()| stride(&mut guest, CHUNK.get()));
            split_huge_pages(guest.pid());
            let [split, mapped] = [(); 2].map(|()| stride(&mut guest, SMALL));
            guest.stop();
            assert!(fresh.faults.huge >= CHUNKS as f64, "{fresh:?}");
            let exits = split.faults.exits - mapped.faults.exits;
            ((fresh.cost - again.cost) / fresh.faults.huge, (split.cost - mapped.cost) / exits)
        };
        let small = {
            let _never = Setting::new(THP, "never");
            let mut guest = Toucher::start(&options);
            let [fresh, again] = [(); 2].map(|()| stride(&mut guest, SMALL));
            guest.stop();
            (fresh.cost - again.cost) / fresh.faults.small
        };
        let prices = Self { huge, small, unmapped };
        println!(
            "{}: a fault of a huge page takes {:.0} thousand instructions, of a small one {:.1}, an exit for a page that is \
             not mapped {:.1}",
            case.tags,
            huge * 1e3,
            small * 1e3,
            unmapped * 1e3
        );
        for (name, value) in [
            ("fault of a huge page", huge),
            ("fault of a small page", small),
            ("exit for a page that is not mapped", unmapped),
        ] {
            let figure = counted(BENCH, name, "thousand instructions").guest("256M", 1);
            figure.supply("ledger").case(case.tags).record(value * 1e3);
        }
        prices
    }

    /// What the faults of a touch take.
    fn faults(&self, touch: &Touch) -> f64 {
        self.huge * touch.faults.huge + self.small * touch.faults.small
    }

    /// What is left of what a touch took its vCPU, without its faults.
    fn rest(&self, touch: &Touch) -> f64 {
        touch.vcpu() - self.faults(touch)
    }

    /// The mean of what is left of several.
    fn mean(&self, touches: &[Touch]) -> f64 {
        touches.iter().map(|touch| self.rest(touch)).sum::<f64>() / touches.len() as f64
    }

    /// Exits for pages that the host has and KVM does not map: those beside the faults and beside what the same touch of
    /// a guest that keeps its memory has.
    fn unmapped(touch: &Touch, kept: &Touch) -> f64 {
        (touch.own_exits() - kept.own_exits()).max(0.0)
    }
}

/// Has memory go to the host and come again, while some is taken and checked.
fn go_and_come(guest: &mut Guest, case: Case, sizes: Sizes) {
    let press = format!("press {}", sizes.checked);
    guest.order(&press, "pressing");
    match case.way {
        Way::Balloon => {
            balloon::resize(guest, sizes.balloon);
            balloon::resize(guest, 0);
        }
        Way::Keeps => std::thread::sleep(PRESSED),
        Way::Reports => {
            std::thread::sleep(PRESSED);
            assert_eq!(guest.order("relax", "relaxed")["wrong"], 0);
            std::thread::sleep(ROUNDS);
            guest.order(&press, "pressing");
            std::thread::sleep(PRESSED);
        }
    }
    let relaxed = guest.order("relax", "relaxed");
    assert_eq!(relaxed["wrong"], 0, "{relaxed}");
}

/// Of a chunk of which more is missing than one of so many parts, the host has the rest, and the guest does not use it: it
/// cannot be huge unless the host gives that again (`MISSING` in vmm/src/memory/mend.rs).
const MISSING: u64 = 16;

/// What is resident, in pages.
#[derive(Clone, Copy, Debug, Default)]
struct Resident {
    all: u64,
    /// In chunks that can be huge.
    whole: u64,
    huge: u64,
}

impl Resident {
    fn of(guest: &Guest) -> Self {
        let page = rustix::param::page_size() as u64;
        let counter = PageCounter::new(guest.pid());
        let mut resident = Self::default();
        for piece in tagged_ram(guest.pid()) {
            for start in piece.addresses.clone().step_by(CHUNK.get() as usize) {
                let end = (start + CHUNK.get()).min(piece.addresses.end);
                let count = counter.count(&(start..end));
                resident.all += count.present;
                if count.present * page >= CHUNK.get() - CHUNK.get() / MISSING {
                    resident.whole += count.present;
                    resident.huge += count.huge;
                }
            }
        }
        resident
    }

    /// How much of what can be huge is so, in percent.
    fn percent(&self) -> f64 {
        self.huge as f64 * 100.0 / self.whole as f64
    }

    fn mib(pages: u64) -> f64 {
        mib(pages * rustix::param::page_size() as u64)
    }
}

/// Waits until enough is huge. How long that was, if it did not take too long.
fn until_huge(guest: &Guest) -> Option<Duration> {
    let start = Instant::now();
    loop {
        let waited = start.elapsed();
        if Resident::of(guest).percent() >= HUGE {
            return Some(waited);
        }
        if waited >= SOON {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

/// Touches of a guest that keeps its memory, one after each cycle.
fn keep(case: Case, prices: &Prices) -> Vec<Touch> {
    let mut guest = case.start();
    let sizes = Sizes::of(&mut guest);
    touch(&mut guest, sizes);
    free(&mut guest);
    let cycles = (1..=case.cycles).map(|cycle| {
        go_and_come(&mut guest, case, sizes);
        let touched = touch(&mut guest, sizes);
        free(&mut guest);
        println!(
            "  kept, {cycle}: {:.1} million instructions, {:.1?}, {:.0} faults of huge pages and \
             {:.0} of small ones, {:.0} exits, its vCPU's without the faults {:.1}",
            touched.cost,
            touched.threads,
            touched.faults.huge,
            touched.faults.small,
            touched.faults.exits,
            prices.rest(&touched)
        );
        let figure = counted(BENCH, "vCPU in a touch without the faults", "million instructions");
        let what = format!("{}, kept, cycle {cycle}", case.tags);
        case.figure(figure).case(&what).record(prices.rest(&touched));
        touched
    });
    let touches: Vec<Touch> = cycles.collect();
    guest.stop();
    let figure = case.figure(counted(BENCH, MEAN, "million instructions"));
    figure.case(&format!("{}, kept", case.tags)).record(prices.mean(&touches));
    touches
}

/// What fell short in a case. `kept`: the same touches where nothing was given back.
fn measure(case: Case, prices: &Prices, kept_touches: &[Touch]) -> Vec<String> {
    let mut missed = Vec::new();
    let mut touches = Vec::new();
    let kept_mean = prices.mean(kept_touches);
    let mut guest = case.start();
    let sizes = Sizes::of(&mut guest);
    println!("{case:?}: {sizes:?}");
    touch(&mut guest, sizes);
    free(&mut guest);
    for (cycle, kept_touch) in (1..).zip(kept_touches) {
        go_and_come(&mut guest, case, sizes);
        let touched = touch(&mut guest, sizes);
        let at_once = Resident::of(&guest).percent();
        let soon = until_huge(&guest);
        let resident = Resident::of(&guest);
        let then = resident.percent();
        let rest = prices.rest(&touched);
        let unmapped = Prices::unmapped(&touched, kept_touch);
        let own = rest - prices.unmapped * unmapped;
        let [ratio, own_ratio] = [rest, own].map(|cost| cost / kept_mean);
        println!(
            "  {cycle}: {:.1} million instructions, {:.1?}, {:.0} faults of huge pages and {:.0} \
             of small ones, {:.0} exits, its vCPU's without the faults {rest:.1} ({ratio:.3}), and without {unmapped:.0} exits for \
             pages that KVM does not map {own:.1} ({own_ratio:.3}); {:.0} MiB resident, {:.0} MiB in chunks that can be huge, {at_once:.1} % of it huge at once, \
             {then:.1} % after {soon:?}",
            touched.cost,
            touched.threads,
            touched.faults.huge,
            touched.faults.small,
            touched.faults.exits,
            Resident::mib(resident.all),
            Resident::mib(resident.whole),
        );
        let what = format!("{}, {:?}, cycle {cycle}", case.tags, case.way);
        let set = |figure: Entry| case.figure(figure).case(&what);
        set(counted(BENCH, "touch", "million instructions")).record(touched.cost);
        set(counted(BENCH, "vCPU in a touch without the faults", "million instructions"))
            .record(rest);
        set(counted(BENCH, "faults in a touch, by their price", "million instructions"))
            .record(prices.faults(&touched));
        set(kept(BENCH, "faults of small pages in a touch", "faults")).record(touched.faults.small);
        let huge =
            |when| kept(BENCH, &format!("huge of what can be huge, {when}"), "%").more_is_better();
        set(huge("at once")).record(at_once);
        set(huge("ten seconds later at most")).at_least(HUGE).record(then);
        if soon.is_none() {
            missed.push(format!("{case:?}, cycle {cycle}: {then:.1} % are huge"));
        }
        free(&mut guest);
        touches.push(touched);
    }
    let mean = prices.mean(&touches);
    let figure = case.figure(counted(BENCH, MEAN, "million instructions"));
    let figure = figure.case(&format!("{}, {:?}", case.tags, case.way));
    figure.at_most_of(COST, OWN, Some(&format!("{}, kept", case.tags))).record(mean);
    Curve::until_still(&guest);
    let metrics = guest.client().metrics().unwrap();
    let count = |name: &str| metrics["balloon"][name].as_u64().unwrap();
    println!(
        "  {:.3} of the guest that kept its memory, in the mean; renewed: {} chunks, split: {}, mended: {}",
        mean / kept_mean,
        count("renewed_chunks_total"),
        count("split_chunks_total"),
        count("mended_chunks_total")
    );
    guest.stop();
    missed
}

/// All ways for guests of one size and kind of tag storage.
fn measure_all(memory: &'static str, tags: &'static str, host: &str, cycles: u64) {
    Lab::new().as_root().memory(host).counting_instructions().timeout(LIMIT).run(|| {
        mount_counters();
        let case = Case { memory, tags, way: Way::Keeps, cycles };
        let prices = Prices::measure(case);
        let touches = keep(case, &prices);
        let missed: Vec<String> = [Way::Balloon, Way::Reports]
            .into_iter()
            .flat_map(|way| measure(Case { way, ..case }, &prices, &touches))
            .collect();
        assert!(missed.is_empty(), "{}", missed.join("\n"));
    });
}

#[test]
#[ignore = "long"]
fn memory_of_a_guest_of_64_mib_strictly() {
    measure_all("64M", "strict", "4G", 5);
}

#[test]
#[ignore = "long"]
fn memory_of_a_guest_of_64_mib_on_demand() {
    measure_all("64M", "demand", "4G", 5);
}

#[test]
fn memory_of_a_guest_of_256_mib_strictly() {
    measure_all("256M", "strict", "4G", 5);
}

#[test]
fn memory_of_a_guest_of_256_mib_on_demand() {
    measure_all("256M", "demand", "4G", 5);
}

#[test]
#[ignore = "long"]
fn memory_of_a_guest_of_1_gib_strictly() {
    measure_all("1G", "strict", "4G", 10);
}

#[test]
#[ignore = "long"]
fn memory_of_a_guest_of_1_gib_on_demand() {
    measure_all("1G", "demand", "4G", 10);
}

#[test]
#[ignore = "long"]
fn memory_of_a_guest_of_4_gib_strictly() {
    measure_all("4G", "strict", "8G", 2);
}

#[test]
#[ignore = "long"]
fn memory_of_a_guest_of_4_gib_on_demand() {
    measure_all("4G", "demand", "8G", 2);
}
