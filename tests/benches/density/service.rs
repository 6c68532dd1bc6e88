//! The same with guests that work: each has a server, Redis, and a client of it. In turn they are given data and asked for
//! it, and have it deleted again, so that a few have data at any time. All memory that they free is reported.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::Value;
use tesseractl::bench::{BEST_PEER, Vmm};
use testing::figures::{Entry, counted};
use testing::guest::{Guest, Plan};
use testing::lab::{Lab, artifact, programs};
use testing::memory::oom_kills;
use testing::scratch::Scratch;
use testing::template::Holder;

use super::{
    CLONES, LIMIT, MEMORY, RESERVE, SETTLED, SHARED, available, booted, clone_of, figure,
    save_idle, set,
};
use crate::peer::{self, HOST_PROGRAMS, LEAN, busy};

/// The host, of which programs and the guests' files take half.
const HOST: &str = "1280M";

/// Where the server is on the host, and its guests' first program.
const SERVICE: &str = "/peers/service";
const INIT: &str = include_str!("init.sh");

/// So many guests have data at once.
const LOADED: usize = 2;

/// Bytes of data that a server has then at least.
const DATA: u64 = 24 << 20;

/// So many guests at most: each works twice.
const MOST: usize = 24;

/// The lab's initramfs, and the server.
fn initrd(scratch: &Scratch) -> PathBuf {
    peer::initrd(scratch, &["initrd.cpio"], (SERVICE, "service"), |service| {
        fs::write(service.join("init"), INIT).unwrap();
        // Debian has the server under the name of what checks its files: one program, which is what it is called.
        fs::rename(service.join("redis-check-rdb"), service.join("redis-server")).unwrap();
    })
}

fn words() -> String {
    format!("{} rdinit=/service/init", peer::words("service"))
}

fn tessera(initrd: &Path) -> Plan {
    let plan = peer::tessera(&artifact("Image"), MEMORY, &words()).initrd(initrd);
    plan.with("--mte", "require")
}

fn qemu(initrd: &Path, lean: bool) -> Command {
    let properties = format!(",mte=on{}", if lean { LEAN } else { "" });
    let kernel = artifact("Image");
    super::reporting(peer::virt(&properties, &kernel, initrd, MEMORY, 1, &words()))
}

/// Guests, of which the last that were given data have it.
struct Guests<G> {
    all: Vec<G>,
    /// Types a guest a command, and returns its report.
    order: fn(&mut G, &str, &str) -> Value,
    loaded: VecDeque<usize>,
}

impl<G> Guests<G> {
    /// Gives one data and asks for it, and has the one before the last delete its own. Returns how many requests were
    /// answered.
    fn work(&mut self, index: usize) -> u64 {
        let before = if self.loaded.len() == LOADED { self.loaded.pop_front() } else { None };
        let cleared = before.map(|before| self.order(before, "clear", "cleared"));
        let loaded = self.order(index, "load", "loaded");
        self.loaded.push_back(index);
        let [data, requests] = ["data", "requests"].map(|name| loaded[name].as_u64().unwrap());
        assert!(data >= DATA, "{loaded}");
        requests + cleared.map_or(0, |told| told["requests"].as_u64().unwrap())
    }

    fn order(&mut self, index: usize, command: &str, event: &str) -> Value {
        (self.order)(&mut self.all[index], command, event)
    }
}

/// What guests that work take.
#[derive(Clone, Copy, Debug)]
struct Taken {
    guests: usize,
    /// MiB of the host for each: when least was available, and in the mean.
    most: f64,
    mean: f64,
    /// Thousands of the host's instructions for a request.
    cost: f64,
}

/// Starts guests, each of which works, until the host is full or there are [`MOST`]; then all work once more, while the
/// host's memory is looked at. `before` is what was available before anything that they share.
fn fill<G>(before: f64, start: impl Fn() -> G, order: fn(&mut G, &str, &str) -> Value) -> Taken {
    let kills = oom_kills();
    let mut guests = Guests { all: Vec::new(), order, loaded: VecDeque::new() };
    while guests.all.len() < MOST && available() >= RESERVE {
        guests.all.push(start());
        guests.work(guests.all.len() - 1);
        thread::sleep(SETTLED);
    }
    let count = guests.all.len();
    let (mut requests, mut instructions, mut looks) = (0, 0, Vec::new());
    for index in 0..count {
        let began = busy();
        requests += guests.work(index);
        instructions += busy() - began;
        looks.push(before - available());
        thread::sleep(SETTLED);
        looks.push(before - available());
    }
    assert_eq!(oom_kills(), kills, "the host had too little memory for {count} guests");
    let each = |taken: f64| taken / count as f64;
    let most = each(looks.iter().copied().fold(0.0, f64::max));
    let mean = each(looks.iter().sum::<f64>() / looks.len() as f64);
    let cost = instructions as f64 / 1e3 / requests as f64;
    Taken { guests: count, most, mean, cost }
}

fn record(how: &str, vmm: Option<&Vmm>, taken: Taken, aim: impl FnOnce(Entry) -> Entry) {
    println!(
        "{}, {how}: {} guests, {:.1} MiB of the host for each at most, {:.1} in the mean, {:.1} guests a GiB, {:.1} thousand \
         instructions a request",
        peer::label(vmm),
        taken.guests,
        taken.most,
        taken.mean,
        1024.0 / taken.most,
        taken.cost
    );
    aim(density(how, vmm)).record(1024.0 / taken.most);
    figure("memory of the host for a guest that works, mean", "MiB", how, vmm).record(taken.mean);
    let cost = counted(super::BENCH, "request to a guest's server", "thousand instructions");
    set(cost, how, vmm).record(taken.cost);
}

fn density(how: &str, vmm: Option<&Vmm>) -> Entry {
    figure("guests that work, a GiB", "guests", how, vmm).more_is_better()
}

fn boots() {
    let scratch = Scratch::new();
    let initrd = initrd(&scratch);
    let taken = fill(available(), || booted(tessera(&initrd)), Guest::order);
    record("cold", None, taken, |figure| figure);

    let before = available();
    let holder = Holder::of_boot_files(&artifact("Image"), &initrd);
    let taken = fill(before, || booted(holder.boots(tessera(&initrd))), Guest::order);
    drop(holder);
    let aim = |figure: Entry| figure.at_least_of(SHARED, BEST_PEER, Some("cold"));
    record("shared boot image", None, taken, aim);

    for (lean, vmm) in [(false, peer::qemu()), (true, peer::lean_qemu())] {
        let start = || peer::Guest::start(qemu(&initrd, lean));
        let taken = fill(available(), start, peer::Guest::order);
        record("cold", Some(&vmm), taken, |figure| figure);
        density("shared boot image", Some(&vmm)).cannot("VMs share no boot image");
        density("clones", Some(&vmm)).cannot("VMs share no memory");
    }
}

/// Clones of a guest whose server waits.
fn clones() {
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    save_idle(booted(tessera(&initrd(&scratch))), &folder);
    let before = available();
    let holder = Holder::start(&folder, &[]);
    let taken = fill(before, || clone_of(&holder, &folder), Guest::order);
    let aim = |figure: Entry| figure.at_least_of(CLONES, BEST_PEER, Some("cold"));
    record("clones", None, taken, aim);
}

fn host() -> Lab {
    let lab = Lab::new().counting_instructions().memory(HOST).timeout(LIMIT);
    lab.file(&programs("host"), HOST_PROGRAMS).file(&programs("service"), SERVICE)
}

#[test]
#[ignore = "long"]
fn boots_that_serve() {
    host().run(boots);
}

#[test]
#[ignore = "long"]
fn clones_that_serve() {
    host().run(clones);
}
