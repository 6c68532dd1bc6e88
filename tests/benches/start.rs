//! How soon a guest runs: from the VMM's exec to its guest's first instruction, to the guest's init, and to the VMM's end
//! after the guest has powered off, beside QEMU in hosts of one kind and one run. In instructions of the host, what its
//! processor is idle included: that is latency, too.
//!
//! Each way of starting is run once before, so that the host has the files in its page cache.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tesseractl::bench::{BEST_PEER, Vmm};
use testing::figures::{Entry, counted};
use testing::first_entry::Watch;
use testing::guest::Plan;
use testing::lab::{Lab, artifact, programs};
use testing::packed::{gzip, zboot};
use testing::scratch::Scratch;
use testing::snapshot::save;
use testing::template::Holder;
use testing::wait::until;
use vmm::metrics::monotonic;

use crate::peer::{self, HOST_PROGRAMS, LEAN};

const BENCH: &str = "start";
const FIRST: &str = "exec to first guest instruction";
const INIT: &str = "exec to init";
const EXIT: &str = "exec to exit";

/// What these are at most of the best peer's.
const MOST_FIRST: f64 = 0.85;
const MOST_SHARED: f64 = 0.2;
const MOST_EXIT: f64 = 0.95;

const MEMORY: &str = "256M";
const COLD: &str = "raw kernel, cold";

/// A dozen starts, of which QEMU's take most.
const LIMIT: Duration = Duration::from_secs(1500);

/// When what was reached, since the exec.
#[derive(Clone, Copy, Debug)]
struct Times {
    first: Duration,
    init: Duration,
    exit: Duration,
}

fn tessera(kernel: &Path, vcpus: u32) -> Plan {
    let plan = peer::tessera(kernel, MEMORY, &peer::words("memory")).with("--mte", "require");
    plan.with("--cpus", &vcpus.to_string())
}

fn qemu(kernel: &Path, vcpus: u32, machine: &str) -> Command {
    let properties = format!(",mte=on{machine}");
    peer::virt(&properties, kernel, &artifact("initrd.cpio"), MEMORY, vcpus, &peer::words("memory"))
}

/// Boots a guest, and has it power off as soon as its init listens.
fn boot(watch: &Watch, mut command: Command) -> Times {
    watch.renew();
    let before = monotonic();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let console = BufReader::new(child.stdout.take().unwrap());
    let mut input = child.stdin.take().unwrap();
    let mut init = None;
    for line in console.lines() {
        if line.unwrap().contains("\"ready\"") {
            init = Some(monotonic() - before);
            writeln!(input, "poweroff").unwrap();
        }
    }
    let status = child.wait().unwrap();
    let exit = monotonic() - before;
    assert!(status.success(), "{command:?} ended with {status}");
    let first = watch.first().expect("KVM has entered the guest") - before;
    Times { first, init: init.expect("the guest's init"), exit }
}

/// The second of two times.
fn twice<T>(mut measure: impl FnMut() -> T) -> T {
    measure();
    measure()
}

fn figure(name: &str, case: &str, vcpus: u32, vmm: Option<&Vmm>) -> Entry {
    let figure = counted(BENCH, name, "instructions").case(case).guest(MEMORY, vcpus);
    match vmm {
        Some(vmm) => figure.of(vmm),
        None => figure.options("--mte require"),
    }
}

fn record(case: &str, vcpus: u32, vmm: Option<&Vmm>, times: Times) {
    println!("{}: {case}, {vcpus} vCPU: {times:?}", peer::label(vmm));
    let set = |name, time: Duration, most: f64| {
        let figure = figure(name, case, vcpus, vmm);
        let figure = if vmm.is_none() { figure.at_most_of(most, BEST_PEER, None) } else { figure };
        figure.record(time.as_nanos() as f64);
    };
    set(FIRST, times.first, MOST_FIRST);
    figure(INIT, case, vcpus, vmm).record(times.init.as_nanos() as f64);
    set(EXIT, times.exit, MOST_EXIT);
}

/// From exec to the first instruction of a guest that continues.
fn resume(watch: &Watch, plan: Plan) -> Duration {
    watch.renew();
    let before = monotonic();
    let guest = plan.start();
    guest.answers();
    let first = until("the first entry", || watch.first());
    guest.stop();
    first - before
}

/// The kernel in its other forms.
fn make(folder: &Path) {
    let image = fs::read(artifact("Image")).unwrap();
    let gzip = gzip(&image);
    fs::write(folder.join("Image.gz"), &gzip).unwrap();
    fs::write(folder.join("vmlinuz"), zboot("gzip", &gzip)).unwrap();
}

/// Boots of the kernel as it is, by Tessera and by QEMU.
fn raw(watch: &Watch, peer: &Vmm, vcpus: u32) {
    let kernel = artifact("Image");
    record(COLD, vcpus, None, twice(|| boot(watch, tessera(&kernel, vcpus).command())));
    record(COLD, vcpus, Some(peer), twice(|| boot(watch, qemu(&kernel, vcpus, ""))));
}

/// QEMU's boot without what a guest needs that has no PCI device and no firmware.
fn lean(watch: &Watch) {
    let command = || qemu(&artifact("Image"), 1, LEAN);
    record(COLD, 1, Some(&peer::lean_qemu()), twice(|| boot(watch, command())));
}

/// Boots of the kernel's other forms.
fn packed(watch: &Watch, folder: &Path, peer: &Vmm) {
    let (case, kernel) = ("gzip kernel, cold", folder.join("Image.gz"));
    record(case, 1, None, twice(|| boot(watch, tessera(&kernel, 1).command())));
    record(case, 1, Some(peer), twice(|| boot(watch, qemu(&kernel, 1, ""))));
    let (case, kernel) = ("zboot kernel, cold", folder.join("vmlinuz"));
    record(case, 1, None, twice(|| boot(watch, tessera(&kernel, 1).command())));
    // QEMU 10.0 did not end within two minutes, and printed nothing.
    for name in [FIRST, INIT, EXIT] {
        figure(name, case, 1, Some(peer)).cannot("it did not boot this image");
    }
}

/// Ways that share or continue something, which QEMU does not have for guests with MTE.
fn warm(watch: &Watch, peer: &Vmm) {
    let raw = artifact("Image");
    let holder = Holder::of_boot_files(&raw, &artifact("initrd.cpio"));
    for vcpus in [1, 4] {
        let case = "raw kernel, shared boot image";
        let times = twice(|| boot(watch, holder.boots(tessera(&raw, vcpus)).command()));
        println!("tessera: {case}, {vcpus} vCPU: {times:?}");
        let first = figure(FIRST, case, vcpus, None).at_most_of(MOST_SHARED, BEST_PEER, Some(COLD));
        first.record(times.first.as_nanos() as f64);
        figure(INIT, case, vcpus, None).record(times.init.as_nanos() as f64);
        figure(EXIT, case, vcpus, None).record(times.exit.as_nanos() as f64);
        figure(FIRST, case, vcpus, Some(peer)).cannot("VMs share no boot image");
    }
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    let mut guest = tessera(&raw, 1).start();
    guest.report("ready");
    save(&guest, &folder, &["--keep-paused"]);
    guest.stop();
    let shared = Holder::start(&folder, &[]);
    for (case, plan) in [
        ("restore", Plan::restore(&folder)),
        ("lazy restore", Plan::restore(&folder).flag("--lazy")),
        ("clone", shared.plan(&folder)),
    ] {
        let first = twice(|| resume(watch, plan.clone()));
        println!("tessera: {case}: {first:?}");
        figure(FIRST, case, 1, None).record(first.as_nanos() as f64);
        figure(FIRST, case, 1, Some(peer)).cannot("a guest with MTE cannot be saved");
    }
}

fn host() -> Lab {
    let lab = Lab::new().counting_instructions().timeout(LIMIT);
    lab.file(&programs("host"), HOST_PROGRAMS)
}

// Each has a host of its own, so that several processors are used.

#[test]
fn a_guest_starts_beside_qemu() {
    host().run(|| {
        let (watch, qemu) = (Watch::start(), peer::qemu());
        raw(&watch, &qemu, 1);
        lean(&watch);
    });
}

#[test]
fn a_guest_of_four_vcpus_starts_beside_qemu() {
    host().run(|| raw(&Watch::start(), &peer::qemu(), 4));
}

#[test]
fn a_packed_kernel_starts_beside_qemu() {
    host().prepare(make).run_with(|folder| packed(&Watch::start(), folder, &peer::qemu()));
}

#[test]
fn a_guest_starts_from_what_is_shared_or_saved() {
    host().run(|| warm(&Watch::start(), &peer::qemu()));
}
