//! The host and the VMs of the bench `lending` (`tests/benches/lending.rs`), so that the model can be compared with what that
//! bench measures.
//!
//! The mix is a VM without MTE that borrows and one with MTE on demand. What the host has free when both have booted is
//! measured: the model has no kernel, no programs, and no guest that boots. From there on the model does what the bench does.

use arch::layout::CHUNK;
use arch::units::Bytes;
use vmm::tag_storage::{LendPolicy, TAGS_OF_CHUNK};

use super::host::{Host, HostError, HostSpec, Kernel, Looks, Memory, PAGE, pages};

/// What the borrower takes at the second load.
pub const TAKEN: Bytes = Bytes::mib(480);
/// What the VM with MTE touches at each load.
pub const TOUCHED: Bytes = Bytes::mib(48);
/// What the borrower takes at a time on its way to the third load.
pub const STEP: Bytes = Bytes::mib(16);
/// What the borrower leaves free of what it may have: the kernel begins to take back below.
pub const MARGIN: Bytes = Bytes::mib(64);
/// What is kept from the borrower outside the node, for the third load of the VM with MTE.
pub const ROOM: Bytes = Bytes::mib(TOUCHED.as_mib() + 24);
/// What must be free outside the node for the VM with MTE to touch more.
pub const NEEDED: Bytes = Bytes::mib(TOUCHED.as_mib() + 8);

/// Chunks of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chunks(pub u64);

/// Blocks of tag storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocks(pub u64);

/// The host before the first load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Free outside the node.
    pub outside: Bytes,
    /// Free on the node.
    pub node: Bytes,
    /// What the kernel keeps of either from VMs that may have memory of the other.
    pub kept: (Bytes, Bytes),
    /// The pool.
    pub tags: Bytes,
    /// Chunks of the VM with MTE that have tag storage.
    pub chunks: Chunks,
    /// What the borrower has on the node.
    pub borrowed: Bytes,
}

/// What a touch of new memory came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Chunks that were populated.
    pub chunks: Chunks,
    /// Blocks that had been lent and were emptied.
    pub evicted: Blocks,
    /// Blocks that were lent before.
    pub lent: Blocks,
}

/// What came of the mix under one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// At each load; none where there was no memory to touch.
    pub touches: [Option<Touch>; 3],
    /// What the borrower has taken at the third load.
    pub taken: Bytes,
    /// What it has on the node then.
    pub on_node: Bytes,
}

/// A host with both VMs.
struct Mix {
    host: Host,
    policy: LendPolicy,
    owner: Memory,
    borrower: Memory,
    chunks: Chunks,
}

fn size_of(pages: u64) -> Bytes {
    Bytes::new(pages * PAGE.get())
}

/// Runs the mix under a policy.
///
/// # Errors
/// When no host can begin so, or something was lost.
pub fn run(policy: LendPolicy, start: &Start) -> Result<Found, HostError> {
    let mut mix = Mix::new(policy, start)?;
    let idle = mix.touch()?;
    mix.host.touch(&mut mix.borrower, pages(TAKEN));
    let loaded = mix.touch()?;
    let mut taken = TAKEN.as_mib();
    while mix.left() >= MARGIN.as_mib() + STEP.as_mib() {
        mix.host.touch(&mut mix.borrower, pages(STEP));
        taken += STEP.as_mib();
    }
    let on_node = size_of(mix.host.level().lent);
    mix.host.hold(0);
    let full = mix.touch()?;
    mix.host.check()?;
    Ok(Found { touches: [idle, loaded, full], taken: Bytes::mib(taken), on_node })
}

impl Mix {
    fn new(policy: LendPolicy, start: &Start) -> Result<Self, HostError> {
        let &Start { outside, node, kept: (kept_ordinary, kept_node), tags, chunks, borrowed } =
            start;
        let [memory, of_tags] = [CHUNK, TAGS_OF_CHUNK].map(|each| chunks.0 * each.get());
        let rest = |all: u64, part: Bytes| {
            all.checked_sub(part.get()).map(Bytes::new).ok_or(HostError::Books(
                "there is less free than the kernel keeps, or less on the node than the pool has",
            ))
        };
        // VMs that never have memory of the node have no other: for them the kernel goes below its low watermarks.
        let kept_ordinary = if policy == LendPolicy::Never { Bytes::ZERO } else { kept_ordinary };
        let ordinary = rest(outside.get() + memory + ROOM.get(), kept_ordinary)?;
        let all = rest(node.get() + of_tags + borrowed.get(), kept_node)?;
        let beyond = rest(all.get(), tags)?;
        let kernel = Kernel { beyond, kept_ordinary, kept_node, looks: Looks::BeforeRequests };
        let mut host = Host::new(HostSpec { ordinary, tags, block: PAGE, policy, kernel })?;
        host.hold(pages(ROOM));
        let [mut borrower, mut owner] = [host.start(false)?, host.start(true)?];
        host.resize(&mut owner, chunks.0)?;
        host.settle(&mut borrower, pages(borrowed), 0);
        host.check()?;
        Ok(Self { host, policy, owner, borrower, chunks })
    }

    /// The VM with MTE touches new memory.
    fn touch(&mut self) -> Result<Option<Touch>, HostError> {
        if size_of(self.host.free().0) < NEEDED {
            return Ok(None);
        }
        let before = self.host.report();
        self.chunks.0 += TOUCHED.get() / CHUNK.get();
        self.host.resize(&mut self.owner, self.chunks.0)?;
        let after = self.host.report();
        let counted = after.counters.evictions - before.counters.evictions;
        Ok(Some(Touch {
            chunks: Chunks((after.chunks.reserved - before.chunks.reserved).into()),
            evicted: Blocks(counted),
            lent: Blocks(before.blocks.lent),
        }))
    }

    /// MiB that the borrower may have and that are free, as the bench counts them.
    fn left(&self) -> u64 {
        let (outside, node) = self.host.free();
        let node = if self.policy == LendPolicy::Never { 0 } else { node };
        size_of(outside).as_mib() + size_of(node).as_mib()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A host with 700 MiB outside the node and 240 on it, of which the pool has 244 and the kernel keeps 4.
    const START: Start = Start {
        outside: Bytes::mib(700),
        node: Bytes::mib(240),
        kept: (Bytes::mib(20), Bytes::mib(4)),
        tags: Bytes::mib(232),
        chunks: Chunks(32),
        borrowed: Bytes::ZERO,
    };

    fn lent(mib: u64) -> Blocks {
        Blocks(mib << 8)
    }

    /// Worked out by hand: 24 chunks at each load, with 1.5 MiB of tags.
    #[test]
    fn nothing_is_evicted_where_nothing_is_lent() {
        let found = run(LendPolicy::Never, &START).unwrap();

        let touch = Touch { chunks: Chunks(24), evicted: Blocks(0), lent: Blocks(0) };
        assert_eq!(found.touches, [Some(touch); 3]);
        // 700 less two loads of 48 leave 604: 480, and 16 more each until less than 80 are left.
        assert_eq!((found.taken, found.on_node), (Bytes::mib(480 + 48), Bytes::ZERO));
    }

    #[test]
    fn a_vm_without_another_node_has_what_the_kernel_keeps_for_others() {
        let start = Start { kept: (Bytes::mib(600), START.kept.1), ..START };
        let found = run(LendPolicy::Never, &start).unwrap();
        assert_eq!(found, run(LendPolicy::Never, &START).unwrap());
    }

    #[test]
    fn an_eager_borrower_fills_the_node_and_each_chunk_evicts() {
        let found = run(LendPolicy::Eager, &START).unwrap();

        let [idle, loaded, full] = found.touches.map(Option::unwrap);
        assert_eq!((idle.lent, idle.evicted), (lent(0), Blocks(0)));
        // The pool lends all but what 56 chunks have tags for: 3.5 MiB.
        assert_eq!(loaded.lent, Blocks((232 << 8) - 56 * 16));
        assert_eq!((loaded.evicted, full.evicted), (Blocks(384), Blocks(384)));
        assert_eq!(loaded.chunks, Chunks(24));
        // All of 240 but what is kept and the tags of the two loads before.
        assert_eq!(found.on_node, size_of((236 << 8) - 2 * 384));
    }

    #[test]
    fn a_last_resort_leaves_the_margin_on_the_node() {
        let found = run(LendPolicy::LastResort, &START).unwrap();

        let [idle, loaded, full] = found.touches.map(Option::unwrap);
        assert_eq!([idle.lent, loaded.lent], [Blocks(0); 2]);
        assert!(full.lent > lent(100), "{full:?}");
        assert_eq!([idle, loaded, full].map(|touch| touch.evicted), [Blocks(0); 3]);
        assert!(found.on_node < run(LendPolicy::Eager, &START).unwrap().on_node);
    }

    /// 60 MiB are enough for the first load and too little for the second. At the third there are 72 more.
    #[test]
    fn where_no_memory_is_left_none_is_touched() {
        let start = Start { outside: Bytes::mib(60), ..START };
        let found = run(LendPolicy::Never, &start).unwrap();
        assert_eq!(found.touches.map(|touch| touch.is_some()), [true, false, true]);
    }

    #[test]
    fn a_host_that_cannot_be_is_refused() {
        let start = Start { outside: Bytes::mib(1), chunks: Chunks(0), ..START };
        let no_node = Start { node: Bytes::mib(1), ..START };
        assert!(run(LendPolicy::Never, &no_node).is_err());
        let kept = Start { kept: (Bytes::gib(1), Bytes::ZERO), ..start };
        assert!(run(LendPolicy::LastResort, &kept).is_err());
    }
}
