//! The tag storage of this host as a generic resource of Slurm.

use std::fs;

use serde::Serialize;
use vmm::tag_storage::PoolReport;
use vmm::tag_storage::tags_of;

use super::args::GresArgs;
use super::node::{TAG_STORAGE, tag_storage, with_tag_storage};
use super::slurm::{call, field};
use crate::commands::pool;
use crate::failure::Failure;
use crate::output::Form;

/// What is said of a host's tag storage.
#[derive(Serialize)]
struct Answer {
    /// Slurm's name of the host.
    node: String,
    /// As slurm.conf has it.
    gres: String,
    /// What is behind it.
    supply: String,
    /// Whether Slurm's count has been changed; absent if that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    updated: Option<bool>,
}

/// Shows what Slurm is to count, and has it count that with `--update`.
///
/// # Errors
/// When the broker cannot be reached, the node has no name, or scontrol fails.
pub(super) fn gres(args: &GresArgs, form: Form) -> Result<(), Failure> {
    let report = pool::ask(&args.broker)?;
    let node = name_of(args)?;
    let mib = reservable(&report.pool);
    let updated = args.update.then(|| update(args, &node, mib)).transpose()?;
    let gres = format!("{TAG_STORAGE}:{mib}");
    let answer = Answer { node, gres, supply: report.pool.supply, updated };
    form.show(&answer, |Answer { node, gres, .. }| match (args.gres_conf, updated) {
        (true, _) => format!("NodeName={node} Name={TAG_STORAGE} Count={mib} Flags=CountOnly\n"),
        (_, None) => format!("Gres={gres}\n"),
        (_, Some(true)) => format!("{node}: Gres={gres}, updated\n"),
        (_, Some(false)) => format!("{node}: Gres={gres}, as it was\n"),
    })
}

/// Whole MiB of tag storage that leases can have: that of all chunks, unless blocks are disabled or pinned.
fn reservable(pool: &PoolReport) -> u64 {
    let blocks = &pool.blocks;
    let usable = blocks.total.saturating_sub(blocks.disabled).saturating_sub(blocks.pinned);
    let usable = usable.saturating_mul(pool.block_bytes);
    usable.min(tags_of(pool.chunks.total).get()) >> 20
}

fn name_of(args: &GresArgs) -> Result<String, Failure> {
    let given = args.node.clone().or_else(|| std::env::var("SLURMD_NODENAME").ok());
    let name = given.unwrap_or_else(|| {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        host.trim().split('.').next().unwrap_or_default().to_owned()
    });
    // One node: no list of Slurm's (`a[1-3]`, `a,b`), and no other option of scontrol.
    let letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    match !name.is_empty() && name.chars().all(letter) {
        true => Ok(name),
        false => Err(Failure::usage(
            "this is no name of one node: give Slurm's name of this host with --node",
        )),
    }
}

/// Whether Slurm's count differed.
fn update(args: &GresArgs, node: &str, mib: u64) -> Result<bool, Failure> {
    let line = call(&args.scontrol, &["--oneliner", "--details", "show", "node", node])?;
    let list = field(&line, "Gres").unwrap_or_default();
    let counted = tag_storage(list);
    if counted == mib {
        return Ok(false);
    }
    // The node's next registration would drain it (_node_config_validate of Slurm's gres.c), and not be taken back.
    if field(&line, "GresUsed").is_some_and(|used| tag_storage(used) > 0) {
        return Err(Failure::refused(format!(
            "{node} has {mib} MiB of tag storage, Slurm counts {counted}, and jobs use it: drain the node, and update \
             it when they have ended"
        )));
    }
    let list = with_tag_storage(list, mib);
    call(&args.scontrol, &["update", &format!("NodeName={node}"), &format!("Gres={list}")])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use vmm::tag_storage::{BlocksReport, ChunksReport, Counters};

    use super::*;

    fn pool(disabled: u64, pinned: u64) -> PoolReport {
        let free = 2048 - disabled - pinned;
        PoolReport {
            supply: "ledger".to_owned(),
            capacity_bytes: 8 << 20,
            block_bytes: 4096,
            blocks: BlocksReport {
                total: 2048,
                free,
                reserving: 0,
                reserved: 0,
                releasing: 0,
                lent: 0,
                evicting: 0,
                pinned,
                disabled,
            },
            chunks: ChunksReport { total: 128, reserved: 0, set_aside: 0, free: 128 },
            leases: Vec::new(),
            counters: Counters::default(),
        }
    }

    #[test]
    fn only_what_can_be_reserved_counts_and_never_part_of_a_mib() {
        assert_eq!(reservable(&pool(0, 0)), 8);
        assert_eq!(reservable(&pool(1, 0)), 7);
        assert_eq!(reservable(&pool(256, 1)), 6);
        assert_eq!(reservable(&PoolReport { block_bytes: u64::MAX, ..pool(0, 0) }), 8);
    }
}
