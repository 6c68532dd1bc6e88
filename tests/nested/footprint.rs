//! The footprint that the VMM tells is what the host's kernel counts.

use testing::footprint::{Curve, Footprint, mib};
use testing::guest::Guest;
use testing::lab::Lab;
use testing::memory::{guest_ram, pages};

use crate::reporting::{plan, start};

const MEMORY: u64 = 512;

/// Compares both counts of a guest that is paused meanwhile, so that they are of the same moment.
fn agrees(guest: &Guest, what: &str) -> Footprint {
    let mut client = guest.client();
    client.pause().unwrap();
    let told = Footprint::of(&mut client);
    let ram = guest_ram(guest.pid(), MEMORY << 20);
    let count = pages(guest.pid(), &ram);
    client.resume().unwrap();

    let page = rustix::param::page_size() as u64;
    assert_eq!(told.guest, MEMORY << 20, "{what}");
    assert_eq!(told.resident, ram.resident, "{what}: {ram:?}");
    assert_eq!(told.resident, count.present * page, "{what}: {count:?}");
    assert_eq!(told.tagged, Some(count.tagged * page), "{what}: {count:?}");
    println!(
        "{what}: {:.2} MiB resident, {:.2} in huge pages, {:.2} tagged",
        mib(told.resident),
        mib(told.huge),
        mib(count.tagged * page)
    );
    told
}

#[test]
#[ignore = "long"]
fn resident_and_tagged_bytes_are_the_kernels() {
    Lab::new().as_root().run(|| {
        for backing in ["anonymous", "memfd"] {
            let mut guest = start(plan(MEMORY).with("--memory-backing", backing));
            Curve::until_still(&guest);

            let idle = agrees(&guest, &format!("{backing}, idle"));
            guest.order("touch 200", "touched");
            let touched = agrees(&guest, &format!("{backing}, touched"));
            guest.order("free", "freed");
            let less = |now: &Footprint| now.resident + (150 << 20) < touched.resident;
            Footprint::wait(&guest, "memory that goes back", less);
            let freed = agrees(&guest, &format!("{backing}, freed"));

            assert!(touched.resident >= idle.resident + (190 << 20), "{idle:?} {touched:?}");
            assert!(less(&freed), "{touched:?} {freed:?}");
            // KVM takes every page that an MTE guest has touched for tagged.
            assert_eq!(touched.tagged, Some(touched.resident), "{touched:?}");
            guest.stop();
        }
    });
}
