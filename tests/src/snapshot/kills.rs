//! VMs that are killed while they save and are restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use super::{continues, power_off, restore, save, small, text, verified};
use crate::broker::Broker;
use crate::dice::Dice;
use crate::guest::{Guest, Plan};
use crate::process::processes;
use crate::scratch::Scratch;
use crate::wait::until;

/// Within this time a VM has been restored and saved in the emulated host, or not quite.
const A_WHILE: Duration = Duration::from_millis(1500);
/// Files that the kernel has not closed yet, or counts in batches.
const FILES: u64 = 64;
const SOCKETS: u64 = 2;
/// KiB of shared memory that processors have aside.
const SHARED: u64 = 1 << 10;

/// What processes have of a host.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Usage {
    /// Processes of the VMM but the broker.
    vms: Vec<u32>,
    /// In the folder of the snapshots.
    names: Vec<String>,
    leases: usize,
    reserved: u64,
    files: u64,
    sockets: u64,
    /// Of shared memory, in KiB: memory files that nothing has open any more are gone from it.
    shared: u64,
}

struct Place {
    scratch: Scratch,
    broker: Broker,
    dice: Dice,
}

impl Place {
    fn usage(&self) -> Usage {
        let report = self.broker.report();
        let vms = processes("tessera").into_iter().filter(|pid| *pid != self.broker.pid());
        Usage {
            vms: vms.collect(),
            names: self.scratch.names(),
            leases: report.pool.leases.len(),
            reserved: report.pool.chunks.reserved.into(),
            files: first_number("/proc/sys/fs/file-nr", ""),
            sockets: first_number("/proc/net/sockstat", "sockets: used"),
            shared: first_number("/proc/meminfo", "Shmem:"),
        }
    }

    /// Waits until a host has no more than it had.
    fn is_as(&self, before: &Usage) {
        until(&format!("a host as before: {before:?}"), || {
            let now = self.usage();
            let same = (&now.vms, &now.names, now.leases, now.reserved)
                == (&before.vms, &before.names, before.leases, before.reserved);
            let no_more = now.files <= before.files + FILES
                && now.sockets <= before.sockets + SOCKETS
                && now.shared <= before.shared + SHARED;
            (same && no_more).then_some(())
        });
    }

    /// With tag storage that is reserved before the guest runs, as memory that is loaded when it is touched wants it.
    fn with_tag_storage(&self, plan: Plan) -> Plan {
        plan.with("--broker", self.broker.socket()).with("--tag-storage", "strict")
    }

    fn start(&mut self, folder: &Path) -> Guest {
        let lazy = self.dice.below(2) == 0;
        self.with_tag_storage(restore(folder, lazy)).start()
    }
}

/// Restores a guest and saves it beside another that is restored, so many times; one of both is killed at a random
/// moment, then the other. Nothing of them is left, and a new snapshot is whole or not there.
///
/// # Panics
/// When something is left.
pub fn kills(rounds: u32) {
    let broker = Broker::start(&["--supply", "ledger", "--capacity", "64M"]);
    let mut place = Place { scratch: Scratch::new(), broker, dice: Dice::new() };
    let base = place.scratch.join("base");
    let mut guest = place.with_tag_storage(small()).start();
    let ready = guest.report("ready");
    let before = verified(&mut guest);
    save(&guest, &base, &["--keep-paused"]);
    guest.stop();
    // What the broker and the file system keep is there from now on.
    power_off(place.start(&base));
    let usage = place.usage();
    assert_eq!((&usage.vms, usage.leases), (&Vec::new(), 0), "{usage:?}");
    let (mut saved, mut lost) = (0, 0);
    for round in 0..rounds {
        match round_of_kills(&mut place, &base, round == 0) {
            None => lost += 1,
            Some(new) => {
                let mut guest = place.start(&new);
                continues(&ready, &before, &verified(&mut guest));
                power_off(guest);
                fs::remove_dir_all(&new).unwrap();
                saved += 1;
            }
        }
        place.is_as(&usage);
        println!("round {round}: as before, {saved} saved and {lost} lost so far");
    }
    assert!(saved > 0);
    // The snapshot that all of them come from is as it was.
    let mut guest = place.start(&base);
    continues(&ready, &before, &verified(&mut guest));
    power_off(guest);
}

/// One round, in which the save comes to its end or is as likely cut short. The new snapshot, if it was made.
fn round_of_kills(place: &mut Place, base: &Path, ends: bool) -> Option<PathBuf> {
    let new = place.scratch.join("new");
    let one = place.start(base);
    if ends || place.dice.below(2) == 0 {
        one.is_loaded();
        std::thread::sleep(place.dice.time(A_WHILE));
    }
    let mut saving = one.tesseractl(&["snapshot", text(&new)]);
    let mut saving = saving.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let other = place.start(base);
    if ends || place.dice.below(3) == 0 {
        until("the end of the save", || saving.try_wait().unwrap());
    } else {
        std::thread::sleep(place.dice.time(A_WHILE));
    }
    let (first, second) = match place.dice.below(2) {
        0 => (&one, &other),
        _ => (&other, &one),
    };
    first.signal(Signal::KILL);
    std::thread::sleep(place.dice.time(A_WHILE / 4));
    second.signal(Signal::KILL);
    let output = saving.wait_with_output().unwrap();
    drop((one, other));
    // A VM that is killed when its snapshot is in its place cannot be resumed.
    assert!(new.exists() || !output.status.success(), "{output:?}");
    new.exists().then_some(new)
}

fn first_number(path: &str, after: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let rest = text.split_once(after).unwrap().1;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty());
    digits.unwrap().parse().unwrap()
}
