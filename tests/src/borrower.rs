//! A process with memory that a NUMA node, or a broker, may lend it: filled, watched, pinned, on command.
//!
//! It is the test program itself, started once more. A test that needs one begins with [`serve`].

use std::env;
use std::path::Path;

use arch::layout::RAM_BASE;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::{Bytes as _, GuestAddress};
use vmm::memory::{Attributes, Backing, GuestRam};
use vmm::tag_storage::supply::node::Topology;
use vmm::tag_storage::{BorrowerLease, LendPolicy, Placement, RamKind};

use crate::pin::Pinned;
use crate::role::Role;

/// Tells the program that it is the borrower: its size in MiB, the policy or the broker's path, and `huge` or
/// `small` pages.
const ROLE: &str = "TESSERA_BORROWER";
/// The start of a line that the borrower answers with.
const ANSWER: &str = "BORROWER ";
const PAGE: usize = 4096;

/// A borrower that runs.
pub struct Borrower(Role);

impl Borrower {
    /// Starts one with so much memory, all of it filled, for the test of this name.
    pub fn start(test: &str, mib: u64, policy: LendPolicy, huge: bool) -> Self {
        Self::lent(test, mib, &policy.to_string(), huge)
    }

    /// Starts one with so much memory, all of it filled, lent by a broker as a VM's is.
    pub fn start_with(test: &str, mib: u64, broker: &Path) -> Self {
        Self::lent(test, mib, broker.to_str().unwrap(), false)
    }

    fn lent(test: &str, mib: u64, by: &str, huge: bool) -> Self {
        let pages = if huge { "huge" } else { "small" };
        let mut borrower = Self(Role::start(test, ROLE, &format!("{mib} {by} {pages}")));
        assert_eq!(borrower.0.wait_for(ANSWER), "ready");
        borrower
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Gives it a command and returns its answer.
    pub fn order(&mut self, command: &str) -> String {
        self.0.tell(command);
        self.0.wait_for(ANSWER)
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(self) {
        self.0.kill();
    }
}

/// If this process is a borrower, does what its test says until that ends; returns whether it was.
pub fn serve() -> bool {
    let Ok(role) = env::var(ROLE) else { return false };
    let words: Vec<&str> = role.split(' ').collect();
    let [mib, by, pages] = words[..] else { panic!("{role:?}") };
    let attributes =
        Attributes { tags: false, huge_pages: pages == "huge", backing: Backing::Anonymous };
    let ram = GuestRam::new(Bytes::mib(mib.parse().unwrap()), attributes).unwrap();
    let broker = Path::new(by);
    // With a broker it is the tenancy that places the memory, and the placement here is for `unlend` alone.
    let tenancy =
        broker.is_absolute().then(|| BorrowerLease::new(broker, "borrower", &ram, false).unwrap());
    let policy = if tenancy.is_some() { LendPolicy::Never } else { by.parse().unwrap() };
    let placement = Placement::new(&Topology::default(), 1, policy, RamKind::Movable).unwrap();
    if tenancy.is_none() {
        placement.apply(&ram).unwrap();
    }
    fill(&ram);
    say("ready");
    let mut pinned = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["check"] => say(&check(&ram)),
            ["watch", rounds] => {
                // Answers when all is done; commands wait meanwhile.
                let rounds: u32 = rounds.parse().unwrap();
                let bad = (0..rounds).map(|_| check(&ram)).find(|answer| answer != "intact");
                say(bad.as_deref().unwrap_or("intact"));
            }
            ["pin", pages] => {
                pinned.push(Pinned::new(&ram, pages.parse().unwrap()));
                say("pinned");
            }
            ["unpin"] => {
                pinned.clear();
                say("unpinned");
            }
            ["unlend", mib] => {
                let size = Bytes::mib(mib.parse().unwrap());
                let done = placement.unlend(&ram, MemoryRange::new(RAM_BASE, size));
                say(&done.map_or_else(|error| error.to_string(), |()| "unlent".to_owned()));
            }
            ["rebalance"] => say(&placement.rebalance(&ram).unwrap().to_string()),
            _ => panic!("{line:?}"),
        }
    }
    true
}

fn say(answer: &str) {
    println!("{ANSWER}{answer}");
}

fn pattern(page: u64) -> [u8; PAGE] {
    let mut pattern = [(page % 251) as u8 + 1; PAGE];
    pattern[..8].copy_from_slice(&page.to_le_bytes());
    pattern
}

fn pages(ram: &GuestRam) -> impl Iterator<Item = (u64, GuestAddress)> {
    let count = ram.range().size.get() / PAGE as u64;
    (0..count).map(|page| (page, GuestAddress(RAM_BASE.0 + page * PAGE as u64)))
}

pub(crate) fn fill(ram: &GuestRam) {
    for (page, address) in pages(ram) {
        ram.write_slice(&pattern(page), address).unwrap();
    }
}

pub(crate) fn check(ram: &GuestRam) -> String {
    let mut found = [0; PAGE];
    for (page, address) in pages(ram) {
        ram.read_slice(&mut found, address).unwrap();
        if found != pattern(page) {
            return format!("lost page {page}");
        }
    }
    "intact".to_owned()
}
