//! Guests that are saved and restored, often.

use std::env;
use std::path::Path;
use std::time::Duration;

use testing::guest::Plan;
use testing::lab::Lab;
use testing::snapshot::{Flips, Rounds, cycles, flipped, kills, large, moments_of_a_boot, plan};

const LIMIT: Duration = Duration::from_secs(3600);

/// For how long rounds of kills are made, instead of a number of them.
const TIME: &str = "TESSERA_SOAK_TIME";

/// A kernel with pages of 16 KiB.
const KERNEL_16K: &str = "linux-image-arm64-16k";

fn soak<F: FnOnce()>(body: F) {
    Lab::new().timeout(LIMIT).emulated().run(body);
}

#[test]
fn twenty_saves_and_restores_in_a_row() {
    soak(|| cycles(large().with("--cpus", "4"), 20));
}

#[test]
fn saves_at_twenty_moments_of_a_whole_boot() {
    soak(|| {
        let plan = Plan::whole("snapshot,4").with("--memory", "192M").with("--cpus", "2");
        let early = moments_of_a_boot(&plan.with("--mte", "require"), 20);
        println!("{early} of 20 moments were before init");
        assert!(early > 1, "{early}");
    });
}

#[test]
fn a_hundred_rounds_of_kills() {
    Lab::new().timeout(LIMIT).emulated().with_variable(TIME).run(|| {
        kills(match env::var(TIME) {
            Ok(time) => Rounds::For(humantime::parse_duration(&time).unwrap()),
            Err(_) => Rounds::Count(100),
        });
    });
}

#[test]
fn each_bit_of_the_headers_and_two_thousand_others() {
    soak(|| flipped(Flips { one_of: 1, others: 1000, seed: 2000 }));
}

/// The other guests of tests have pages of 4 KiB. The modules of its initramfs are of another kernel, and it needs none.
fn guests_with_pages_of_16_kib() {
    let plan = plan(16, "192M").kernel(Path::new("/guest-16k")).with("--cpus", "2");
    cycles(plan, 4);
}

#[test]
fn a_guest_with_pages_of_16_kib_on_a_host_with_pages_of_4_kib() {
    let lab = Lab::new().timeout(LIMIT).guest_kernel_package(KERNEL_16K, "/guest-16k");
    lab.run(guests_with_pages_of_16_kib);
}

#[test]
fn a_guest_with_pages_of_16_kib_on_a_host_with_the_same() {
    let lab = Lab::new().timeout(LIMIT).guest_kernel_package(KERNEL_16K, "/guest-16k");
    lab.kernel_package(KERNEL_16K).run(guests_with_pages_of_16_kib);
}
