//! Tag storage that is a NUMA node, lent by a broker to VMs without MTE and taken back for VMs with it.

use std::fs;

use testing::borrower::{Borrower, serve};
use testing::broker::Broker;
use testing::footprint::Curve;
use testing::free_lists::{self, BATCH, LISTS};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::{oom_kills, pages_on_node};
use testing::scratch::Scratch;
use testing::setting::Setting;
use testing::wait::until;
use vmm::tag_storage::broker::BrokerReport;

use crate::reporting::{KERNEL_16K, plan, start};

/// Pages of one chunk's tags, which are blocks here.
const CHUNK_PAGES: u64 = 16;
const HUGE_PAGES: u64 = 512;
/// How far the kernel's count of free pages may be off, and what it may take for itself meanwhile.
const NOISE: u64 = 128;

fn broker(lend: &str) -> Broker {
    let broker = Broker::start(&["--supply", "node:1", "--lend", lend]);
    println!("{}", broker.greeting.trim_end());
    broker
}

/// A VM without MTE that borrows. What it has touched, it keeps.
fn borrower(broker: &Broker, memory: u64) -> Plan {
    let plan = Plan::workload("memory").with("--memory", &format!("{memory}M"));
    let plan = plan.with("--mte", "off").with("--balloon", "reporting=off");
    plan.with("--broker", broker.socket())
}

/// A VM with MTE that has its tag storage from the broker.
fn holder(broker: &Broker, memory: u64, mode: &str) -> Plan {
    plan(memory).with("--tag-storage", mode).with("--broker", broker.socket())
}

fn ready(plan: Plan) -> Guest {
    let mut guest = plan.start();
    guest.report("ready");
    guest
}

fn lent_to(guest: &Guest) -> u64 {
    pages_on_node(guest.pid(), 1)
}

/// The broker at rest: its states sum to the total, and tags are nowhere but in what is reserved. While a guest runs on
/// demand, some blocks may be on their way.
fn look(broker: &Broker, what: &str) -> BrokerReport {
    let report = until("a broker at rest", || {
        let report = broker.report();
        let blocks = report.pool.blocks;
        let used = blocks.reserved + blocks.lent + blocks.pinned;
        let is_at_rest = blocks.free + used + blocks.disabled == blocks.total
            && pages_on_node(broker.pid(), 1) == blocks.reserved;
        is_at_rest.then_some(report)
    });
    println!("{what}: {:?} {:?}", report.pool.blocks, report.pool.counters);
    report
}

/// Which memory is in huge pages.
const HUGE_PAGES_OF: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// A guest that lives in all that the node has and then takes, checks and gives back memory.
fn lodger(broker: &Broker) -> Guest {
    let mut lodger = ready(borrower(broker, 512));
    lodger.order("touch 160", "touched");
    let report = look(broker, "borrowed");
    assert_eq!(report.borrowers, [lodger.pid()]);
    assert!(report.pool.blocks.lent > report.pool.blocks.total * 9 / 10, "{report:?}");
    // It takes, checks and gives back memory from now on: the same, once it has had all of it.
    lodger.order("press 64", "pressing");
    Curve::until_still(&lodger);
    lodger
}

/// Both guests' memory is as they left it, and they end.
fn are_intact(broker: &Broker, mut lodger: Guest, mut owner: Guest) {
    for order in ["relax", "free"] {
        let done = lodger.order(order, if order == "relax" { "relaxed" } else { "freed" });
        assert_eq!(done["wrong"], 0, "{done}");
    }
    assert_eq!(lent_to(&owner), 0);
    assert_eq!(owner.order("free", "freed")["wrong"], 0);
    owner.stop();
    lodger.stop();
    let left = broker.wait("all to go", |report| {
        report.traffic.connections == 1 && report.pool.leases.is_empty()
    });
    assert!(left.borrowers.is_empty(), "{left:?}");
    assert_eq!(left.pool.blocks.reserved, 0, "{left:?}");
    assert_eq!(oom_kills(), 0);
}

/// Files that a process has open past the page cache (proc_pid_fdinfo(5), O_DIRECT of arm64).
fn direct_files(pid: u32) -> usize {
    const O_DIRECT: u32 = 0o200_000;
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let flags = files.filter_map(|file| {
        let text = fs::read_to_string(file.path()).ok()?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
        u32::from_str_radix(flags.trim(), 8).ok()
    });
    flags.filter(|flags| flags & O_DIRECT != 0).count()
}

#[test]
fn a_direct_disk_of_a_guest_that_may_borrow_goes_through_the_page_cache_and_that_is_said() {
    const SAID: &str = "the disk data goes through the page cache, and not past it";
    Lab::new().second_node("128M").run(|| {
        let scratch = Scratch::new();
        let disk = scratch.file("disk", vec![0; 1 << 20]);
        for (lend, direct) in [("never", 1), ("eager", 0)] {
            let broker = broker(lend);
            let plan = borrower(&broker, 256);
            let disk = format!("{},direct,id=data", disk.display());
            let guest = plan.with("--disk", &disk).start();
            guest.answers();

            assert_eq!(direct_files(guest.pid()), direct, "{lend}");

            guest.client().stop().unwrap();
            let messages = guest.finish().messages;
            assert_eq!(messages.contains(SAID), direct == 0, "{lend}: {messages}");
        }
    });
}

#[test]
#[ignore = "long"]
fn a_vm_with_mte_evicts_exactly_what_it_needs_while_both_run() {
    const NEED: u64 = 512 * CHUNK_PAGES;
    Lab::new().second_node("128M").run(|| {
        let _lists = free_lists::short();
        for huge in [false, true] {
            let huge_pages = Setting::new(HUGE_PAGES_OF, if huge { "always" } else { "never" });
            let broker = broker("eager");
            let lodger = lodger(&broker);
            let before = lent_to(&lodger);
            let free = broker.report().pool.blocks.free;

            huge_pages.change("always");
            let mut owner = ready(holder(&broker, 1024, "strict"));

            let report = look(&broker, "a guest of 1 GiB, strict");
            let moved = report.node.unwrap().moved_pages;
            println!(
                "node:1: {moved} pages moved for {NEED} reserved, with {free} free; the borrower had \
                 {before} there, {} now",
                lent_to(&lodger)
            );
            assert_eq!(report.pool.blocks.reserved, NEED);
            // What the borrower has beyond the capacity goes as well: that is to be free for the kernel.
            let spare = before.saturating_sub(report.pool.blocks.total);
            // A huge page moves whole; and when pages that are free are of no use for the moment, as a batch of them is
            // on a processor's list, as many others move.
            let tries = 1 + report.pool.counters.tail_retries;
            let more = spare + LISTS + tries * if huge { HUGE_PAGES } else { BATCH };
            assert!(moved + free >= NEED && moved + free <= NEED + more, "{report:?}");
            owner.order("tag 32", "tagged");
            are_intact(&broker, lodger, owner);
        }
    });
}

#[test]
#[ignore = "long"]
fn a_vm_on_demand_evicts_chunk_by_chunk_and_is_never_in_tag_storage() {
    Lab::new().second_node("128M").run(|| {
        let broker = broker("eager");
        let lodger = lodger(&broker);
        let mut owner = start(holder(&broker, 1024, "demand"));
        let idle = look(&broker, "a guest of 1 GiB on demand");
        owner.type_line("touch 400");
        let mut samples = 0;
        broker.wait("400 MiB touched", |report| {
            samples += 1;
            assert_eq!(lent_to(&owner), 0);
            report.pool.blocks.reserved >= idle.pool.blocks.reserved + 190 * CHUNK_PAGES
        });
        owner.report("touched");
        let report = look(&broker, "400 MiB touched");
        println!("{} pages moved, {samples} looks", report.node.unwrap().moved_pages);
        are_intact(&broker, lodger, owner);
    });
}

#[test]
#[ignore = "long"]
fn each_policy_lends_to_vms_as_it_says_and_never_to_locked_or_tagged_memory() {
    Lab::new().second_node("128M").run(|| {
        for lend in ["never", "last-resort", "balanced", "eager"] {
            let broker = broker(lend);
            let mut lodger = ready(borrower(&broker, 256));
            lodger.order("touch 100", "touched");
            let lent = lent_to(&lodger);
            println!("{lend}: {lent} pages on the node");
            // Nearly all of the free memory is elsewhere.
            assert_eq!(lent > 0, lend == "eager", "{lend}: {lent}");
            if lend == "eager" {
                let locked = ready(borrower(&broker, 128).flag("--lock-memory"));
                let mut owner = ready(holder(&broker, 256, "demand"));
                owner.order("touch 64", "touched");
                assert_eq!([&locked, &owner].map(lent_to), [0, 0], "{lend}");
                look(&broker, lend);
                locked.stop();
                owner.stop();
            }
            assert_eq!(lodger.order("free", "freed")["wrong"], 0);
            lodger.stop();
        }
        assert_eq!(oom_kills(), 0);
    });
}

#[test]
#[ignore = "long"]
fn a_host_with_pages_of_16_kib_reserves_lends_and_evicts() {
    const PAGE: u64 = 16 << 10;
    Lab::new().kernel_package(KERNEL_16K).second_node("128M").run(|| {
        assert_eq!(rustix::param::page_size() as u64, PAGE);
        let broker = broker("eager");
        let mut lodger = ready(borrower(&broker, 512));
        lodger.order("touch 160", "touched");
        let report = look(&broker, "borrowed");
        assert_eq!(report.pool.block_bytes, PAGE);
        assert!(report.pool.blocks.lent > report.pool.blocks.total * 9 / 10, "{report:?}");

        let mut owner = start(holder(&broker, 512, "demand"));
        owner.order("touch 200", "touched");
        let report = look(&broker, "200 MiB touched on demand");
        let reserved = report.pool.leases[0].reserved_bytes;
        assert_eq!(report.pool.blocks.reserved * PAGE, reserved);
        assert!(reserved >= (200 << 20) / 32, "{report:?}");
        assert_eq!(lent_to(&owner), 0);
        assert_eq!(owner.order("free", "freed")["wrong"], 0);
        let shrunk = broker.wait("the lease to shrink", |report| {
            report.pool.leases[0].reserved_bytes + (150 << 20) / 32 <= reserved
        });
        println!(
            "node:1, blocks of 16 KiB: {} KiB reserved with 200 MiB touched, {} KiB after freeing",
            reserved >> 10,
            shrunk.pool.leases[0].reserved_bytes >> 10
        );
        assert_eq!(lodger.order("free", "freed")["wrong"], 0);
        owner.stop();
        lodger.stop();
        assert_eq!(oom_kills(), 0);
    });
}

#[test]
#[ignore = "long"]
fn pinned_pages_of_a_borrower_are_skipped_counted_and_had_later() {
    const PINNED: u64 = 512;
    Lab::new().second_node("128M").run(|| {
        if serve() {
            return;
        }
        let _lists = free_lists::short();
        let broker = broker("eager");
        let mut lodger = Borrower::start_with(
            "lent_vms::pinned_pages_of_a_borrower_are_skipped_counted_and_had_later",
            64,
            broker.path(),
        );
        assert_eq!(lodger.order(&format!("pin {PINNED}")), "pinned");
        let total = u64::from(look(&broker, "borrowed").pool.chunks.total);
        let strict = |chunks: u64| {
            let id = format!("vm-{chunks}");
            holder(&broker, chunks * 2, "strict").with("--id", &id)
        };

        // All of it cannot be had, and none of it is kept.
        let refused = strict(total).command().output().unwrap();
        let message = String::from_utf8_lossy(&refused.stderr);
        println!("{}", message.trim_end());
        assert_eq!(refused.status.code(), Some(69), "{message}");
        let name = format!("'vm-{total}'");
        assert!(message.contains(&name) && message.contains("node:1"), "{message}");
        let report = look(&broker, "refused");
        let (pinned, counted) = (report.pool.blocks.pinned, report.pool.counters.pinned);
        assert!(pinned.abs_diff(PINNED) <= NOISE && counted + NOISE >= PINNED, "{report:?}");
        assert_eq!(report.pool.blocks.reserved, 0);

        // What is not pinned can.
        let most = total - (PINNED + LISTS) / CHUNK_PAGES;
        let owner = ready(strict(most));
        let report = look(&broker, "a guest beside pinned pages");
        assert_eq!(report.pool.blocks.reserved, most * CHUNK_PAGES);
        assert_eq!(lodger.order("check"), "intact");
        owner.stop();
        let ends = |what: &str| broker.wait(what, |report| report.pool.leases.is_empty());
        ends("the guest's lease to end");

        assert_eq!(lodger.order("unpin"), "unpinned");
        // The broker tries such pages again after a while.
        let all = Plan::workload("poweroff").with("--memory", &format!("{}M", total * 2));
        let all = all.with("--mte", "require").with("--serial", "none");
        let all = all.with("--tag-storage", "strict").with("--broker", broker.socket());
        until("the pages that were pinned", || {
            let status = all.command().output().unwrap().status.code();
            (status == Some(0)).then_some(())
        });
        ends("the last guest's lease to end");
        look(&broker, "all of it, had once");
        assert_eq!(lodger.order("check"), "intact");
        assert_eq!(oom_kills(), 0);
    });
}
