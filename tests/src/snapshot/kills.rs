//! VMs, clients and holders of templates that are killed while VMs are saved, restored and cloned.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::usage::{COLUMNS, Usage};
use super::{continues, power_off, save, small, text, verified};
use crate::broker::Broker;
use crate::dice::Dice;
use crate::guest::{Guest, Plan};
use crate::lab::program;
use crate::scratch::Scratch;
use crate::template::Holder;
use crate::wait::until;

/// Within this time a VM has been restored and saved in the emulated host, or not quite.
const A_WHILE: Duration = Duration::from_millis(1500);

/// How long rounds are made.
#[derive(Clone, Copy, Debug)]
pub enum Rounds {
    /// So many.
    Count(u32),
    /// For as long, one at least.
    For(Duration),
}

/// Where the memory of a VM comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Eager,
    Lazy,
    Clone,
}

/// What a round does.
#[derive(Debug)]
struct Round {
    /// How the VM that is saved is restored, the one beside it, and that of the new snapshot.
    ways: [Way; 3],
    /// The new snapshot is the last of so many diffs; none, and it is full.
    diffs: u32,
    /// What is killed, in this order.
    victims: Vec<Victim>,
    /// The save comes to its end first.
    ends: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Victim {
    /// The VM that is saved.
    One,
    /// The VM beside it.
    Other,
    /// What holds the template, if there is one.
    Holder,
    /// The client that has the VM saved.
    Client,
}

impl Round {
    fn new(dice: &mut Dice, number: u32) -> Self {
        let mut way = || [Way::Eager, Way::Lazy, Way::Clone][dice.below(3)];
        // The first round always has all there is to come to its end.
        let ways =
            if number == 0 { [Way::Clone, Way::Lazy, Way::Clone] } else { [way(), way(), way()] };
        let diffs = if number == 0 { 2 } else { dice.below(3) as u32 };
        let ends = number == 0 || dice.below(3) == 0;
        let mut left = vec![Victim::One, Victim::Other, Victim::Holder, Victim::Client];
        let mut victims = Vec::new();
        while !left.is_empty() {
            victims.push(left.swap_remove(dice.below(left.len())));
        }
        Self { ways, diffs, victims, ends }
    }

    /// What of it makes a row of a table.
    fn row(&self) -> String {
        let [one, other, new] = self.ways;
        let kind = ["full", "diff", "chain"][self.diffs as usize];
        let first = if self.ends { "end".to_owned() } else { self.victims[0].to_string() };
        format!("{one:5} {other:5} {kind:5} {first:6} {new:5}")
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::Clone => "clone",
        })
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::One => "one",
            Self::Other => "other",
            Self::Holder => "holder",
            Self::Client => "client",
        })
    }
}

/// What is there from the first round to the last.
struct Place {
    snapshots: Scratch,
    runtime: Rc<Scratch>,
    broker: Broker,
    dice: Dice,
    /// What the guest of the first snapshot said when it was ready, and when it was last looked at.
    said: [Value; 2],
}

impl Place {
    fn new() -> Self {
        let broker = Broker::start(&["--supply", "ledger", "--capacity", "64M"]);
        let (snapshots, runtime, dice) = (Scratch::new(), Rc::default(), Dice::new());
        let mut place = Self { snapshots, runtime, broker, dice, said: Default::default() };
        let mut guest = place.with_flags(small()).start();
        place.said = [guest.report("ready"), verified(&mut guest)];
        save(&guest, &place.base(), &["--keep-paused"]);
        guest.stop();
        place
    }

    fn base(&self) -> PathBuf {
        self.snapshots.join("base")
    }

    fn usage(&self) -> Usage {
        // Which removes the entries of VMs that were killed.
        assert!(self.tesseractl(&["list"]).status().unwrap().success());
        Usage::of(&self.broker, [&self.snapshots, &self.runtime])
    }

    fn tesseractl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("tesseractl"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("TESSERA_RUNTIME_DIR", self.runtime.path());
        command
    }

    /// With tag storage that is reserved before the guest runs, as memory that is loaded when it is touched wants it.
    fn with_flags(&self, plan: Plan) -> Plan {
        let plan = plan.with("--broker", self.broker.socket()).with("--tag-storage", "strict");
        plan.env("TESSERA_RUNTIME_DIR", text(self.runtime.path())).flag("--track-dirty-pages")
    }

    fn holder(&self, folder: &Path) -> Holder {
        Holder::start_in(Rc::clone(&self.runtime), folder, &[])
    }

    fn start(&self, folder: &Path, way: Way) -> Guest {
        let plan = self.with_flags(Plan::restore(folder));
        match way {
            Way::Eager => plan.start(),
            Way::Lazy => plan.flag("--lazy").start(),
            Way::Clone => plan.flag("--shared").start(),
        }
    }

    /// The guest of a snapshot is that of the first one, and powers off.
    fn check(&self, folder: &Path, way: Way) {
        // It is killed in the end.
        let _holder = (way == Way::Clone).then(|| self.holder(folder));
        let mut guest = self.start(folder, way);
        let [ready, before] = &self.said;
        continues(ready, before, &verified(&mut guest));
        power_off(guest);
    }

    fn pass(&mut self, longest: Duration) {
        std::thread::sleep(self.dice.time(longest));
    }
}

/// Restores a guest and has it saved, full or as a diff, beside another that is restored; all of them, the client that
/// saves and what holds their template are killed, at random moments. Nothing of them is left, and a new snapshot is
/// whole, merged if it is a diff, or not there. Prints a table of the rounds.
///
/// # Panics
/// When something is left.
pub fn kills(rounds: Rounds) {
    let start = Instant::now();
    let mut place = Place::new();
    // What the broker and the file system keep is there from now on.
    place.check(&place.base(), Way::Clone);
    place.clear();
    let usage = until("nothing of the first VMs", || {
        Some(place.usage()).filter(|usage| usage.processes.is_empty() && usage.leases == 0)
    });
    println!("round | one   other save  first  new   | snapshot | {COLUMNS}");
    println!("{:5} | {:29} | {:8} | {}", "", "before", "", usage.row());
    let (mut number, mut saved) = (0, 0);
    loop {
        let round = Round::new(&mut place.dice, number);
        let new = place.round(&round);
        if let Some(new) = &new {
            place.check(new, round.ways[2]);
            saved += 1;
        }
        place.clear();
        let now = usage.wait_until_as(|| place.usage());
        let found = if new.is_some() { "whole" } else { "none" };
        println!("{number:5} | {} | {found:8} | {}", round.row(), now.row());
        number += 1;
        let is_last = match rounds {
            Rounds::Count(count) => number >= count,
            Rounds::For(time) => start.elapsed() >= time,
        };
        if is_last {
            break;
        }
    }
    println!("{number} rounds, {saved} new snapshots");
    assert!(saved > 0);
    // The snapshot that all of them come from is as it was.
    place.check(&place.base(), Way::Eager);
}

impl Place {
    /// One round, in which the save comes to its end or is as likely cut short. The new snapshot, if it was made.
    fn round(&mut self, round: &Round) -> Option<PathBuf> {
        let base = self.base();
        let [chain, new] = ["chain", "new"].map(|name| self.snapshots.join(name));
        let is_shared = round.ways[..2].contains(&Way::Clone);
        let mut holder = is_shared.then(|| self.holder(&base));
        let one = self.start(&base, round.ways[0]);
        if round.ends || round.diffs == 2 || self.dice.below(2) == 0 {
            one.answers();
            self.pass(A_WHILE);
        }
        if round.diffs == 2 {
            save(&one, &chain, &["--diff"]);
        }
        let mut saving = one.tesseractl(&["snapshot", text(&new)]);
        if round.diffs > 0 {
            saving.arg("--diff");
        }
        let mut saving = saving.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let other = self.start(&base, round.ways[1]);
        if round.ends {
            until("the end of the save", || saving.try_wait().unwrap());
        } else {
            self.pass(A_WHILE);
        }
        for victim in &round.victims {
            match victim {
                Victim::One => one.signal(Signal::KILL),
                Victim::Other => other.signal(Signal::KILL),
                Victim::Holder => holder.iter_mut().for_each(Holder::kill),
                Victim::Client => saving.kill().unwrap(),
            }
            self.pass(A_WHILE / 4);
        }
        let output = saving.wait_with_output().unwrap();
        drop((one, other));
        // A VM that is killed when its snapshot is in its place cannot be resumed.
        assert!(new.exists() || !output.status.success(), "{output:?}");
        if !new.exists() {
            return None;
        }
        match round.diffs {
            0 => Some(new),
            1 => Some(self.merged(&[&base, &new])),
            _ => Some(self.merged(&[&base, &chain, &new])),
        }
    }

    /// Merges snapshots, after an attempt that is killed.
    fn merged(&mut self, folders: &[&Path]) -> PathBuf {
        let whole = self.snapshots.join("whole");
        let merge = |place: &Self| {
            let mut command = place.tesseractl(&["snapshot", "merge"]);
            command.args(folders).arg(&whole);
            command
        };
        let mut killed = merge(self).spawn().unwrap();
        self.pass(A_WHILE / 2);
        killed.kill().unwrap();
        killed.wait().unwrap();
        if !whole.exists() {
            assert!(merge(self).status().unwrap().success());
        }
        whole
    }

    /// Removes the new snapshots, and has what is left of processes that were killed removed as their user does: that
    /// of a client by the next snapshot, and sockets by the next holder of any template.
    fn clear(&self) {
        assert_eq!(self.holder(&self.base()).end(Some(Signal::TERM)), (Some(143), String::new()));
        let is_left =
            |name: &String| name != "base" && !["chain", "new", "whole"].contains(&&**name);
        if self.snapshots.names().iter().any(is_left) {
            let guest = self.start(&self.base(), Way::Lazy);
            guest.answers();
            save(&guest, &self.snapshots.join("new"), &["--replace"]);
            guest.stop();
        }
        for name in ["chain", "new", "whole"] {
            match fs::remove_dir_all(self.snapshots.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }
}
