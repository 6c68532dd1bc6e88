//! Guests that are saved in the middle of something: their disks, network and sockets are at work, their balloon moves,
//! they report free memory. Both the guest that runs on and the one that is restored have lost nothing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use testing::balloon;
use testing::footprint::Footprint;
use testing::guest::{Guest, Plan, STOP};
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::snapshot::{continues, power_off, restore, save, small, text, verified};
use testing::wait::until;

use crate::net::{Taps, host};
use crate::reporting;

const MIB: u64 = 1 << 20;
/// A balloon that has much of the guest, in MiB.
const FULL: u64 = 56;
/// How often a guest is saved while its devices are at work.
const SAVES: usize = 2;

/// Writes blocks that each say which they are, and reads each back from the disk.
const BLOCKS: &str = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); yes \"block $n\" | head -c 65536 >/tmp/want; \
    dd if=/tmp/want of=/dev/vda bs=64k seek=$((n%200)) conv=fsync,notrunc 2>/dev/null || echo $n >>/tmp/bad; \
    echo 1 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/got bs=64k skip=$((n%200)) count=1 2>/dev/null; \
    cmp -s /tmp/want /tmp/got || echo $n >>/tmp/bad; echo $n >/tmp/progress.new; mv /tmp/progress.new /tmp/progress; done; touch /tmp/ended";
/// Counts for as long as it may.
const STREAM: &str = "i=0; until [ -e /tmp/go ]; do i=$((i+1)); echo $i; done; echo end";

/// Whether there is a process that does so.
const WRITERS: &str =
    "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' ' | grep -c 'ech[o] end' || true";

/// Starts a command of the guest's shell.
fn begin(guest: &Guest, script: &str) -> Child {
    guest.shell(script).stdout(Stdio::piped()).spawn().unwrap()
}

/// How many blocks a guest has written, and that all of them were right.
fn blocks(guest: &Guest) -> u64 {
    assert_eq!(guest.sh("cat /tmp/bad 2>/dev/null || echo none"), "none");
    guest.sh("cat /tmp/progress 2>/dev/null || echo 0").parse().unwrap()
}

/// Waits until it has written more.
fn more_blocks(guest: &Guest, than: u64) -> u64 {
    until("more blocks", || Some(blocks(guest)).filter(|blocks| *blocks > than + 1))
}

/// Gives the host's side of a tap its addresses: always the same, as the guest has learned them.
fn address(tap: &str) {
    host(&format!(
        "ip link set {tap} address 02:00:00:00:00:01 && ip addr add 198.51.100.1/24 dev {tap} && ip link set {tap} up"
    ));
}

/// Sends numbers to the guest until it may stop; what it has sent.
fn send_until(stop: &AtomicBool) -> Vec<u8> {
    let mut stream = until("a guest that listens", || TcpStream::connect("198.51.100.2:5000").ok());
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let piece: Vec<u8> =
            (0..4096u32).map(|at| (at as usize * 7 + sent.len() / 11) as u8).collect();
        stream.write_all(&piece).unwrap();
        sent.extend(piece);
    }
    sent
}

/// Saves a guest and copies its disk; it runs on.
fn save_with_disk(guest: &Guest, folder: &Path, disk: &Path) {
    save(guest, folder, &["--keep-paused"]);
    fs::copy(disk, folder.with_extension("img")).unwrap();
    guest.client().resume().unwrap();
}

#[test]
#[ignore = "long"]
fn a_guest_is_saved_while_its_devices_are_at_work() {
    Lab::new().emulated().run(|| {
        let _taps = Taps::load();
        let scratch = Scratch::new();
        let disk = scratch.join("disk.img");
        File::create(&disk).unwrap().set_len(16 * MIB).unwrap();
        let plan = Plan::agent(&scratch).with("--memory", "256M").with("--cpus", "2");
        let plan = plan.with("--mte", "require").with("--disk", text(&disk));
        let guest = plan.with("--net", "tap=tap0").start();
        guest.answers();
        guest.sh("ip addr add 198.51.100.2/24 dev eth0 && ip link set eth0 up");
        address("tap0");
        guest.sh(&format!("({BLOCKS}) </dev/null >/dev/null 2>&1 &"));
        let mut stream = begin(&guest, STREAM);
        let mut lines = BufReader::new(stream.stdout.take().unwrap()).lines();
        let sum = begin(&guest, "nc -l -p 5000 </dev/null | sha256sum");
        let stop = AtomicBool::new(false);

        let mut done = 0;
        let folders: Vec<PathBuf> = (0..SAVES).map(|n| scratch.join(&n.to_string())).collect();
        let (read, sent) = thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut next = 1;
                loop {
                    match lines.next().unwrap().unwrap() {
                        end if end == "end" => break next,
                        line => assert_eq!(line, next.to_string()),
                    }
                    next += 1;
                }
            });
            let sender = scope.spawn(|| send_until(&stop));
            let mut seen = Vec::new();
            for folder in &folders {
                done = more_blocks(&guest, done);
                save_with_disk(&guest, folder, &disk);
                seen.push(done);
            }
            // All of it continues in the guest that was saved.
            done = more_blocks(&guest, done);
            guest.sh("touch /tmp/go");
            stop.store(true, Ordering::Relaxed);
            (reader.join().unwrap(), sender.join().unwrap())
        });
        assert!(read > 100, "{read}");
        assert!(stream.wait().unwrap().success());
        let file = scratch.file("sent", &sent);
        let expected = host(&format!("sha256sum {}", file.display()));
        let mut found = String::new();
        let output = sum.wait_with_output().unwrap();
        found.push_str(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(found.split(' ').next(), expected.split(' ').next(), "{} bytes", sent.len());
        println!("{done} blocks, {read} lines, {} bytes by the network", sent.len());
        guest.sh("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done");
        blocks(&guest);
        guest.stop();
        host("ip link del tap0 2>/dev/null || true");

        for (number, folder) in folders.iter().enumerate() {
            let other = scratch.join("other");
            let copy = folder.with_extension("img");
            let plan = restore(folder, number % 2 == 1).with("--vsock", text(&other));
            let plan = plan.with("--disk", &format!("{},id=disk0", copy.display()));
            let guest = plan.with("--net", "tap=tap1,id=eth0").start();
            guest.answers();
            address("tap1");
            // A connection that is made while the guest still resets those that it had may be reset with them.
            let answers = || begin(&guest, "true").wait_with_output().unwrap().status.success();
            until("the agent", || answers().then_some(()));
            // Its disk is written to as before.
            let now = blocks(&guest);
            more_blocks(&guest, now);
            // The connection of the stream has ended. What wrote to it does not wait for it for good.
            guest.sh("touch /tmp/go");
            until("the end of what wrote", || (guest.sh(WRITERS) == "0").then_some(()));
            guest.sh("ping -c 2 -W 100 198.51.100.1");
            guest.sh("touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.1; done");
            blocks(&guest);
            assert!(guest.tesseractl(STOP).status().unwrap().success());
            guest.finish().expect_power_off();
            host("ip link del tap1 2>/dev/null || true");
        }
    });
}

fn actual(guest: &Guest) -> u64 {
    guest.client().get::<Value>("/balloon").unwrap()["actual_mib"].as_u64().unwrap()
}

/// Has a balloon begin to move, and saves the guest meanwhile.
fn save_while_it_moves(guest: &Guest, folder: &Path, target: u64) {
    let from = actual(guest);
    guest.client().send("PATCH", "/balloon", &json!({ "amount_mib": target })).unwrap();
    until("a balloon that moves", || (actual(guest) != from).then_some(()));
    save(guest, folder, &["--keep-paused"]);
    println!("saved with a balloon of {} MiB, from {from} to {target}", actual(guest));
    guest.client().resume().unwrap();
}

#[test]
#[ignore = "long"]
fn a_guest_is_saved_while_its_balloon_moves() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let [up, down] = ["up", "down"].map(|name| scratch.join(name));
        let mut guest = small().with("--cpus", "2").start();
        let ready = guest.report("ready");
        let before = verified(&mut guest);

        save_while_it_moves(&guest, &up, FULL);
        balloon::reaches(&mut guest.client(), FULL);
        save_while_it_moves(&guest, &down, 0);
        balloon::reaches(&mut guest.client(), 0);
        continues(&ready, &before, &verified(&mut guest));
        power_off(guest);

        for (folder, target, lazy) in [(&up, FULL, true), (&down, 0, false)] {
            let mut guest = restore(folder, lazy).start();
            guest.answers();
            balloon::reaches(&mut guest.client(), target);
            continues(&ready, &before, &verified(&mut guest));
            power_off(guest);
        }
    });
}

#[test]
#[ignore = "long"]
fn a_guest_is_saved_while_it_reports_free_memory() {
    const TOUCH: u64 = 128;
    /// What the guest takes again comes back as new, and can be tagged, checked and given back.
    fn takes_again(guest: &mut Guest) {
        let tagged = guest.order("tag 32", "tagged");
        let facts = (&tagged["fresh"], &tagged["wrong"], &tagged["stops"]);
        assert_eq!(facts, (&json!(true), &json!(0), &json!(true)), "{tagged}");
        guest.order("touch 48", "touched");
        assert_eq!(guest.order("free", "freed")["wrong"], 0);
    }
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let folder = scratch.join("one");
        let mut guest = reporting::start(reporting::plan(320).with("--cpus", "2"));
        guest.order("touch 16", "touched");
        guest.order(&format!("touch {TOUCH}"), "touched");
        let before = Footprint::of(&mut guest.client()).discarded;
        assert_eq!(guest.order("free", "freed")["wrong"], 0);
        guest.order("touch 16", "touched");

        // In the middle of it: some has been reported, and not all.
        Footprint::wait(&guest, "a report", |now| now.discarded > before);
        save(&guest, &folder, &["--keep-paused"]);
        let reported = Footprint::of(&mut guest.client()).discarded - before;
        println!("saved with {} of {TOUCH} MiB reported", reported / MIB);
        guest.client().resume().unwrap();

        takes_again(&mut guest);
        guest.stop();
        for lazy in [false, true] {
            let mut guest = restore(&folder, lazy).start();
            guest.answers();
            // What was held over the save is right, and what was free is new.
            takes_again(&mut guest);
            Footprint::wait(&guest, "reports after a restore", |now| now.discarded > 16 * MIB);
            power_off(guest);
        }
    });
}
