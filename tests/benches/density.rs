//! How many idle guests of 256 MiB a host of a fixed size has room for, beside QEMU in hosts of one kind: booted each on
//! its own, from a shared boot image, and as clones of one guest.
//!
//! What a guest takes is what the host has less of once it runs: guest memory, the VMM's own, and the kernel's for both.

mod service;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tesseractl::bench::{BEST_PEER, Vmm};
use testing::figures::{Entry, kept};
use testing::footprint::mib;
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact, programs};
use testing::memory::oom_kills;
use testing::procfs::first_number;
use testing::scratch::Scratch;
use testing::snapshot::save;
use testing::template::Holder;

use crate::peer::{self, HOST_PROGRAMS, LEAN};

const BENCH: &str = "density";

/// The host, of which its initramfs takes a third.
const HOST: &str = "1G";

/// The guests.
const MEMORY: &str = "256M";

/// The host is full when less than so many MiB are available. A guest takes less, so that the kernel never has to kill one.
const RESERVE: f64 = 128.0;

/// So many guests at most: of clones, the host has room for hundreds.
const MOST: usize = 128;

/// A guest's driver reports what is free every 2 s (mm/page_reporting.c).
const SETTLED: Duration = Duration::from_secs(6);

/// Guests in the same memory, as multiples of the best peer's cold boots.
const SHARED: f64 = 2.0;
const CLONES: f64 = 4.0;

const LIMIT: Duration = Duration::from_secs(1500);

/// MiB that the host could give to a process (proc_meminfo(5)).
fn available() -> f64 {
    mib(first_number("/proc/meminfo", "MemAvailable:") << 10)
}

/// A process's proportional memory, in MiB, its guest's among it.
fn proportional(pid: u32) -> f64 {
    mib(first_number(&format!("/proc/{pid}/smaps_rollup"), "Pss:") << 10)
}

/// What guests together take.
#[derive(Clone, Copy, Debug)]
struct Taken {
    guests: usize,
    /// MiB of the host that each takes.
    each: f64,
    /// Of that, the proportional memory of its process.
    proportional: f64,
}

/// Starts guests until the host is full, or there are [`MOST`]. `before` is what was available before anything that
/// they share.
fn fill<G>(before: f64, start: impl Fn(usize) -> G, pid: impl Fn(&G) -> u32) -> (Taken, Vec<G>) {
    let kills = oom_kills();
    let mut guests = Vec::new();
    while guests.len() < MOST && available() >= RESERVE {
        guests.push(start(guests.len()));
    }
    thread::sleep(SETTLED);
    assert_eq!(oom_kills(), kills, "the host had too little memory for guest {}", guests.len());
    let count = guests.len();
    let sum: f64 = guests.iter().map(|guest| proportional(pid(guest))).sum();
    let each = (before - available()) / count as f64;
    (Taken { guests: count, each, proportional: sum / count as f64 }, guests)
}

fn tessera(mte: &str) -> Plan {
    peer::tessera(&artifact("Image"), MEMORY, &peer::words("idle")).with("--mte", mte)
}

fn booted(plan: Plan) -> Guest {
    let mut guest = plan.start();
    guest.report("ready");
    guest
}

/// With page reporting, as Tessera has it: what a guest does not use goes back to the host.
fn qemu(mte: bool, lean: bool) -> Command {
    let properties =
        format!("{}{}", if mte { ",mte=on" } else { "" }, if lean { LEAN } else { "" });
    let [kernel, initrd] = ["Image", "initrd.cpio"].map(artifact);
    reporting(peer::virt(&properties, &kernel, &initrd, MEMORY, 1, &peer::words("idle")))
}

fn reporting(mut command: Command) -> Command {
    command.args(["-device", "virtio-balloon-device,free-page-reporting=on"]);
    command
}

/// The name of a row.
fn case(how: &str, mte: bool) -> String {
    format!("{how}, {}", if mte { "MTE" } else { "without MTE" })
}

fn figure(name: &str, unit: &str, case: &str, vmm: Option<&Vmm>) -> Entry {
    set(kept(BENCH, name, unit), case, vmm)
}

fn set(figure: Entry, case: &str, vmm: Option<&Vmm>) -> Entry {
    let figure = figure.case(case).guest(MEMORY, 1);
    match vmm {
        Some(vmm) => figure.of(vmm),
        None => figure,
    }
}

fn density(case: &str, vmm: Option<&Vmm>) -> Entry {
    figure("guests a GiB", "guests", case, vmm).more_is_better()
}

fn record(case: &str, vmm: Option<&Vmm>, taken: Taken, aim: impl FnOnce(Entry) -> Entry) {
    println!(
        "{}, {case}: {} guests, {:.1} MiB of the host for each ({:.1} proportional), {:.1} guests a GiB",
        peer::label(vmm),
        taken.guests,
        taken.each,
        taken.proportional,
        1024.0 / taken.each
    );
    aim(density(case, vmm)).record(1024.0 / taken.each);
    figure("memory of the host for a guest", "MiB", case, vmm).record(taken.each);
    figure("proportional memory of a guest", "MiB", case, vmm).record(taken.proportional);
}

/// Tag storage that is reserved for a guest.
fn record_tags(case: &str, guest: &Guest) {
    let told: Value = guest.client().get("/tag-storage").unwrap();
    let figure = figure("tag storage of a guest", "MiB", case, None).supply("ledger");
    figure.record(mib(told["reserved_bytes"].as_u64().unwrap()));
}

/// Boots of Tessera's, and of QEMU's.
fn boots(mte: bool) {
    let mode = if mte { "require" } else { "off" };
    let cold = case("cold", mte);
    let (taken, guests) = fill(available(), |_| booted(tessera(mode)), Guest::pid);
    record(&cold, None, taken, |figure| figure);
    if mte {
        record_tags(&cold, &guests[0]);
    }
    drop(guests);

    let shared = case("shared boot image", mte);
    let before = available();
    let holder = Holder::of_boot_files(&artifact("Image"), &artifact("initrd.cpio"));
    let (taken, guests) = fill(before, |_| booted(holder.boots(tessera(mode))), Guest::pid);
    record(&shared, None, taken, |figure| figure.at_least_of(SHARED, BEST_PEER, Some(&cold)));
    if mte {
        record_tags(&shared, &guests[0]);
    }
    drop((guests, holder));

    for (lean, vmm) in [(false, peer::qemu()), (true, peer::lean_qemu())] {
        let start = |_| peer::Guest::start(qemu(mte, lean));
        let (taken, _) = fill(available(), start, peer::Guest::pid);
        record(&cold, Some(&vmm), taken, |figure| figure);
        density(&shared, Some(&vmm)).cannot("VMs share no boot image");
        density(&case("clones", mte), Some(&vmm)).cannot("VMs share no memory");
    }
}

/// Saves a guest and ends it, once what is free has gone back to the host.
fn save_idle(guest: Guest, folder: &Path) {
    thread::sleep(SETTLED);
    save(&guest, folder, &["--keep-paused"]);
    guest.stop();
}

/// A clone that answers.
fn clone_of(holder: &Holder, folder: &Path) -> Guest {
    let guest = holder.plan(folder).start();
    guest.answers();
    guest
}

/// Clones of a guest that is idle.
fn clones(mte: bool) {
    let (scratch, what) = (Scratch::new(), case("clones", mte));
    let folder = scratch.join("one");
    save_idle(booted(tessera(if mte { "require" } else { "off" })), &folder);
    let before = available();
    let holder = Holder::start(&folder, &[]);
    let (taken, guests) = fill(before, |_| clone_of(&holder, &folder), Guest::pid);
    let cold = case("cold", mte);
    record(&what, None, taken, |figure| figure.at_least_of(CLONES, BEST_PEER, Some(&cold)));
    if mte {
        record_tags(&what, &guests[0]);
    }
}

/// All of them have the same files.
fn host() -> Lab {
    let lab = Lab::new().counting_instructions().memory(HOST).timeout(LIMIT);
    lab.file(&programs("host"), HOST_PROGRAMS)
}

// Each has a host of its own, so that several processors are used.

#[test]
fn boots_with_mte() {
    host().run(|| boots(true));
}

#[test]
fn boots_without_mte() {
    host().run(|| boots(false));
}

#[test]
fn clones_with_mte() {
    host().run(|| clones(true));
}

#[test]
fn clones_without_mte() {
    host().run(|| clones(false));
}
