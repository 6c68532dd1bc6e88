#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

/// 16 chunks of ordinary memory, and as much tag storage as that needs twice over: 256 pages.
fn host(policy: LendPolicy, block: Bytes) -> Host {
    let (ordinary, tags) = (Bytes::mib(32), Bytes::mib(2));
    Host::new(HostSpec { ordinary, tags, block, policy, kernel: Kernel::default() }).unwrap()
}

/// Worked out by hand: a chunk is 512 pages, its tags are 16; the node has 512 pages, other memory 8192.
#[test]
fn two_vms_on_a_small_host() {
    let mut host = host(LendPolicy::Eager, PAGE);
    let mut borrower = host.start(false).unwrap();
    let mut owner = host.start(true).unwrap();

    // 1024 pages: the node's 512 first, 512 of other memory.
    assert_eq!(host.resize(&mut borrower, 2).unwrap(), Lack::default());
    assert_eq!(host.level(), Level { lent: 512, used: 512, ..Level::default() });
    // Three chunks: 1536 pages, and 48 pages of tags for which 48 borrowed ones move.
    assert_eq!(host.resize(&mut owner, 3).unwrap(), Lack::default());
    let level = Level { reserved: 48, tags: 48, lent: 464, used: 512 + 48 + 1536 };
    assert_eq!(host.level(), level);
    assert_eq!(host.check().unwrap().counters.evictions, 48);
    // One chunk goes: 16 pages of the node lie idle.
    assert_eq!(host.resize(&mut owner, 2).unwrap(), Lack::default());
    assert_eq!(host.level(), Level { reserved: 32, tags: 32, lent: 464, used: 512 + 48 + 1024 });
    // Half of the borrower's memory goes, and half of what it has on the node.
    assert_eq!(host.resize(&mut borrower, 1).unwrap(), Lack::default());
    assert_eq!(host.level(), Level { reserved: 32, tags: 32, lent: 232, used: 280 + 1024 });
    host.check().unwrap();
    host.end(owner).unwrap();
    host.end(borrower).unwrap();
    let report = host.check().unwrap();
    assert_eq!(host.level(), Level::default());
    assert_eq!(report.blocks.free, 512);
    assert_eq!(report.counters.evictions, 48);
}

#[test]
fn policies_choose_as_they_are_described() {
    for (policy, small, large) in [
        (LendPolicy::Never, 0, 0),
        (LendPolicy::LastResort, 0, 288),
        (LendPolicy::Balanced, 0, 288),
        (LendPolicy::Eager, 512, 272),
    ] {
        let mut host = host(policy, PAGE);
        let mut borrower = host.start(false).unwrap();
        host.resize(&mut borrower, 1).unwrap();
        assert_eq!(host.level().lent, small, "{policy}");
        // Of other memory a chunk is left free. The tags of the rest take 224 pages, or 240 under `eager`.
        let mut filler = host.start(true).unwrap();
        let free = host.node.ordinary_free() / CHUNK_PAGES;
        host.resize(&mut filler, free - 1).unwrap();
        // More than there is.
        host.resize(&mut borrower, 3).unwrap();
        host.check().unwrap();
        assert_eq!(host.level().lent, large, "{policy}");
    }
    let balanced = |wanted, node, ordinary| Kernel::default().balanced(wanted, node, ordinary);
    assert_eq!(balanced(10, 50, 60), 0);
    assert_eq!(balanced(100, 50, 60), 45);
    assert_eq!(balanced(100, 0, 60), 0);
    assert_eq!(balanced(100, 160, 60), 100);
    assert_eq!(balanced(100, 80, 60), 60);
    // One look for all that is wanted; what the kernel keeps counts as free.
    let one = Kernel { looks: Looks::BeforeRequests, kept_node: PAGE, ..Kernel::default() };
    assert_eq!(one.balanced(40, 60, 60), 40);
    assert_eq!(one.balanced(40, 50, 60), 0);
    assert_eq!(one.balanced(100, 50, 60), 40);
}

#[test]
fn a_vm_for_which_there_is_no_tag_storage_lacks_it() {
    let spec = HostSpec {
        ordinary: Bytes::mib(32),
        tags: Bytes::kib(128),
        block: PAGE,
        policy: LendPolicy::Never,
        kernel: Kernel::default(),
    };
    let mut host = Host::new(spec).unwrap();
    let mut vm = host.start(true).unwrap();

    assert_eq!(host.resize(&mut vm, 5).unwrap(), Lack { pages: 0, chunks: 3 });
    assert_eq!(host.check().unwrap().counters.metadata_reserve_fail, 1);
}

proptest! {
    #[test]
    fn nothing_is_lost_and_the_end_of_all_gives_all_back(
        policy in proptest::sample::select(LendPolicy::ALL.to_vec()),
        block in proptest::sample::select(vec![4u64, 16, 64, 128, 256]),
        steps in proptest::collection::vec((0usize..5, 0u64..20), 1..60),
    ) {
        let mut host = host(policy, Bytes::kib(block));
        let mut vms = (0..5).map(|at| host.start(at % 2 == 0).unwrap()).collect::<Vec<_>>();
        for (vm, chunks) in steps {
            if chunks == 0 {
                let new = host.start(vm % 2 == 0).unwrap();
                host.end(std::mem::replace(&mut vms[vm], new)).unwrap();
            } else {
                host.resize(&mut vms[vm], chunks).unwrap();
            }
            host.check().unwrap();
        }
        vms.into_iter().for_each(|vm| host.end(vm).unwrap());
        let report = host.check().unwrap();
        prop_assert_eq!(host.level(), Level::default());
        prop_assert_eq!(report.blocks.free, report.blocks.total);
        let counters = report.counters;
        prop_assert_eq!(counters.metadata_reserve_success, counters.metadata_reserve_free);
    }
}

/// By hand: the pool has 256 pages of the node's 512. Borrowers fill the node, and tags push them out again.
#[test]
fn borrowers_have_what_the_pool_has_not() {
    let kernel = Kernel { beyond: Bytes::mib(1), ..Kernel::default() };
    let (ordinary, tags, policy) = (Bytes::mib(32), Bytes::mib(1), LendPolicy::Eager);
    let mut host = Host::new(HostSpec { ordinary, tags, block: PAGE, policy, kernel }).unwrap();
    let [mut borrower, mut owner] = [false, true].map(|has_mte| host.start(has_mte).unwrap());

    host.resize(&mut borrower, 1).unwrap();
    assert_eq!((host.level().lent, host.check().unwrap().blocks.lent), (512, 256));
    host.resize(&mut owner, 1).unwrap();

    let report = host.check().unwrap();
    assert_eq!((report.blocks.lent, report.blocks.reserved), (240, 16));
    assert_eq!((host.level().lent, report.counters.evictions), (496, 16));
}
