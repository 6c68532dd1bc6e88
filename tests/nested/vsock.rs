//! Sockets between processes of the host and of the guest, with the guest kernel's own driver.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::memory::own_anonymous;
use testing::scratch::Scratch;
use testing::wait::{PATIENCE, until};

/// The services of the guest's workload `sockets`.
const ECHO: u32 = 7;
const DISCARD: u32 = 9;
const GENERATE: u32 = 19;
const CALL: u32 = 20;

const MIB: u64 = 1 << 20;

/// The byte at a place of a stream, as the workload has it.
fn byte(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1]
}

fn bytes(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(byte).collect()
}

/// Asks for a connection, without waiting for the answer.
fn ask(socket: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    stream
}

/// The answer; nothing behind it is read.
fn answer(stream: &mut UnixStream) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 {
        match byte[0] {
            b'\n' => return Some(String::from_utf8(line).unwrap()),
            other => line.push(other),
        }
    }
    None
}

fn connect(socket: &Path, port: u32) -> UnixStream {
    let mut stream = ask(socket, port);
    let answer = answer(&mut stream).expect("the guest refuses");
    assert!(answer.starts_with("OK "), "{answer}");
    stream
}

fn line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Writes so many bytes and the end, and has the guest say how many were right.
fn send(socket: &Path, length: u64) -> Duration {
    let start = Instant::now();
    let mut stream = connect(socket, DISCARD);
    for at in (0..length).step_by(1 << 16) {
        stream.write_all(&bytes(at, length.min(at + (1 << 16)))).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(line(&stream), length.to_string());
    start.elapsed()
}

/// Has the guest write so many bytes and the end.
fn fetch(socket: &Path, length: u64, meanwhile: impl FnOnce()) -> Duration {
    let start = Instant::now();
    let mut stream = connect(socket, GENERATE);
    writeln!(stream, "{length}").unwrap();
    let mut piece = vec![0; 1 << 16];
    let mut at = 0;
    let mut meanwhile = Some(meanwhile);
    loop {
        let read = stream.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        assert!(piece[..read] == bytes(at, at + read as u64), "a byte after {at} is wrong");
        at += read as u64;
        if at > length / 2
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile();
        }
    }
    assert_eq!(at, length);
    start.elapsed()
}

fn counter(guest: &Guest, name: &str) -> u64 {
    guest.client().metrics().unwrap()["vsock"][name].as_u64().unwrap()
}

fn no_connections(guest: &Guest) {
    until("no connection", || (counter(guest, "connections") == 0).then_some(()));
}

/// Descriptors of the VMM, and bytes of its own.
fn usage(guest: &Guest) -> (usize, u64) {
    let pid = guest.pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (open, own_anonymous(pid, 512 * MIB))
}

/// Its usage once it has no more than so many descriptors: some of what it was asked by may still be closing.
fn usage_of_no_more_than(guest: &Guest, descriptors: usize) -> (usize, u64) {
    until("descriptors that are closed", || {
        Some(usage(guest)).filter(|usage| usage.0 <= descriptors)
    })
}

/// Asks for a hundred connections without a look at the answers, half of them to a port where nothing listens, and
/// leaves.
fn flood(socket: &Path) {
    let ask = |number| ask(socket, if number % 2 == 0 { ECHO } else { 1 });
    let streams: Vec<UnixStream> = (0..100).map(ask).collect();
    echoes(socket);
    drop(streams);
}

fn echoes(socket: &Path) {
    let mut stream = connect(socket, ECHO);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn streams_pass_in_both_directions_before_the_boot_is_over_and_through_a_pause() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let mut guest = Plan::with_sockets("sockets", &scratch).start();
        guest.answers();
        let socket = scratch.join("vsock");

        // Long before there is a driver; the answer comes when there is.
        let mut early = ask(&socket, ECHO);
        early.write_all(b"early").unwrap();
        assert!(answer(&mut early).unwrap().starts_with("OK "));
        let mut echo = [0; 5];
        early.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"early");
        drop(early);
        guest.report("ready");
        assert_eq!(answer(&mut ask(&socket, 1)), None, "nothing listens there");

        let (input, output) = (send(&socket, 64 * MIB), fetch(&socket, 64 * MIB, || {}));
        println!("64 MiB in: {input:.1?}, out: {output:.1?}");

        fetch(&socket, 8 * MIB, || {
            guest.client().pause().unwrap();
            // The socket takes what it has room for; the guest gets it afterwards.
            let mut paused = ask(&socket, ECHO);
            paused.write_all(b"while paused").unwrap();
            guest.client().resume().unwrap();
            assert!(answer(&mut paused).unwrap().starts_with("OK "));
        });
        no_connections(&guest);
        guest.stop();
        assert!(!socket.exists());
    });
}

#[test]
fn a_guest_calls_what_listens_on_the_host() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let mut guest = Plan::with_sockets("sockets", &scratch).start();
        guest.report("ready");
        let socket = scratch.join("vsock");
        let call = |port: u32, length: u64| {
            let mut stream = connect(&socket, CALL);
            writeln!(stream, "{port} {length}").unwrap();
            stream
        };

        assert_eq!(line(&call(52, 1)), "ConnectionReset");
        let listener = UnixListener::bind(scratch.join("vsock_52")).unwrap();
        let caller = call(52, MIB);
        let (mut host, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        host.read_to_end(&mut received).unwrap();
        assert!(received == bytes(0, MIB));
        // The other half is still open.
        host.write_all(&received[..1000]).unwrap();
        drop(host);
        assert_eq!(line(&caller), "1000");
        drop(caller);

        // Nothing is accepted: the backlog is full with the first, and the others are refused at once.
        rustix::net::listen(&listener, 0).unwrap();
        let waiting = call(52, 1);
        until("a full backlog", || (counter(&guest, "from_guest_total") == 2).then_some(()));
        for _ in 0..3 {
            assert_eq!(line(&call(52, 1)), "ConnectionReset");
        }
        drop((listener, waiting));
        fs::remove_file(scratch.join("vsock_52")).unwrap();
        no_connections(&guest);
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn peers_that_die_do_not_read_leave_at_once_or_flood_leave_nothing_behind() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let mut guest = Plan::with_sockets("sockets", &scratch).start();
        guest.report("ready");
        let socket = scratch.join("vsock");
        let round = |rounds: u32| {
            for _ in 0..rounds {
                let mut reader = connect(&socket, GENERATE);
                writeln!(reader, "{MIB}").unwrap();
                reader.read_exact(&mut [0; 1000]).unwrap();
                let mut writer = connect(&socket, DISCARD);
                writer.write_all(&bytes(0, 1000)).unwrap();
                drop((reader, writer));
                drop(UnixStream::connect(&socket).unwrap());
                drop(ask(&socket, ECHO));
            }
            no_connections(&guest);
        };
        round(5);
        let before = usage(&guest);

        round(50);

        let after = usage_of_no_more_than(&guest, before.0 + 1);
        println!("descriptors and bytes before {before:?}, after {after:?}");
        assert!(after.1 <= before.1 + (128 << 10), "{before:?} {after:?}");

        flood(&socket);
        no_connections(&guest);
        let before = usage(&guest);
        for _ in 0..20 {
            flood(&socket);
        }
        no_connections(&guest);
        let after = usage_of_no_more_than(&guest, before.0 + 1);
        println!("flood: descriptors and bytes before {before:?}, after {after:?}");
        assert!(after.1 <= before.1 + (128 << 10), "{before:?} {after:?}");

        // Ten streams that are not read are kept within their credit, and delay nothing.
        let unread: Vec<UnixStream> = (0..10)
            .map(|_| {
                let mut stream = connect(&socket, GENERATE);
                writeln!(stream, "{}", 4 * MIB).unwrap();
                stream
            })
            .collect();
        for _ in 0..10 {
            echoes(&socket);
        }
        let with_unread = usage(&guest);
        assert!(with_unread.1 <= after.1 + MIB, "{after:?} {with_unread:?}");
        drop(unread);
        no_connections(&guest);
        echoes(&socket);
        guest.stop();
    });
}

#[test]
fn buffers_of_sockets_may_lie_in_memory_without_tag_storage() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let plan = Plan::with_sockets("sockets", &scratch).with("--mte", "require");
        let mut guest = plan.with("--tag-storage", "demand").start();
        guest.report("ready");
        let socket = scratch.join("vsock");

        send(&socket, 8 * MIB);
        fetch(&socket, 8 * MIB, || {});

        guest.stop();
    });
}
