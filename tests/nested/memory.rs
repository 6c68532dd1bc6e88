//! Guest RAM as the host's kernel sees it.

use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::{Mapping, Pages, guest_ram, pages};

const SIZE: u64 = 256 << 20;
/// What the guest touches, in MiB.
const TOUCHED: u64 = 96;

fn touch(mte: &str) -> (Guest, Mapping, Pages) {
    let plan = Plan::workload(&format!("touch,{TOUCHED}")).with("--memory", "256M");
    // Memory that goes back in parts of huge pages is not what is looked at here.
    let mut guest = plan.with("--mte", mte).with("--balloon", "reporting=off").start();
    assert_eq!(guest.report("touched")["ok"], true);
    // Out of the guest, so that both counts are of the same moment.
    guest.client().pause().unwrap();
    let ram = guest_ram(guest.pid(), SIZE);
    let count = pages(guest.pid(), &ram);
    (guest, ram, count)
}

#[test]
fn guest_ram_has_tags_and_huge_pages_and_every_touched_page_is_tagged() {
    Lab::new().as_root().run(|| {
        let (guest, ram, count) = touch("require");

        for flag in ["mt", "hg", "dd"] {
            assert!(ram.has(flag), "{flag}: {ram:?}");
        }
        assert_eq!(ram.addresses.start % (2 << 20), 0, "{ram:x?}");
        assert!(ram.resident >= TOUCHED << 20, "{ram:?}");
        // The kernel and its own memory beside it: some 55 MiB. The rest is unused.
        assert!(ram.resident < (TOUCHED + 90) << 20, "{ram:?}");
        assert_eq!(ram.huge, ram.resident, "{ram:?}");
        let page = rustix::param::page_size() as u64;
        assert_eq!(count.present * page, ram.resident, "{count:?} {ram:?}");
        assert_eq!(count.tagged, count.present, "{count:?}");
        println!(
            "guest RAM of 256 MiB: {} pages present, {} tagged (kpageflags), {} in huge pages",
            count.present, count.tagged, count.huge
        );
        guest.client().stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}

#[test]
fn without_mte_no_page_is_tagged() {
    Lab::new().as_root().run(|| {
        let (guest, ram, count) = touch("off");

        assert!(!ram.has("mt"), "{ram:?}");
        assert_eq!(count.tagged, 0, "{count:?}");
        assert!(count.present > 0);
        guest.client().stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}
