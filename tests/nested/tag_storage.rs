//! Tag storage of one VM, with a pool of its own: reserved at once or on demand, and exhausted.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tesseractl::client::Client;
use testing::footprint::{Curve, measured, mib};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::{Pages, pages, tagged_ram};
use testing::tag_samples::never_above_reserved;
use testing::wait::until;

use crate::reporting::{plan, start};

const CHUNK: u64 = 2 << 20;
/// The tags of a chunk.
const TAGS: u64 = CHUNK / 32;

fn tag_storage(client: &mut Client) -> Value {
    client.get("/tag-storage").unwrap()
}

/// Tag storage at one moment, in chunks, and what the host's kernel counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    reserved: u64,
    /// Reserved for, and not touched.
    ahead: u64,
    /// Bytes that are resident, by the VMM's count.
    resident: u64,
    pages: Pages,
}

impl Sample {
    /// Looks while the guest stands still. Its memory may go back meanwhile, but none comes.
    pub(crate) fn of(guest: &Guest, what: &str) -> Self {
        let mut client = guest.client();
        client.pause().unwrap();
        let sample = Self::of_paused(guest, what);
        client.resume().unwrap();
        sample
    }

    /// Looks at a guest that is paused.
    pub(crate) fn of_paused(guest: &Guest, what: &str) -> Self {
        let mut client = guest.client();
        // A chunk may be on its way from one state to another still.
        let told = until("chunks that are populated or ahead, as many as are reserved for", || {
            let told = tag_storage(&mut client);
            let chunks = |name: &str| told["chunks"][name].as_u64().unwrap();
            let reserved = told["reserved_bytes"].as_u64().unwrap() / TAGS;
            (chunks("populated") + chunks("ahead") == reserved).then_some(told)
        });
        let mut count = Pages::default();
        for piece in tagged_ram(guest.pid()) {
            count += pages(guest.pid(), &piece);
        }
        let footprint = measured(&mut client);
        let reserved = told["reserved_bytes"].as_u64().unwrap() / TAGS;
        let chunks = |name: &str| told["chunks"][name].as_u64().unwrap();
        let ahead = chunks("ahead");
        let resident = footprint["resident_bytes"].as_u64().unwrap();
        let sample = Self { reserved, ahead, resident, pages: count };
        assert!(sample.tagged() <= reserved * CHUNK, "{what}: {sample:?} {told}");
        println!(
            "{what}: {} of {} chunks populated, {ahead} ahead, {:.2} MiB of tag storage reserved ({}); \
             {:.1} MiB resident, {:.1} MiB tagged (kpageflags), {:.1} MiB in huge pages",
            reserved - ahead,
            told["chunks"]["total"],
            mib(reserved * TAGS),
            told["supply"].as_str().unwrap(),
            mib(resident),
            mib(sample.tagged()),
            mib(count.huge * page()),
        );
        sample
    }

    /// The memory that tag storage is reserved for.
    pub(crate) fn bytes_reserved(&self) -> u64 {
        self.reserved * CHUNK
    }

    /// The memory in huge pages.
    pub(crate) fn in_huge_pages(&self) -> u64 {
        self.pages.huge * page()
    }

    fn tagged(&self) -> u64 {
        self.pages.tagged * page()
    }

    /// Each reserved chunk that is touched is one huge page, all of it tagged, and the others have none.
    fn is_exact(&self, what: &str) -> Self {
        assert_eq!(self.tagged(), (self.reserved - self.ahead) * CHUNK, "{what}: {self:?}");
        assert_eq!(self.pages.huge, self.pages.present, "{what}: {self:?}");
        *self
    }
}

fn page() -> u64 {
    rustix::param::page_size() as u64
}

#[test]
fn a_guest_on_demand_holds_what_it_touches_and_gives_it_back() {
    Lab::new().as_root().run(|| {
        let mut guest = start(plan(1024).with("--tag-storage", "demand"));
        let resident = Curve::until_still(&guest).last();
        let idle = Sample::of(&guest, "idle").is_exact("idle");
        assert!(idle.reserved < 100, "{idle:?}");
        assert_eq!(idle.resident, (idle.reserved - idle.ahead) * CHUNK);

        guest.type_line("touch 768");
        for number in 1..4 {
            Sample::of(&guest, &format!("touching, look {number}"));
        }
        guest.report("touched");
        let touched = Sample::of(&guest, "768 MiB touched").is_exact("touched");
        assert!(touched.reserved >= 384, "{touched:?}");

        guest.type_line("free");
        for number in 1..4 {
            Sample::of(&guest, &format!("freeing, look {number}"));
        }
        assert_eq!(guest.report("freed")["wrong"], 0);
        let aim = resident + resident / 20;
        Curve::record(&guest, "memory to go back", |curve| curve.last() <= aim);
        let most = idle.reserved + idle.reserved / 10 + 2;
        until("the lease to shrink", || {
            let told = tag_storage(&mut guest.client());
            (told["reserved_bytes"].as_u64().unwrap() / TAGS <= most).then_some(())
        });
        let freed = Sample::of(&guest, "freed");
        assert!(freed.reserved <= most, "{idle:?} {freed:?}");

        let told = tag_storage(&mut guest.client());
        println!("counters: {}", told["counters"]);
        let count = |name: &str| told["counters"][name].as_u64().unwrap();
        let live = count("metadata_reserve_success_total") - count("metadata_reserve_free_total");
        let chunks = |name: &str| told["chunks"][name].as_u64().unwrap();
        assert_eq!(chunks("populated") + chunks("ahead"), live, "{told}");
        assert_eq!((count("filled_total"), count("exhausted_total")), (0, 0), "{told}");
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn small_pages_and_a_memfd_are_reserved_for_on_demand_too() {
    Lab::new().as_root().run(|| {
        let mut guest =
            start(plan(512).with("--tag-storage", "demand").with("--memory-backing", "memfd"));
        let idle = Curve::until_still(&guest).last();
        let reserved = |guest: &Guest| {
            tag_storage(&mut guest.client())["reserved_bytes"].as_u64().unwrap() / TAGS * CHUNK
        };
        assert!(idle <= reserved(&guest) && reserved(&guest) < 200 << 20, "{idle}");
        guest.order("touch 200", "touched");
        assert!(reserved(&guest) >= 200 << 20);
        assert_eq!(guest.order("free", "freed")["wrong"], 0);
        let aim = idle + idle / 20 + CHUNK;
        Curve::record(&guest, "memory to go back", |curve| curve.last() <= aim);
        let left = until("the lease to shrink", || {
            let left = reserved(&guest);
            (left <= aim + (8 << 20)).then_some(left)
        });
        println!("a memfd: {:.1} MiB idle, {:.1} MiB reserved for after all", mib(idle), mib(left));
        guest.stop();
    });
}

/// Runs to the refusal, and checks its status and that its message has these words.
fn refused(plan: &Plan, status: i32, words: &[&str]) {
    let output = plan.command().stdin(Stdio::null()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{message}");
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
    println!("{}", message.trim_end());
}

#[test]
fn a_vm_that_cannot_have_its_tag_storage_is_refused() {
    Lab::new().as_root().run(|| {
        let strict = plan(1024).with("--tag-storage", "strict").with("--id", "vm7");
        let small = strict.clone().with("--tag-max", "16M");
        refused(&small, 69, &["'vm7'", "32 MiB", "16 MiB", "ledger"]);
        // The host's own pool is for 4 GiB.
        let large = plan(6 << 10).with("--tag-storage", "strict").with("--id", "vm8");
        refused(&large, 69, &["'vm8'", "192 MiB", "free", "ledger"]);
        let demand = plan(1024).with("--tag-storage", "demand").with("--id", "vm9");
        let tiny = demand.clone().with("--tag-max", "128K");
        refused(&tiny, 69, &["'vm9'", "128 KiB", "ledger", "loaded"]);
        let aside = demand.clone().with("--tag-min", "1G");
        refused(&aside, 69, &["'vm9'", "exhausted", "ledger"]);
        refused(&demand.flag("--lock-memory"), 78, &["--tag-storage strict", "--lock-memory"]);
        let idle = || Plan::workload("idle");
        let without = idle().with("--tag-storage", "strict").with("--mte", "off");
        refused(&without, 78, &["--mte off"]);
        refused(&idle().with("--tag-max", "1M"), 78, &["--tag-storage"]);

        let mut guest = start(strict);
        let told = tag_storage(&mut guest.client());
        assert_eq!(told["reserved_bytes"], 32 << 20, "{told}");
        guest.order("touch 300", "touched");
        guest.order("free", "freed");
        Curve::until_still(&guest);
        let told = tag_storage(&mut guest.client());
        assert_eq!(told["reserved_bytes"], 32 << 20, "{told}");
        guest.stop();
    });
}

/// A guest of 512 MiB that can have tag storage for half of it.
fn short(on_exhausted: &str) -> Plan {
    plan(512)
        .with("--tag-storage", "demand")
        .with("--tag-max", "8M")
        .with("--on-exhausted", on_exhausted)
}

/// Waits until a guest has waited too long.
fn expired(client: &mut Client) -> Value {
    until("a touch that has waited too long", || {
        let told = tag_storage(client);
        (told["expired"] == true).then_some(told)
    })
}

#[test]
#[ignore = "long"]
fn a_guest_that_may_wait_goes_on_waiting_and_can_be_paused_and_ended() {
    Lab::new().as_root().run(|| {
        let mut guest = start(short("wait,deadline=1"));
        let mut client = guest.client();
        guest.type_line("touch 400");
        let told = expired(&mut client);
        assert_eq!(told["reserved_bytes"], 8 << 20, "{told}");
        assert_eq!(told["exhausted"], true);
        assert!(told["reason"].as_str().unwrap().contains("--tag-max"), "{told}");
        assert_eq!(client.instance().unwrap().state.as_str(), "Running");

        client.pause().unwrap();
        assert_eq!(client.instance().unwrap().state.as_str(), "Paused");
        client.resume().unwrap();
        assert_eq!(client.instance().unwrap().state.as_str(), "Running");
        let shown = guest.tesseractl(&["tag-storage"]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        println!("{shown}");
        assert!(shown.contains("8 MiB (ledger)") && shown.contains("--tag-max"), "{shown}");
        client.stop().unwrap();
        let finished = guest.finish();
        assert_eq!(finished.code, Some(12), "{finished:#?}");
        for words in ["waits for tag storage", "keeps waiting"] {
            assert!(finished.messages.contains(words), "{words}: {finished:#?}");
        }
    });
}

#[test]
#[ignore = "long"]
fn a_guest_that_is_paused_says_why() {
    Lab::new().as_root().run(|| {
        for cpus in ["1", "2"] {
            let mut guest = start(short("pause,deadline=1").with("--cpus", cpus));
            let mut client = guest.client();
            guest.type_line("touch 400");
            let instance = until("the pause", || {
                let instance = client.instance().unwrap();
                instance.pause_reason.is_some().then_some(instance)
            });
            assert_eq!(instance.state.as_str(), "Paused");
            assert!(instance.pause_reason.unwrap().contains("--tag-max"));
            assert!(client.resume().unwrap_err().to_string().contains("by itself"));
            client.stop().unwrap();
            let finished = guest.finish();
            assert_eq!(finished.code, Some(12), "{finished:#?}");
            assert!(finished.messages.contains("is paused until"), "{finished:#?}");
        }
    });
}

#[test]
#[ignore = "long"]
fn a_guest_that_is_to_be_killed_ends_with_a_status_of_its_own() {
    Lab::new().as_root().run(|| {
        for deadline in [0, 1] {
            let mut guest = start(short(&format!("kill,deadline={deadline}")).with("--cpus", "2"));
            guest.type_line("touch 400");
            let finished = guest.finish();
            assert_eq!(finished.code, Some(14), "{finished:#?}");
            for word in ["--on-exhausted kill", "8 MiB", "--tag-max"] {
                assert!(finished.messages.contains(word), "{word}: {finished:#?}");
            }
            println!("{}", finished.messages.trim_end());
        }
    });
}

#[test]
#[ignore = "long"]
fn the_kernels_tagged_pages_are_at_no_sample_more_than_is_reserved_for() {
    Lab::new().as_root().run(|| never_above_reserved(300, Duration::from_millis(30)));
}
