//! What a VM costs its host beside its guest's memory: what the VMM has of its own, while the guest has nothing to do,
//! beside QEMU in one host.
//!
//! Programs lie in an initramfs here, where every page of a file is dirty for good: text that a single process has mapped
//! is private and dirty. The address space is not randomised: where a stack begins decides on one of its pages.

use std::process::Command;
use std::thread;
use std::time::Duration;

use tesseractl::bench::{BEST_PEER, Vmm};
use testing::figures::{Entry, kept};
use testing::guest::Plan;
use testing::lab::{Lab, artifact, programs};
use testing::memory;
use testing::scratch::Scratch;
use testing::setting::Setting;

use crate::peer::{self, Guest, HOST_PROGRAMS, LEAN};

const BENCH: &str = "overhead";

/// How many VMs run at once where much is shared.
const MANY: usize = 16;

/// The most proportional memory of one of [`MANY`] VMs, as a multiple of the best peer's.
const MOST: f64 = 0.6;

/// MiB of a guest where parts are told apart.
const PARTS_MIB: u64 = 256;

/// How long a guest has done nothing: the VMM gives back what its start needed.
const IDLE: Duration = Duration::from_secs(2);

/// Fifty boots, two thirds of them QEMU's.
const LIMIT: Duration = Duration::from_secs(1500);

/// Memory of one VMM, in bytes, its guest's left out.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    anonymous: u64,
    private: u64,
    proportional: u64,
}

/// Of a VM whose guest has so many MiB. A VMM maps all of a guest's memory at once, or in parts with tags.
fn own(guest: &Guest, mib: u64) -> Own {
    let mut own = Own::default();
    let mut resident = 0;
    for mapping in memory::mappings(guest.pid()) {
        if mapping.has("mt") || mapping.size() >= mib << 20 {
            resident += mapping.resident;
            continue;
        }
        own.anonymous += mapping.anonymous;
        own.private += mapping.private_dirty;
        own.proportional += mapping.proportional;
    }
    assert!(resident > 16 << 20, "{resident} bytes of guest memory were found");
    own
}

/// The mean of several VMs.
fn mean(guests: &[Guest], mib: u64) -> Own {
    let all = guests.iter().map(|guest| own(guest, mib));
    let sum = all.fold(Own::default(), |sum, own| Own {
        anonymous: sum.anonymous + own.anonymous,
        private: sum.private + own.private,
        proportional: sum.proportional + own.proportional,
    });
    let count = guests.len() as u64;
    Own {
        anonymous: sum.anonymous / count,
        private: sum.private / count,
        proportional: sum.proportional / count,
    }
}

fn tessera(mib: u64) -> Plan {
    peer::tessera(&artifact("Image"), &format!("{mib}M"), &peer::words("idle"))
}

/// As users have it, with a balloon and its sandbox, and with a control socket.
fn usual(mib: u64, socket: &str) -> Plan {
    tessera(mib).with("--mte", "require").with("--api-sock", socket)
}

fn qemu(mib: u64, properties: &str) -> Command {
    let properties = format!(",mte=on{properties}");
    let [kernel, initrd] = ["Image", "initrd.cpio"].map(artifact);
    peer::virt(&properties, &kernel, &initrd, &format!("{mib}M"), 1, &peer::words("idle"))
}

/// So many guests, all started, all idle.
fn idle(count: usize, command: impl Fn(usize) -> Command) -> Vec<Guest> {
    let guests = (0..count).map(|number| Guest::start(command(number))).collect();
    thread::sleep(IDLE);
    guests
}

/// A VMM's label and options, and the command of each of its VMs, with guests of so many MiB.
type Kind<'a> = (Option<Vmm>, &'a dyn Fn(u64, usize) -> Command);

/// Runs something for Tessera and for each peer.
fn for_each(mut measure: impl FnMut(Option<&Vmm>, &dyn Fn(u64, usize) -> Command)) {
    let scratch = Scratch::new();
    let socket = |number| scratch.join(&format!("api{number}")).to_str().unwrap().to_owned();
    let kinds: [Kind<'_>; 3] = [
        (None, &|mib, number| usual(mib, &socket(number)).command()),
        (Some(peer::qemu()), &|mib, _| qemu(mib, "")),
        (Some(peer::lean_qemu()), &|mib, _| qemu(mib, LEAN)),
    ];
    for (vmm, command) in &kinds {
        measure(vmm.as_ref(), command);
    }
}

fn figure(name: &str, case: &str, mib: u64, vmm: Option<&Vmm>) -> Entry {
    let figure = kept(BENCH, name, "kB").case(case).guest(&format!("{mib}M"), 1);
    match vmm {
        Some(vmm) => figure.of(vmm),
        None => figure,
    }
}

fn kilobytes(bytes: u64) -> f64 {
    bytes as f64 / 1e3
}

fn show(what: &str, vmm: Option<&Vmm>, own: Own) {
    println!(
        "{}, {what}: {:.0} kB anonymous, {:.0} kB private, {:.0} kB proportional",
        peer::label(vmm),
        kilobytes(own.anonymous),
        kilobytes(own.private),
        kilobytes(own.proportional)
    );
}

fn host() -> Lab {
    let lab = Lab::new().counting_instructions().timeout(LIMIT);
    lab.file(&programs("host"), HOST_PROGRAMS)
}

fn not_randomised() -> Setting {
    Setting::new("/proc/sys/kernel/randomize_va_space", "0")
}

#[test]
fn one_vm_and_one_of_sixteen() {
    const MIB: u64 = 128;

    host().run(|| {
        let _setting = not_randomised();
        for_each(|vmm, command| {
            for (case, count) in [("1 VM", 1), ("one of 16 VMs", MANY)] {
                let own = mean(&idle(count, |number| command(MIB, number)), MIB);
                show(case, vmm, own);
                let set = |name: &str| figure(&format!("own memory, {name}"), case, MIB, vmm);
                set("anonymous").record(kilobytes(own.anonymous));
                set("private and dirty").record(kilobytes(own.private));
                let proportional = set("proportional");
                let has_aim = vmm.is_none() && count == MANY;
                let proportional = match has_aim {
                    true => proportional.at_most_of(MOST, BEST_PEER, None),
                    false => proportional,
                };
                proportional.record(kilobytes(own.proportional));
            }
        });
    });
}

#[test]
fn guests_of_several_sizes() {
    host().run(|| {
        let _setting = not_randomised();
        // Guests may have more memory than the host: an idle one touches little of it.
        let _overcommit = Setting::new("/proc/sys/vm/overcommit_memory", "1");
        for_each(|vmm, command| {
            for mib in [128, 512, 2048, 8192] {
                let case = format!("guest of {mib} MiB");
                let own = mean(&idle(1, |number| command(mib, number)), mib);
                show(&case, vmm, own);
                figure("own memory by the guest's size, anonymous", &case, mib, vmm)
                    .record(kilobytes(own.anonymous));
                figure("own memory by the guest's size, private and dirty", &case, mib, vmm)
                    .record(kilobytes(own.private));
            }
        });
    });
}

/// What a VM can do without.
const WITHOUT: [&[&str]; 4] =
    [&["--no-balloon"], &["--sandbox", "off"], &["--seccomp", "off"], &["--mte", "off"]];

/// A VM without all of that, and with one of it or of other parts: what it is called, which of it is not left out, and what
/// is added.
fn parts(scratch: &Scratch) -> Vec<(&'static str, Plan)> {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (disk, vsock, api) = (scratch.join("disk"), path("vsock"), path("api"));
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let disk = disk.to_str().unwrap();
    let with = |kept: &str, added: &[&str]| {
        let left_out = WITHOUT.iter().filter(|words| words[0] != kept);
        let words = left_out.copied().flatten().chain(added);
        words.fold(tessera(PARTS_MIB), |plan, word| plan.flag(word))
    };
    vec![
        ("none of these", with("", &[])),
        ("4 vCPUs", with("", &["--cpus", "4"])),
        ("balloon", with("--no-balloon", &[])),
        ("disk", with("", &["--disk", disk])),
        ("random numbers", with("", &["--rng"])),
        ("vsock", with("", &["--vsock", &vsock])),
        ("control API", with("", &["--api-sock", &api])),
        ("sandbox", with("--sandbox", &[])),
        ("filters of system calls", with("--seccomp", &[])),
        ("MTE", with("--mte", &["--mte", "require"])),
        (
            "MTE, tag storage on demand",
            with("--mte", &["--mte", "require", "--tag-storage", "demand"]),
        ),
    ]
}

#[test]
fn what_each_part_adds() {
    Lab::new().counting_instructions().timeout(LIMIT).run(|| {
        let _setting = not_randomised();
        let scratch = Scratch::new();
        for (case, plan) in parts(&scratch) {
            let own = mean(&idle(1, |_| plan.command()), PARTS_MIB);
            show(case, None, own);
            let vcpus = if case == "4 vCPUs" { 4 } else { 1 };
            let memory = format!("{PARTS_MIB}M");
            let set = |name: &str| kept(BENCH, name, "kB").case(case).guest(&memory, vcpus);
            set("a VM with one part, anonymous").record(kilobytes(own.anonymous));
            set("a VM with one part, private and dirty").record(kilobytes(own.private));
        }
    });
}
