//! A broker's report as text for people and for Prometheus.

use std::fmt::Write;

use arch::units::Bytes;
use vmm::error::printable;
use vmm::prometheus::Text;
use vmm::tag_storage::broker::BrokerReport;
use vmm::tag_storage::{BlocksReport, LeaseReport, tags_of};

/// A figure of a lease.
type Figure = fn(&LeaseReport) -> u64;

/// States in the order of a block's life.
fn states(blocks: &BlocksReport) -> [(&'static str, u64); 8] {
    [
        ("free", blocks.free),
        ("reserving", blocks.reserving),
        ("reserved", blocks.reserved),
        ("releasing", blocks.releasing),
        ("lent", blocks.lent),
        ("evicting", blocks.evicting),
        ("pinned", blocks.pinned),
        ("disabled", blocks.disabled),
    ]
}

/// Blocks by state, and leases, as tables. Each has its supply in its head.
pub fn pool(report: &BrokerReport) -> String {
    let pool = &report.pool;
    let supply = printable(&pool.supply);
    let block = Bytes::new(pool.block_bytes);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "Pool of process {}: {} of tag storage ({supply}, {}), lending {}",
        report.pid,
        Bytes::new(pool.capacity_bytes),
        printable(&report.capacity_source),
        printable(&report.lend),
    );
    if pool.supply == "ledger" {
        text.push_str("A ledger counts: no byte of it is host memory saved.\n");
    }
    let _ = writeln!(text, "\n{:<12}{:>12}{:>14}  ({supply})", "Blocks", "Number", "Size");
    let rows = states(&pool.blocks).into_iter().chain([("total", pool.blocks.total)]);
    for (state, count) in rows {
        let size = Bytes::new(count.saturating_mul(block.get()));
        let _ = writeln!(text, "{state:<12}{count:>12}{:>14}", size.to_string());
    }
    if let Some(node) = &report.node {
        let _ = writeln!(
            text,
            "\nPages of the node: {} held, {} free, {} of borrowers moved off it so far, {} that would not \
             move ({supply})",
            node.held_pages, node.free_pages, node.moved_pages, node.stuck_pages,
        );
    }
    let _ = writeln!(
        text,
        "\n{:<24}{:>9}{:>10}{:>12}{:>12}{:>12}  ({supply})",
        "Lease", "PID", "Chunks", "Reserved", "Minimum", "Maximum"
    );
    for lease in &pool.leases {
        text.push_str(&lease_line(report, lease));
    }
    let chunks = &pool.chunks;
    let _ = writeln!(
        text,
        "\n{} chunks of 2 MiB: {} reserved, {} set aside, {} free; {} of tag storage free to reserve \
         ({supply})",
        chunks.total,
        chunks.reserved,
        chunks.set_aside,
        chunks.free,
        tags_of(chunks.free),
    );
    if !report.borrowers.is_empty() {
        let pids: Vec<String> = report.borrowers.iter().map(u32::to_string).collect();
        let _ = writeln!(text, "Borrowers: {} (PID {})", pids.len(), pids.join(", "));
    }
    let _ = writeln!(text, "\nSince the start  ({supply})");
    for (name, count) in pool.counters.named() {
        let _ = writeln!(text, "{name:<26}{count:>12}");
    }
    text
}

fn lease_line(report: &BrokerReport, lease: &LeaseReport) -> String {
    let pid = match report.pid_of(lease.id) {
        Some(pid) => pid.to_string(),
        None => "-".to_owned(),
    };
    let max = match lease.max_bytes >= report.pool.capacity_bytes {
        true => "all".to_owned(),
        false => Bytes::new(lease.max_bytes).to_string(),
    };
    let name = match lease.closing {
        true => format!("{} (closing)", printable(&lease.name)),
        false => printable(&lease.name),
    };
    format!(
        "{name:<24}{pid:>9}{:>10}{:>12}{:>12}{max:>12}\n",
        lease.chunks,
        Bytes::new(lease.reserved_bytes).to_string(),
        Bytes::new(lease.min_bytes).to_string(),
    )
}

/// The same in Prometheus's text format; each figure of the pool has its supply for a label.
pub fn pool_prometheus(report: &BrokerReport) -> String {
    let (pool, traffic) = (&report.pool, &report.traffic);
    let supply = [("supply", pool.supply.as_str())];
    let mut text = Text::default();
    text.add("pool_capacity_bytes", &supply, pool.capacity_bytes);
    text.add("pool_block_bytes", &supply, pool.block_bytes);
    for (state, count) in states(&pool.blocks) {
        text.add("pool_blocks", &[supply[0], ("state", state)], count);
    }
    let chunks = &pool.chunks;
    for (state, count) in
        [("reserved", chunks.reserved), ("set_aside", chunks.set_aside), ("free", chunks.free)]
    {
        text.add("pool_chunks", &[supply[0], ("state", state)], count);
    }
    for (name, count) in pool.counters.named() {
        text.add(&format!("pool_{name}_total"), &supply, count);
    }
    let columns: [(&str, Figure); 3] = [
        ("lease_reserved_bytes", |lease| lease.reserved_bytes),
        ("lease_min_bytes", |lease| lease.min_bytes),
        ("lease_max_bytes", |lease| lease.max_bytes),
    ];
    for (name, figure) in columns {
        for lease in &pool.leases {
            let pid = report.pid_of(lease.id).unwrap_or(0).to_string();
            // Names need not differ, ids do.
            let id = lease.id.to_string();
            let labels = [supply[0], ("lease", &id), ("name", &lease.name), ("pid", &pid)];
            text.add(name, &labels, figure(lease));
        }
    }
    if let Some(node) = &report.node {
        for (name, count) in [
            ("held_pages", node.held_pages),
            ("free_pages", node.free_pages),
            ("stuck_pages", node.stuck_pages),
            ("moved_pages_total", node.moved_pages),
        ] {
            text.add(&format!("node_{name}"), &supply, count);
        }
    }
    for (name, count) in [
        ("connections", traffic.connections),
        ("connections_max", traffic.connections_max),
        ("borrowers", report.borrowers.len() as u64),
        ("turned_away_total", traffic.turned_away),
        ("violations_total", traffic.violations),
        ("foreign_frees_total", traffic.foreign_frees),
        ("adopted_total", traffic.adopted),
        ("give_backs_total", traffic.give_backs),
        ("reliefs_total", traffic.reliefs),
        ("notices_lost_total", traffic.notices_lost),
    ] {
        text.add(&format!("broker_{name}"), &supply, count);
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use vmm::tag_storage::broker::Traffic;
    use vmm::tag_storage::supply::node::NodeReport;
    use vmm::tag_storage::{ChunksReport, Counters, PoolReport};

    use super::*;

    fn report(supply: &str) -> BrokerReport {
        let blocks = BlocksReport {
            total: 2048,
            free: 2000,
            reserving: 0,
            reserved: 48,
            releasing: 0,
            lent: 0,
            evicting: 0,
            pinned: 0,
            disabled: 0,
        };
        BrokerReport {
            pid: 42,
            capacity_source: "as given".to_owned(),
            lend: "never".to_owned(),
            pool: PoolReport {
                supply: supply.to_owned(),
                capacity_bytes: 8 << 20,
                block_bytes: 4096,
                blocks,
                chunks: ChunksReport { total: 128, reserved: 3, set_aside: 0, free: 125 },
                leases: Vec::new(),
                counters: Counters::default(),
            },
            node: (supply != "ledger").then(NodeReport::default),
            holders: Vec::new(),
            borrowers: Vec::new(),
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn each_table_names_the_supply() {
        for supply in ["ledger", "node:1"] {
            let text = pool(&report(supply));

            let tables = 5 + usize::from(supply != "ledger");
            assert_eq!(text.matches(&format!("({supply}")).count(), tables, "{text}");
            assert_eq!(text.contains("no byte of it is host memory saved"), supply == "ledger");
            assert!(text.contains("reserved              48       192 KiB"), "{text}");
        }
    }

    #[test]
    fn each_figure_of_the_pool_has_its_supply() {
        let text = pool_prometheus(&report("node:1"));

        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("{supply=\"node:1\""), "{line}");
        }
        assert!(text.contains("tessera_pool_blocks{supply=\"node:1\",state=\"reserved\"} 48\n"));
    }
}
