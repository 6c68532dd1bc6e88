//! Policies, and rules for ranges of memory.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::fs;
use std::path::Path;

use arch::units::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::*;
use crate::memory::Attributes;

fn two_nodes() -> (TempDir, Topology) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("online", "0-1\n");
    write("has_memory", "0-1\n");
    write("has_cpu", "0\n");
    let topology = Topology::at(folder.path());
    (folder, topology)
}

fn placement(policy: LendPolicy, kind: RamKind) -> Placement {
    Placement::new(&two_nodes().1, 1, policy, kind).unwrap()
}

#[test]
fn only_movable_memory_is_lent() {
    let others = MemPolicy::Bind(NodeSet::new([0]));
    for policy in LendPolicy::ALL {
        for kind in [RamKind::Tagged, RamKind::Locked] {
            let placement = placement(policy, kind);
            assert_eq!(placement.policy(), LendPolicy::Never);
            assert_eq!(placement.rule(), others);
        }
        assert_eq!(placement(policy, RamKind::Movable).policy(), policy);
    }
}

#[test]
fn each_policy_has_its_rule() {
    let (others, node) = (NodeSet::new([0]), NodeSet::new([1]));
    let rule = |policy| placement(policy, RamKind::Movable).rule();

    assert_eq!(rule(LendPolicy::Never), MemPolicy::Bind(others));
    assert_eq!(rule(LendPolicy::LastResort), MemPolicy::Prefer(others));
    assert_eq!(rule(LendPolicy::Eager), MemPolicy::First(node));
    let balanced = placement(LendPolicy::Balanced, RamKind::Movable);
    assert_eq!(balanced.rule(), MemPolicy::Prefer(others));
    balanced.first.store(true, Ordering::Relaxed);
    assert_eq!(balanced.rule(), MemPolicy::First(node));
}

#[test]
fn a_node_that_will_not_do_is_refused() {
    let (_folder, topology) = two_nodes();
    for node in [0, 2] {
        let refused = Placement::new(&topology, node, LendPolicy::Eager, RamKind::Movable);
        assert!(matches!(refused, Err(LendingError::Topology(_))), "{refused:?}");
    }
    let nowhere = Topology::at(Path::new("/nonexistent"));
    assert!(Placement::new(&nowhere, 1, LendPolicy::Eager, RamKind::Movable).is_err());
}

#[test]
fn a_range_that_is_not_guest_memory_is_not_unlent() {
    let ram = GuestRam::new(Bytes::mib(2), Attributes::default()).unwrap();
    let placement = placement(LendPolicy::Eager, RamKind::Movable);

    for base in [0, ram.range().base.0 + 4096, u64::MAX - 4096] {
        let range = MemoryRange::new(GuestAddress(base), Bytes::mib(2));
        let refused = placement.unlend(&ram, range);
        assert!(matches!(refused, Err(LendingError::Outside(_))), "{refused:?}");
    }
    assert!(placement.unlent().is_empty());
}

proptest! {
    #[test]
    fn ranges_stay_sorted_and_apart_and_parts_are_what_they_leave(
        ranges in prop::collection::vec((0u64..100, 0u64..20), 0..20),
        all in (0u64..60, 0u64..80),
    ) {
        let all = all.0..all.0 + all.1;
        let mut kept = Vec::new();
        let mut expected = BTreeSet::new();
        for (start, length) in ranges {
            include(&mut kept, start..start + length);
            expected.extend(start..start + length);
        }

        prop_assert!(kept.windows(2).all(|pair| pair[0].end < pair[1].start), "{kept:?}");
        let found: BTreeSet<u64> = kept.iter().cloned().flatten().collect();
        prop_assert_eq!(&found, &expected);
        let parts: Vec<u64> = outside(&all, &kept).into_iter().flatten().collect();
        let left: Vec<u64> = all.filter(|at| !expected.contains(at)).collect();
        prop_assert_eq!(parts, left);
    }
}
