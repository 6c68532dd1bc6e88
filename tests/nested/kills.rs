//! VMs, borrowers and brokers that are killed at any moment leave a host as it was: no lease, no block, no page
//! of a node, no process, and no file but a socket whose path the next broker takes over.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testing::broker::Broker;
use testing::client::{Client, serve};
use testing::dice::Dice;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::process::processes;
use testing::scratch::Scratch;
use testing::wait::until;
use vmm::tag_storage::broker::BrokerReport;

/// How often, of 100 times in all.
const ROUNDS_ON_LEDGER: u32 = 60;
const ROUNDS_ON_NODE: u32 = 32;
const ROUNDS_OF_VMS: u32 = 8;

const LEDGER: &[&str] = &["--supply", "ledger", "--capacity", "64M"];
const NODE: &[&str] = &["--supply", "node:1", "--lend", "eager"];
/// The socket's name in its folder.
const SOCKET: &str = "broker";
/// What clients do within this time is what they do later, too.
const A_WHILE: Duration = Duration::from_millis(60);
/// Within this time a guest has started in the emulated host, or not quite.
const A_START: Duration = Duration::from_secs(5);
/// MiB that a borrower has, so that a part of them must go when both holders take what they can.
const BORROWED: u64 = 24;
/// Chunks that two holders together have and do not free to the last.
const HELD: u32 = 128;
/// Pages of a node that the kernel has taken or given back meanwhile.
const NOISE: u64 = 128;
/// Descriptors that the kernel has not freed yet, or counts in batches.
const FILES: u64 = 64;

/// A broker, the one after it, and what must be as before.
struct Host {
    scratch: Scratch,
    options: &'static [&'static str],
    /// There is one but for the moment between two.
    broker: Option<Broker>,
    dice: Dice,
    /// Free pages of node 1, if that is the supply.
    free: Option<u64>,
    files: u64,
    seen: Seen,
}

/// What all brokers have seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    brokers: u64,
    reserved: u64,
    evicted: u64,
    adopted: u64,
}

impl Seen {
    fn add(&mut self, report: &BrokerReport) {
        self.brokers += 1;
        self.reserved += report.pool.counters.metadata_reserve_success;
        self.evicted += report.pool.counters.evictions;
        self.adopted += report.traffic.adopted;
    }
}

impl Host {
    fn new(options: &'static [&'static str]) -> Self {
        let scratch = Scratch::new();
        let broker = Broker::start_at(&scratch.join(SOCKET), options);
        println!("{}", broker.greeting.trim_end());
        let free = (options == NODE).then(free_pages);
        Self {
            scratch,
            options,
            broker: Some(broker),
            dice: Dice::new(),
            free,
            files: files(),
            seen: Seen::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.scratch.join(SOCKET)
    }

    /// Waits for a random moment.
    fn pass(&mut self, longest: Duration) {
        std::thread::sleep(self.dice.time(longest));
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    /// Kills the broker, and starts the next one in its place some time later.
    fn kill_broker(&mut self) {
        let broker = self.broker.take().unwrap();
        self.seen.add(&broker.report());
        broker.kill();
        assert_eq!(self.scratch.names(), [SOCKET], "a killed process removes nothing");
        self.pass(A_WHILE);
        self.broker = Some(Broker::start_at(&self.path(), self.options));
    }

    /// Waits until these processes, and no others, are the broker's clients.
    fn has_only(&self, holders: &[u32], borrowers: &[u32]) -> BrokerReport {
        let sorted = |pids: &[u32]| {
            let mut pids = pids.to_vec();
            pids.sort_unstable();
            pids
        };
        let (holders, borrowers) = (sorted(holders), sorted(borrowers));
        let connections = (holders.len() + borrowers.len() + 1) as u64;
        self.broker().wait("the clients that live, and no others", |report| {
            let pids: Vec<u32> = report.holders.iter().map(|holder| holder.pid).collect();
            sorted(&pids) == holders
                && sorted(&report.borrowers) == borrowers
                && report.pool.leases.len() == holders.len()
                && report.traffic.connections == connections
        })
    }

    /// No process is left, nor anything that one held.
    fn is_whole(&self) {
        let report = self.has_only(&[], &[]);
        assert_eq!(report.pool.chunks.reserved, 0, "{report:?}");
        assert_eq!(report.pool.chunks.free, report.pool.chunks.total, "{report:?}");
        let (events, blocks) = (report.pool.counters, report.pool.blocks);
        assert_eq!(events.metadata_reserve_success, events.metadata_reserve_free, "{report:?}");
        assert_eq!(blocks.reserved + blocks.reserving + blocks.releasing, 0, "{report:?}");
        assert_eq!((report.traffic.violations, report.traffic.foreign_frees), (0, 0), "{report:?}");
        match self.free {
            None => assert_eq!(blocks.free + blocks.disabled, blocks.total, "{report:?}"),
            Some(before) => {
                // What others than borrowers have of the node counts as lent, if it is the kernel.
                self.broker().wait("all blocks free", |report| {
                    let blocks = report.pool.blocks;
                    blocks.free + blocks.disabled + NOISE >= blocks.total
                });
                until("the node's free memory", || (free_pages() + NOISE >= before).then_some(()));
            }
        }
        assert_eq!(self.scratch.names(), [SOCKET]);
        assert_eq!(processes("tessera"), [self.broker().pid()]);
        until("descriptors closed", || (files() <= self.files + FILES).then_some(()));
    }

    /// The last broker ends as a user ends it, and takes its file along.
    fn end(mut self) -> Seen {
        let report = self.broker().report();
        self.seen.add(&report);
        println!("of {}: {:?}", report.pool.supply, self.seen);
        let (status, messages) = self.broker.unwrap().end();
        assert_eq!((status, messages.as_str()), (Some(143), ""));
        assert_eq!(self.scratch.names(), [""; 0]);
        assert!(processes("tessera").is_empty());
        self.seen
    }
}

/// Free pages of node 1, those on the lists of processors among them.
fn free_pages() -> u64 {
    // Has each processor add up what it counts by itself.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let text = fs::read_to_string("/proc/zoneinfo").unwrap();
    let zones = text.split("Node ").filter(|zone| zone.starts_with("1,"));
    let free = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["pages", "free", count] | ["count:", count] => count.parse().unwrap(),
            _ => 0,
        }
    };
    zones.flat_map(str::lines).map(free).sum()
}

/// Open files of the host.
fn files() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    text.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

/// Clients without guests, of which one or the broker is killed first, then all.
struct Clients {
    holders: Vec<Client>,
    borrowers: Vec<Client>,
}

impl Clients {
    fn start(host: &mut Host, test: &str, borrowers: usize) -> Self {
        let path = host.path();
        let holders = (0..2).map(|_| Client::holder(test, &path, host.dice.roll())).collect();
        let borrowers = (0..borrowers).map(|_| Client::borrower(test, &path, BORROWED)).collect();
        Self { holders, borrowers }
    }

    fn ready(&mut self) {
        self.holders.iter_mut().chain(&mut self.borrowers).for_each(Client::ready);
    }

    fn len(&self) -> usize {
        self.holders.len() + self.borrowers.len()
    }

    /// Kills the one with this number.
    fn kill(&mut self, number: usize) {
        let client = match number.checked_sub(self.holders.len()) {
            None => self.holders.remove(number),
            Some(number) => self.borrowers.remove(number),
        };
        client.kill();
    }

    /// Waits until the broker has these, and no others.
    fn are_all_of(&self, host: &Host) {
        let pids = |clients: &[Client]| clients.iter().map(Client::pid).collect::<Vec<u32>>();
        let report = host.has_only(&pids(&self.holders), &pids(&self.borrowers));
        let blocks = report.pool.blocks;
        let states = [
            blocks.free,
            blocks.reserving,
            blocks.reserved,
            blocks.releasing,
            blocks.lent,
            blocks.evicting,
            blocks.pinned,
            blocks.disabled,
        ];
        assert_eq!(states.iter().sum::<u64>(), blocks.total, "{report:?}");
    }
}

/// One round: what is killed first is as likely the broker as any client.
fn round(host: &mut Host, test: &str, borrowers: usize) {
    let mut clients = Clients::start(host, test, borrowers);
    let victim = host.dice.below(clients.len() + 1);
    let broker_first = victim == clients.len();
    // A client that finds no broker would end by itself.
    if broker_first || host.dice.below(2) == 0 {
        clients.ready();
    }
    host.pass(A_WHILE);
    if broker_first {
        host.kill_broker();
        // Or the clients go while they come back.
        if host.dice.below(2) == 0 {
            clients.are_all_of(host);
            host.pass(A_WHILE);
        }
    } else {
        clients.kill(victim);
        clients.ready();
        clients.are_all_of(host);
    }
    while clients.len() > 0 {
        let next = host.dice.below(clients.len());
        clients.kill(next);
        host.pass(A_WHILE / 10);
    }
    host.is_whole();
}

/// One more round, in which the broker is killed when holders have something, and the next one adopts it. On a busy
/// machine clients may get nowhere in the time of the others.
fn round_of_adoption(host: &mut Host, test: &str, borrowers: usize) {
    let mut clients = Clients::start(host, test, borrowers);
    clients.ready();
    host.broker().wait("what a later broker adopts", |report| {
        let evicted = borrowers == 0 || report.pool.counters.evictions > 0;
        evicted && report.pool.chunks.reserved >= HELD
    });
    host.kill_broker();
    clients.are_all_of(host);
    host.broker().wait("an adoption", |report| report.traffic.adopted > 0);
    while clients.len() > 0 {
        clients.kill(0);
    }
    host.is_whole();
}

#[test]
fn clients_and_brokers_that_are_killed_leave_a_ledger_whole() {
    Lab::new().emulated().run(|| {
        serve();
        let mut host = Host::new(LEDGER);
        let test = "kills::clients_and_brokers_that_are_killed_leave_a_ledger_whole";
        for _ in 0..ROUNDS_ON_LEDGER {
            round(&mut host, test, 0);
        }
        round_of_adoption(&mut host, test, 0);
        let seen = host.end();
        assert!(seen.brokers > 1 && seen.reserved > 0 && seen.adopted > 0, "{seen:?}");
    });
}

#[test]
#[ignore = "long"]
fn clients_borrowers_and_brokers_that_are_killed_leave_a_node_whole() {
    Lab::new().second_node("64M").run(|| {
        serve();
        let mut host = Host::new(NODE);
        let test = "kills::clients_borrowers_and_brokers_that_are_killed_leave_a_node_whole";
        for _ in 0..ROUNDS_ON_NODE {
            round(&mut host, test, 1);
        }
        round_of_adoption(&mut host, test, 1);
        let seen = host.end();
        assert!(seen.brokers > 1 && seen.adopted > 0 && seen.evicted > 0, "{seen:?}");
    });
}

/// A guest that reserves, and one that borrows.
struct Guests {
    holder: Guest,
    borrower: Guest,
}

impl Guests {
    fn start(host: &mut Host) -> Self {
        let path = host.path();
        let plan = || {
            let plan = Plan::workload("touch,32").with("--memory", "256M");
            plan.with("--broker", path.to_str().unwrap())
        };
        let mode = ["demand", "strict"][host.dice.below(2)];
        let holder = plan().with("--mte", "require").with("--tag-storage", mode).start();
        let borrower = plan().with("--mte", "off").start();
        Self { holder, borrower }
    }

    fn are_all_of(&self, host: &Host) {
        host.has_only(&[self.holder.pid()], &[self.borrower.pid()]);
    }

    /// They go on beside the broker that has taken their state back.
    fn continue_lending(&mut self, host: &Host) {
        for guest in [&mut self.holder, &mut self.borrower] {
            let report = guest.report("touched");
            assert_eq!(report["ok"], true, "{report}");
        }
        self.are_all_of(host);
        // A guest on demand may touch a chunk between two answers.
        until("the same from VM and broker", || {
            let told: Value = self.holder.client().get("/tag-storage").unwrap();
            let reserved = host.broker().report().pool.leases[0].reserved_bytes;
            (told["reserved_bytes"] == reserved).then_some(())
        });
    }
}

/// One round with guests that start, of which none needs to get far.
fn round_of_vms(host: &mut Host) {
    let mut guests = Guests::start(host);
    let victims = ["the broker", "the guest that reserves", "the guest that borrows"];
    let victim = host.dice.below(victims.len());
    println!("first {} is killed", victims[victim]);
    if victim == 0 {
        // A VM that finds no broker, or loses it while it is being loaded, would be refused.
        guests.are_all_of(host);
        guests.holder.answers();
        guests.borrower.answers();
        host.pass(A_START);
        host.kill_broker();
        guests.continue_lending(host);
    } else {
        host.pass(A_START);
        let first = [&guests.holder, &guests.borrower][victim - 1];
        first.signal(Signal::KILL);
        host.pass(A_WHILE);
    }
    // Which kills them.
    drop(guests);
    host.is_whole();
}

#[test]
#[ignore = "long"]
fn vms_and_brokers_that_are_killed_leave_a_node_whole() {
    Lab::new().second_node("64M").run(|| {
        let mut host = Host::new(NODE);
        for _ in 0..ROUNDS_OF_VMS {
            round_of_vms(&mut host);
        }
        let seen = host.end();
        assert!(seen.reserved > 0, "{seen:?}");
    });
}
