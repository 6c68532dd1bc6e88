//! A process that is a broker's client and does to it what a VM does, without a guest: it reserves and frees at
//! random, or lives in what is lent to it.
//!
//! It is the test program itself, started once more. A test that needs one begins with [`serve`].

use std::env;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use arch::units::Bytes;
use vmm::memory::{Attributes, Backing, GuestRam};
use vmm::tag_storage::{BorrowerLease, ChunkIndex, LeaseTerms, broker};

use crate::borrower::{check, fill};
use crate::dice::Dice;
use crate::role::Role;

/// Tells the program that it is a client: which, of whom, and what is random or how large.
const ROLE: &str = "TESSERA_CLIENT";
/// What a client says when the broker has taken it in.
const READY: &str = "CLIENT ready";
/// Chunks that are reserved together, at most, and that are freed after that: fewer, so that all that there is
/// is reserved before long.
const TOGETHER: usize = 64;
const FREED: usize = 32;
/// Chunks of the memory that it would have: more than any broker of the tests has tag storage for.
const CHUNKS: u64 = 1 << 16;
/// A guest does other things, too.
const PAUSE: Duration = Duration::from_millis(1);
/// Without a broker it does so less often.
const LOST: Duration = Duration::from_millis(20);

/// A client that runs.
pub struct Client {
    role: Role,
    is_ready: bool,
}

impl Client {
    /// Starts one, for the test of this name, that holds a lease and reserves and frees at random.
    pub fn holder(test: &str, broker: &Path, seed: u64) -> Self {
        Self::start(test, &format!("holder {} {seed}", broker.display()))
    }

    /// Starts one, for the test of this name, whose memory of so many MiB may be in what the broker lends.
    pub fn borrower(test: &str, broker: &Path, mib: u64) -> Self {
        Self::start(test, &format!("borrower {} {mib}", broker.display()))
    }

    fn start(test: &str, role: &str) -> Self {
        Self { role: Role::start(test, ROLE, role), is_ready: false }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.role.pid()
    }

    /// Waits until the broker has taken it in.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.role.wait_for(READY);
        }
    }

    /// Ends it at once, as a power cut would.
    ///
    /// # Panics
    /// When it has ended before.
    pub fn kill(self) {
        self.role.kill();
    }
}

/// If this process is a client, does what its test says for as long as it lives. Returns if it is none.
pub fn serve() {
    let Ok(role) = env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["holder", path, seed] => hold(Path::new(path), Dice::of(seed.parse().unwrap())),
        ["borrower", path, mib] => borrow(Path::new(path), mib.parse().unwrap()),
        _ => panic!("{role:?}"),
    }
}

fn say_ready() {
    println!("{READY}");
    std::io::stdout().flush().unwrap();
}

fn hold(path: &Path, mut dice: Dice) {
    let name = format!("holder {}", std::process::id());
    let terms = LeaseTerms { name, min: Bytes::ZERO, max: Bytes::MAX };
    let client = broker::Client::connect(path, terms).unwrap();
    say_ready();
    let mut held = Vec::new();
    // As many as can be had at a host; each that is freed is reserved for again.
    let mut absent: Vec<ChunkIndex> = (0..CHUNKS).map(ChunkIndex).collect();
    loop {
        client.handle_events(|_| ());
        let wanted = absent.split_off(absent.len().saturating_sub(1 + dice.below(TOGETHER)));
        let free = |chunks: &[ChunkIndex]| client.free(chunks);
        match client.reserve(&wanted) {
            Ok(()) => held.extend(wanted),
            Err(broker::Error::Refused(_)) => {
                absent.extend(wanted);
                let freed = held.split_off(held.len() / 2);
                free(&freed);
                absent.extend(freed);
            }
            // Nothing can be had until it is back, and little is freed: never all, however long that takes.
            Err(_) => {
                absent.extend(wanted);
                if held.len() > 1 {
                    let freed = held.split_off(held.len() - 1);
                    free(&freed);
                    absent.extend(freed);
                }
                std::thread::sleep(LOST);
                continue;
            }
        }
        for _ in 0..dice.below(FREED).min(held.len()) {
            let chunk = held.swap_remove(dice.below(held.len()));
            free(&[chunk]);
            absent.push(chunk);
        }
        std::thread::sleep(PAUSE);
    }
}

fn borrow(path: &Path, mib: u64) {
    let attributes = Attributes { tags: false, huge_pages: false, backing: Backing::Anonymous };
    let ram = GuestRam::new(Bytes::mib(mib), attributes).unwrap();
    let tenancy = BorrowerLease::new(path, "borrower", &ram, false).unwrap();
    fill(&ram);
    say_ready();
    loop {
        tenancy.broker().handle_events(|_| ());
        assert_eq!(check(&ram), "intact");
        std::thread::sleep(PAUSE);
    }
}
