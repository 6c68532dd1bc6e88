//! Guests on a network: through a tap of the host, and through a peer on a Unix socket.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testing::guest::{Guest, Plan, STOP};
use testing::lab::Lab;
use testing::memory::own_anonymous;
use testing::scratch::Scratch;
use testing::wait::{PATIENCE, until};

const HOST: [u8; 4] = [198, 51, 100, 1];
const GUEST: [u8; 4] = [198, 51, 100, 2];
/// How often the other side of an interface goes and comes back while descriptors and memory are watched.
const ROUNDS: u64 = 20;
/// What memory of the VMM's own may differ by: the allocator and the stacks of its threads have some more at times.
const NOISE: u64 = 64 << 10;
/// A payload for TCP: more than any buffer between the two holds.
const PAYLOAD: usize = 16 << 20;

/// Runs a command of the host's shell. What it wrote.
pub(crate) fn host(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a command of the guest's shell.
fn begin(guest: &Guest, command: &str) -> Child {
    guest.shell(command).stdout(Stdio::piped()).spawn().unwrap()
}

/// What a command wrote that has succeeded.
fn said(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Has the guest power off.
fn stop(machine: &Guest) {
    assert!(machine.tesseractl(STOP).status().unwrap().success());
}

fn metrics(guest: &Guest) -> Value {
    serde_json::to_value(guest.client().metrics().unwrap()).unwrap()["net_eth0"].clone()
}

/// The driver of taps, which Debian's kernel has as a module.
pub(crate) struct Taps;

impl Taps {
    pub(crate) fn load() -> Self {
        host(
            "test -e /sys/module/tun || { xzcat $(find /lib/modules/ -name tun.ko.xz) >/tmp/tun.ko && \
             insmod /tmp/tun.ko && rm /tmp/tun.ko; }",
        );
        Self
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        // One that was there before, or is built in, stays.
        let _ = Command::new("rmmod").arg("tun").status();
    }
}

/// A guest with an address on its interface.
fn start(plan: Plan) -> Guest {
    let machine = plan.with("--memory", "256M").start();
    machine.answers();
    machine.sh("ip addr add 198.51.100.2/24 dev eth0 && ip link set eth0 up");
    // A peer that is busy is asked for its address for longer than three seconds, after which a ping would be dropped.
    machine.sh("echo 100 >/proc/sys/net/ipv4/neigh/eth0/mcast_solicit");
    machine
}

/// The descriptors of the VMM, without those of commands in the guest: a connection may still be closing when the
/// command's result is here.
fn descriptors(machine: &Guest) -> usize {
    until("no connection of a command", || {
        let metrics = serde_json::to_value(machine.client().metrics().unwrap()).unwrap();
        (metrics["vsock"]["connections"] == 0).then_some(())
    });
    fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap().count()
}

/// Has the other side go and come back, and compares the VMM before and after.
fn leaks_nothing(machine: &Guest, mut round: impl FnMut()) {
    let memory = || own_anonymous(machine.pid(), 256 << 20);
    round();
    let before = (descriptors(machine), memory());
    for _ in 0..ROUNDS {
        round();
    }
    // A client's connection to the control socket may still be closing, too.
    let fewest = until("as many descriptors as before", || {
        Some(descriptors(machine)).filter(|count| *count <= before.0)
    });
    let after = (fewest, memory());
    println!("descriptors and bytes before {before:?}, after {after:?}");
    assert!(after.1 <= before.1 + NOISE, "{before:?} {after:?}");
}

fn link_is(machine: &Guest, up: bool) {
    until("the link", || (metrics(machine)["link_up"] == up).then_some(()));
}

fn sha256(bytes: &[u8]) -> String {
    let scratch = Scratch::new();
    let file = scratch.file("payload", bytes);
    host(&format!("sha256sum {}", file.display())).split(' ').next().unwrap().to_owned()
}

/// Sends the payload to the guest. Its sum there.
fn to_guest(machine: &Guest, payload: &[u8]) -> String {
    let sum = begin(machine, "nc -l -p 5000 </dev/null >/tmp/in; sha256sum </tmp/in");
    let mut stream = until("a guest that listens", || TcpStream::connect("198.51.100.2:5000").ok());
    stream.write_all(payload).unwrap();
    drop(stream);
    said(sum).split(' ').next().unwrap().to_owned()
}

/// Has the guest send what it has received.
fn from_guest(machine: &Guest) -> Vec<u8> {
    let listener = TcpListener::bind("198.51.100.1:5001").unwrap();
    let sends = begin(machine, "nc 198.51.100.1 5001 </tmp/in");
    let (mut stream, _) = listener.accept().unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    drop(stream);
    said(sends);
    received
}

fn on_a_tap(plan: Plan) {
    let _taps = Taps::load();
    let net = "tap=tap0,mac=02:00:00:00:00:42,mtu=1400";
    let machine = start(plan.with("--net", net));
    host("ip addr add 198.51.100.1/24 dev tap0 && ip link set tap0 up mtu 1400");
    let facts = machine.sh("cd /sys/class/net/eth0; cat address mtu carrier");
    assert_eq!(facts, "02:00:00:00:00:42\n1400\n1");
    machine.sh("ping -c 3 -W 100 198.51.100.1");
    host("ping -c 3 -W 100 198.51.100.2");
    let open = descriptors(&machine);

    let payload: Vec<u8> = (0..PAYLOAD).map(|at| (at * 7 + at / 251) as u8).collect();
    assert_eq!(to_guest(&machine, &payload), sha256(&payload));
    assert!(from_guest(&machine) == payload);

    let counted = metrics(&machine);
    println!("network of the guest: {counted}");
    assert!(counted["rx_bytes"].as_u64().unwrap() > PAYLOAD as u64, "{counted}");
    assert!(counted["tx_bytes"].as_u64().unwrap() > PAYLOAD as u64, "{counted}");
    until("as few descriptors as before", || (descriptors(&machine) <= open).then_some(()));
    host("ip link del tap0");
    machine.sh("until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 1; done");
    let counted = metrics(&machine);
    assert_eq!((&counted["link_up"], &counted["link_changes_total"]), (&false.into(), &1.into()));
    // A guest that sends where nothing is does not hang.
    machine.sh("! ping -c 1 -W 1 198.51.100.1");
    stop(&machine);
    machine.finish().expect_power_off();
}

#[test]
fn a_guest_on_a_tap_exchanges_frames_with_its_host_until_the_tap_is_removed() {
    Lab::new().emulated().run(|| {
        let scratch = Scratch::new();
        on_a_tap(Plan::agent(&scratch));
    });
}

#[test]
#[ignore = "long"]
fn frames_reach_memory_whose_tag_storage_is_not_reserved_yet() {
    Lab::new().emulated().run(|| {
        let scratch = Scratch::new();
        let plan = Plan::agent(&scratch).with("--mte", "require");
        on_a_tap(plan.with("--tag-storage", "demand"));
    });
}

#[test]
#[ignore = "long"]
fn a_tap_that_is_made_again_under_its_name_carries_frames_again() {
    Lab::new().emulated().run(|| {
        let _taps = Taps::load();
        let scratch = Scratch::new();
        let machine = start(Plan::agent(&scratch).with("--net", "tap=tap0"));
        // Always the same address: the guest need not learn another one.
        let set_up = "ip link set tap0 address 02:00:00:00:00:01 && \
                      ip addr add 198.51.100.1/24 dev tap0 && ip link set tap0 up";
        let answers = || {
            let once =
                || Command::new("ping").args(["-c", "1", "-W", "2", "198.51.100.2"]).output();
            until("an answer", || once().unwrap().status.success().then_some(()));
        };
        host(set_up);
        answers();

        leaks_nothing(&machine, || {
            host("ip link del tap0");
            link_is(&machine, false);
            host(&format!("tunctl -t tap0 && {set_up}"));
            link_is(&machine, true);
            answers();
        });

        assert_eq!(metrics(&machine)["link_changes_total"], 2 * (ROUNDS + 1));
        let seen = machine.sh("cat /sys/class/net/eth0/carrier_down_count");
        assert!(seen.parse::<u64>().unwrap() > 0, "{seen}");
        stop(&machine);
        machine.finish().expect_power_off();
        host("ip link del tap0");
    });
}

/// A station that answers who asks for its address, and echoes.
struct Station {
    listener: UnixListener,
}

impl Station {
    fn accept(&self) -> UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        let (stream, _) = until("the VMM", || self.listener.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Answers so many pings.
    fn answer(stream: &mut UnixStream, mut pings: usize) {
        while pings > 0 {
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut frame).unwrap();
            let Some(answer) = answer(&frame) else { continue };
            pings -= usize::from(answer[12..14] == [8, 0]);
            // The prefix in two pieces, as a stream may cut anything.
            let length = (answer.len() as u32).to_be_bytes();
            stream.write_all(&length[..1]).unwrap();
            stream.write_all(&[&length[1..], &answer].concat()).unwrap();
        }
    }
}

/// The answer to an ARP request (RFC 826) or an ICMP echo (RFC 792) for the station.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    let mut answer = [&frame[6..12], &MAC, &frame[12..]].concat();
    match (frame.get(12..14)?, frame) {
        ([8, 6], arp) if arp.get(20..22)? == [0, 1] && arp.get(38..42)? == HOST => {
            answer[21] = 2;
            answer[22..28].copy_from_slice(&MAC);
            answer[28..32].copy_from_slice(&HOST);
            answer[32..42].copy_from_slice(&arp[22..32]);
        }
        ([8, 0], ip) if ip.get(23) == Some(&1) && ip.get(34) == Some(&8) => {
            answer[26..30].copy_from_slice(&HOST);
            answer[30..34].copy_from_slice(&GUEST);
            answer[34] = 0;
            // The type has become less by 8, so the sum becomes more (RFC 1624).
            let sum = u32::from(u16::from_be_bytes([ip[36], ip[37]])) + 0x0800;
            let sum = (sum & 0xffff) + (sum >> 16);
            answer[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
        }
        _ => return None,
    }
    Some(answer)
}

#[test]
fn a_guest_reaches_a_peer_on_a_socket_that_leaves_and_comes_back() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let path = scratch.join("net");
        let station = Station { listener: UnixListener::bind(&path).unwrap() };
        let net = format!("stream={}", path.display());
        let machine = start(Plan::agent(&scratch).with("--net", &net));
        let mut stream = Some(station.accept());

        leaks_nothing(&machine, || {
            let up = "until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done";
            let pings = begin(&machine, &format!("{up}; ping -c 1 -W 100 198.51.100.1"));
            Station::answer(stream.as_mut().unwrap(), 1);
            said(pings);

            stream = None;
            // Nothing accepts the next connection yet, but it is there: the kernel has queued it.
            stream = Some(station.accept());
            link_is(&machine, true);
        });

        let counted = metrics(&machine);
        assert_eq!(counted["link_changes_total"], 2 * (ROUNDS + 1), "{counted}");
        stop(&machine);
        machine.finish().expect_power_off();
    });
}
