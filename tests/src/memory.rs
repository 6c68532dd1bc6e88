//! What the host's kernel says of a process's memory: smaps, pagemap and kpageflags.

use std::fs::{self, File};
use std::ops::{AddAssign, Range};
use std::os::unix::fs::FileExt;

/// One mapping of a process, as /proc/PID/smaps has it.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    /// Addresses in the process.
    pub addresses: Range<u64>,
    /// The two-letter flags: `mt` tags, `hg` huge pages advised, `dd` left out of core dumps.
    pub flags: Vec<String>,
    /// Resident bytes.
    pub resident: u64,
    /// Resident bytes in huge pages.
    pub huge: u64,
    /// Bytes that only this process has and that differ from any file.
    pub private_dirty: u64,
    /// Resident bytes that no file has: what this process has written, and nothing shares.
    pub anonymous: u64,
    /// Resident bytes, each divided by the number of the processes that share it.
    pub proportional: u64,
}

impl Mapping {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.addresses.end - self.addresses.start
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }
}

/// All mappings of a process.
pub fn mappings(pid: u32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(name) = first.strip_suffix(':') {
            let Some(mapping) = all.last_mut() else { continue };
            let bytes = |words: &mut std::str::SplitAsciiWhitespace<'_>| {
                words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
            };
            match name {
                "Rss" => mapping.resident = bytes(&mut words),
                "AnonHugePages" => mapping.huge = bytes(&mut words),
                "Pss" => mapping.proportional = bytes(&mut words),
                "Private_Dirty" => mapping.private_dirty = bytes(&mut words),
                "Anonymous" => mapping.anonymous = bytes(&mut words),
                "VmFlags" => mapping.flags = words.map(str::to_owned).collect(),
                _ => {}
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            all.push(Mapping { addresses: hex(start)..hex(end), ..Mapping::default() });
        }
    }
    all
}

/// The mapping that is a guest's RAM: the one of its size.
pub fn guest_ram(pid: u32, size: u64) -> Mapping {
    let all = mappings(pid);
    let found = all.iter().find(|mapping| mapping.size() == size);
    found.unwrap_or_else(|| panic!("no mapping of {size} bytes among {all:#?}")).clone()
}

/// Anonymous bytes of a VMM's own, without those of its guest's RAM of this size. Its program's file, whose pages are
/// private and dirty for good in an initramfs, is not among them: more of it is mapped whenever more of it runs.
pub fn own_anonymous(pid: u32, guest_ram: u64) -> u64 {
    let own = mappings(pid).into_iter().filter(|mapping| mapping.size() != guest_ram);
    own.map(|mapping| mapping.anonymous).sum()
}

/// The mappings that are an MTE guest's RAM, of which there may be several side by side: where tag storage is
/// reserved on demand, memory that has been touched is apart from memory that has not.
pub fn tagged_ram(pid: u32) -> Vec<Mapping> {
    mappings(pid).into_iter().filter(|mapping| mapping.has("mt")).collect()
}

/// Pages of 4 KiB that a process has on a NUMA node.
pub fn pages_on_node(pid: u32, node: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap();
    let key = format!("N{node}=");
    let counts = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(&key));
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// Processes that the host's kernel has killed for want of memory.
pub fn oom_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.unwrap().parse().unwrap()
}

/// How many pages of a mapping are what, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pages {
    /// Present in memory.
    pub present: u64,
    /// Whose tags are in use: bit 41 of /proc/kpageflags on arm64 (PG_arch_2, PG_mte_tagged).
    pub tagged: u64,
    /// Part of a huge page.
    pub huge: u64,
}

impl AddAssign for Pages {
    fn add_assign(&mut self, other: Self) {
        self.present += other.present;
        self.tagged += other.tagged;
        self.huge += other.huge;
    }
}

/// Counts the pages of a mapping. Root only.
pub fn pages(pid: u32, mapping: &Mapping) -> Pages {
    PageCounter::new(pid).count(&mapping.addresses)
}

/// Counts pages of a process, again and again. Root only.
pub struct PageCounter {
    pagemap: File,
    flags: File,
}

impl PageCounter {
    /// Counts those of this process.
    ///
    /// # Panics
    /// When the kernel does not show them.
    pub fn new(pid: u32) -> Self {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
        Self { pagemap, flags: File::open("/proc/kpageflags").unwrap() }
    }

    /// Counts the pages of these addresses.
    ///
    /// # Panics
    /// When the kernel does not show them.
    pub fn count(&self, addresses: &Range<u64>) -> Pages {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        const HUGE: u64 = 1 << 22;
        const TAGGED: u64 = 1 << 41;
        let page = rustix::param::page_size() as u64;
        let mut entries = vec![0; ((addresses.end - addresses.start) / page * 8) as usize];
        self.pagemap.read_exact_at(&mut entries, addresses.start / page * 8).unwrap();
        let entries = entries.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry));
        let frames: Vec<u64> =
            entries.filter(|entry| entry & PRESENT != 0).map(|entry| entry & FRAME).collect();
        let mut count = Pages::default();
        for run in frames.chunk_by(|frame, next| frame + 1 == *next) {
            let mut words = vec![0; run.len() * 8];
            self.flags.read_exact_at(&mut words, run[0] * 8).unwrap();
            for word in words.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)) {
                count.present += 1;
                count.tagged += u64::from(word & TAGGED != 0);
                count.huge += u64::from(word & HUGE != 0);
            }
        }
        count
    }
}
