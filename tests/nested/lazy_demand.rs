//! Guests that are restored lazily or share a template, and have their tag storage reserved on demand: a chunk has its tag
//! storage first, and then its contents.

use std::fs;

use serde_json::{Value, json};
use testing::balloon;
use testing::broker::Broker;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::snapshot::{
    beat, continues, large, nothing_failed, number, power_off, save, saved, small, text, verified,
};
use testing::template::Holder;
use testing::wait::until;

use crate::reporting;
use crate::snapshots::{unloaded, waits_and_prefetched};
use crate::tag_storage::Sample;

const CHUNK: u64 = 2 << 20;

fn tag_storage(guest: &Guest) -> Value {
    guest.client().get("/tag-storage").unwrap()
}

/// How many bytes of guest memory have tag storage.
fn reserved(guest: &Guest) -> u64 {
    number(&tag_storage(guest), "reserved_bytes") * 32
}

#[test]
#[ignore = "long"]
fn memory_is_reserved_for_when_it_is_touched_and_loaded_then() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let [one, two] = ["one", "two"].map(|name| scratch.join(name));
        let mut guest = large().with("--cpus", "4").with("--tag-storage", "demand").start();
        let ready = guest.report("ready");
        let before = verified(&mut guest);
        let held = reserved(&guest);
        save(&guest, &one, &["--keep-paused"]);
        guest.stop();

        let mut guest = Plan::restore(&one).flag("--lazy").flag("--paused").start();
        guest.answers();
        let (all, first) = (unloaded(&guest), reserved(&guest));
        // What is not loaded has none.
        assert!(all > 64 << 20 && all + first <= held + CHUNK, "{all} {first} {held}");
        guest.client().resume().unwrap();
        beat(&mut guest);
        let (some, after) = (unloaded(&guest), reserved(&guest));
        println!("of {all} bytes {first} reserved for when restored, {after} after a beat, {some} unloaded");
        assert!(some < all && some > 32 << 20 && after < held, "{some} {after} {held}");
        Sample::of(&guest, "after a beat");
        // What is given back before it is loaded needs none.
        balloon::resize(&guest, 64);
        Sample::of(&guest, "with a balloon");
        continues(&ready, &before, &verified(&mut guest));
        let sample = Sample::of(&guest, "after a look at all");
        assert!(sample.in_huge_pages() > 32 << 20 || !has_huge_pages(), "{sample:?}");
        balloon::resize(&guest, 0);
        continues(&ready, &before, &verified(&mut guest));
        assert!(unloaded(&guest) > 0);
        // A save loads the rest, which needs tag storage then.
        save(&guest, &two, &[]);
        assert_eq!(unloaded(&guest), 0);
        continues(&ready, &before, &verified(&mut guest));
        Sample::of(&guest, "after a save");
        let told = tag_storage(&guest);
        assert_eq!((&told["exhausted"], number(&told["counters"], "filled_total")), (&json!(false), 0));
        guest.stop();

        let lazy = || Plan::restore(&two).flag("--lazy");
        let mut guest = lazy().flag("--record-working-set").start();
        beat(&mut guest);
        guest.stop();
        let recorded = (fs::metadata(two.join("memory.working-set")).unwrap().len() - 36) / 4;
        let mut guest = lazy().flag("--paused").start();
        guest.answers();
        until("the recorded chunks", || (waits_and_prefetched(&guest).1 == recorded).then_some(()));
        let sample = Sample::of_paused(&guest, "with a working set");
        assert!(sample.bytes_reserved() >= recorded * CHUNK, "{sample:?} {recorded}");
        guest.client().resume().unwrap();
        continues(&ready, &before, &verified(&mut guest));
        println!("{} waits after {recorded} chunks were known", waits_and_prefetched(&guest).0);
        power_off(guest);
    });
}

fn has_huge_pages() -> bool {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    !fs::read_to_string(path).unwrap().contains("[never]")
}

/// The tag storage of 32 chunks, beside what the other VM has.
const LEFT: u64 = 2 << 20;

#[test]
#[ignore = "long"]
fn a_guest_waits_for_tag_storage_while_it_is_loaded_and_goes_on() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let (ready, before) = saved(large().with("--cpus", "2"), &folder);
        let other = 8 << 20;
        let broker = Broker::start(&["--capacity", &format!("{}K", (LEFT + other) >> 10)]);
        let idle = Plan::workload("idle").with("--memory", "256M").with("--mte", "require");
        let idle = idle.with("--id", "other").with("--broker", broker.socket());
        let idle = idle.with("--tag-storage", "strict").start();
        idle.answers();

        let restored = Plan::restore(&folder).flag("--lazy").with("--broker", broker.socket());
        let restored = restored.with("--tag-storage", "demand").with("--id", "lazy");
        let mut guest = restored.with("--on-exhausted", "wait,deadline=1").start();
        beat(&mut guest);
        guest.type_line("verify");
        let told = until("a touch that has waited too long", || {
            let told = tag_storage(&guest);
            (told["expired"] == true).then_some(told)
        });
        assert_eq!(told["reserved_bytes"], LEFT, "{told}");
        let left = unloaded(&guest);
        assert!(left > 0);
        // It can be paused, and not be saved: that would take what there is not.
        guest.client().pause().unwrap();
        Sample::of_paused(&guest, "exhausted");
        let nowhere = scratch.join("two");
        let refused = guest.tesseractl(&["snapshot", text(&nowhere)]).output().unwrap();
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && words.contains("tag storage"), "{words}");
        assert!(!nowhere.exists() && unloaded(&guest) == left);
        guest.client().resume().unwrap();

        idle.stop();

        let report = guest.report("verified");
        assert_eq!(report["ok"], true, "{report}");
        continues(&ready, &before, &report);
        let sample = Sample::of(&guest, "relieved");
        assert!(sample.bytes_reserved() > LEFT * 32 && tag_storage(&guest)["exhausted"] == false);
        save(&guest, &nowhere, &[]);
        assert_eq!(unloaded(&guest), 0);
        continues(&ready, &before, &verified(&mut guest));
        power_off(guest);
        broker.wait("all leases to end", |report| report.pool.leases.is_empty());
    });
}

/// A clone has tag storage for what it shares, whole chunks, and for the rest as any VM on demand.
#[test]
#[ignore = "long"]
fn a_clone_on_demand_is_reserved_for_what_it_shares() {
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let (ready, before) =
            saved(small().with("--cpus", "2").with("--tag-storage", "demand"), &folder);
        let holder = Holder::start(&folder, &[]);

        let mut clone = holder.plan(&folder).flag("--paused").start();
        clone.answers();
        let sample = Sample::of_paused(&clone, "a clone that has not run");
        let template = number(&clone.client().metrics().unwrap()["snapshot"], "template_bytes");
        assert!(sample.bytes_reserved() >= template && sample.bytes_reserved() < 128 << 20);
        clone.client().resume().unwrap();
        continues(&ready, &before, &verified(&mut clone));
        Sample::of(&clone, "after a look at all");
        for _ in 0..2 {
            balloon::resize(&clone, 64);
            continues(&ready, &before, &verified(&mut clone));
            Sample::of(&clone, "with a balloon");
            balloon::resize(&clone, 0);
            continues(&ready, &before, &verified(&mut clone));
        }
        nothing_failed(&clone);
        power_off(clone);

        let short = holder.plan(&folder).with("--tag-max", "256K").run();
        assert_eq!(short.code, Some(69), "{short:?}");
        assert!(short.messages.contains("template"), "{short:?}");
    });
}

#[test]
#[ignore = "long"]
fn what_a_clone_on_demand_frees_has_no_tag_storage_any_more() {
    const TOUCH: u64 = 200;
    Lab::new().as_root().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = reporting::start(reporting::plan(512).with("--tag-storage", "demand"));
        guest.order(&format!("touch {TOUCH}"), "touched");
        save(&guest, &folder, &["--keep-paused"]);
        guest.stop();
        let holder = Holder::start(&folder, &[]);
        let mut clone = holder.plan(&folder).start();
        clone.answers();
        let all = Sample::of(&clone, "a clone").bytes_reserved();
        assert!(all > TOUCH << 20, "{all}");

        for _ in 0..2 {
            assert_eq!(clone.order("free", "freed")["wrong"], 0);
            until("tag storage that goes", || {
                (reserved(&clone) + ((TOUCH * 3 / 4) << 20) < all).then_some(())
            });
            Sample::of(&clone, "freed");
            clone.order(&format!("touch {TOUCH}"), "touched");
            assert!(Sample::of(&clone, "touched again").bytes_reserved() > TOUCH << 20);
        }
        nothing_failed(&clone);
        clone.stop();
    });
}
