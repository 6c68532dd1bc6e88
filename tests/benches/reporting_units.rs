//! The units in which a guest reports free memory, over sizes of guests: what goes back to the host, how much of what
//! the guest takes again is in huge pages, and what that costs. Instructions of the host.

use std::time::Duration;

use testing::figures::{Entry, counted, kept};
use testing::footprint::{Curve, Footprint, mib};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;

const BENCH: &str = "reporting_units";

/// How often a guest touches its memory, frees and reports it.
const ROUNDS: usize = 3;

/// After this time the VMM has made huge what it can.
const MENDED: Duration = Duration::from_secs(10);

const LIMIT: Duration = Duration::from_secs(3000);

/// A guest, in MiB.
#[derive(Clone, Copy, Debug)]
struct Size {
    memory: u64,
    touched: u64,
    /// Of units, beside the VMM's choice.
    orders: &'static [u8],
}

/// One round.
struct Round {
    /// Millions of instructions that touching took.
    cost: f64,
    /// Percent of what is resident then, and later.
    huge: f64,
    mended: f64,
    /// MiB that are resident after all was freed and reported, beyond those of the idle guest.
    left: f64,
}

fn huge(footprint: &Footprint) -> f64 {
    footprint.huge as f64 * 100.0 / footprint.resident as f64
}

fn round(guest: &mut Guest, touched: u64, idle: u64) -> Round {
    let report = guest.order(&format!("touch {touched}"), "touched");
    let cost = report["took_ns"].as_u64().unwrap() as f64 / 1e6;
    let first = huge(&Footprint::of(&mut guest.client()));
    std::thread::sleep(MENDED);
    let mended = huge(&Footprint::of(&mut guest.client()));
    assert_eq!(guest.order("free", "freed")["wrong"], 0);
    let after = Curve::until_still(guest).last();
    Round { cost, huge: first, mended, left: mib(after) - mib(idle) }
}

/// Measures one order, or the VMM's choice.
fn measure(size: Size, order: Option<u8>) {
    let mut plan = Plan::workload("memory").append("nokaslr");
    if let Some(order) = order {
        plan = plan.append(&format!("page_reporting.page_reporting_order={order}"));
    }
    let memory = format!("{}M", size.memory);
    let mut guest = plan.with("--memory", &memory).with("--mte", "require").start();
    guest.report("ready");
    let idle = Curve::until_still(&guest).last();
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| round(&mut guest, size.touched, idle)).collect();
    guest.stop();
    let later = &rounds[1..];
    let mean = |of: fn(&Round) -> f64| later.iter().map(of).sum::<f64>() / later.len() as f64;
    let left = rounds.iter().map(|round| round.left).sum::<f64>() / rounds.len() as f64;
    let order = order.map_or("default".to_owned(), |order| order.to_string());
    let case = format!("{} MiB touched, order {order}", size.touched);
    let set = |figure: Entry| figure.case(&case).guest(&memory, 1).supply("ledger");
    set(kept(BENCH, "resident of the idle guest", "MiB")).record(mib(idle));
    set(kept(BENCH, "left beyond that after all was reported", "MiB")).record(left);
    let huge =
        |when| kept(BENCH, &format!("huge of what is resident, {when}"), "%").more_is_better();
    set(huge("at once")).record(mean(|round| round.huge));
    set(huge("ten seconds later")).record(mean(|round| round.mended));
    let touch = |which| counted(BENCH, &format!("touch, {which}"), "million instructions");
    set(touch("the first")).record(rounds[0].cost);
    set(touch("later ones")).record(mean(|round| round.cost));
    println!(
        "| {} MiB, {} touched | {} | {:.0} | {:+.0} | {:.1} % | {:.1} % | {:.0} | {:.0} |",
        size.memory,
        size.touched,
        order,
        mib(idle),
        left,
        mean(|round| round.huge),
        mean(|round| round.mended),
        rounds[0].cost,
        mean(|round| round.cost),
    );
}

fn table(sizes: &[Size]) {
    println!(
        "| guest | order | idle, MiB | left beyond it | huge | 10 s later | first touch, millions | later touches |"
    );
    for size in sizes {
        measure(*size, None);
        for order in size.orders {
            measure(*size, Some(*order));
        }
    }
}

#[test]
fn units_of_small_guests() {
    // Theirs are 5 and 7.
    let sizes = [
        Size { memory: 64, touched: 8, orders: &[7, 9] },
        Size { memory: 256, touched: 120, orders: &[8, 9] },
    ];
    Lab::new().counting_instructions().timeout(LIMIT).run(|| table(&sizes));
}

#[test]
fn units_of_large_guests() {
    // Theirs is 9.
    let sizes = [
        Size { memory: 1024, touched: 700, orders: &[7] },
        Size { memory: 4096, touched: 2000, orders: &[7] },
    ];
    Lab::new().counting_instructions().memory("8G").timeout(LIMIT).run(|| table(&sizes));
}
