//! A guest kernel that writes what it likes, everywhere: registers, queues, hypercalls.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use testing::assault;
use testing::broker::Broker;
use testing::dice::Dice;
use testing::guest::Plan;
use testing::lab::Lab;
use testing::scratch::Scratch;

/// Statuses with which such a VM may end before it is stopped: it is stopped, or ends with a reason.
const NAMED: &[i32] = &[0, 10, 11, 12, 14, 15, 70];

/// How long all such guests run, in seconds. `make soak` takes ten minutes.
const SECONDS: &str = "TESSERA_ASSAULT_SECONDS";

/// A peer of the guests' networks: it reads whatever comes, and sends frames of any length and contents.
fn serve_network(listener: UnixListener) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let reader = stream.try_clone().unwrap();
            thread::spawn(move || read_all(reader));
            thread::spawn(move || send_frames(stream));
        }
    });
}

fn read_all(mut stream: UnixStream) {
    let mut rest = [0; 4096];
    while stream.read(&mut rest).is_ok_and(|length| length > 0) {}
}

/// Sends until the other side closes. Each frame is behind its length.
fn send_frames(mut stream: UnixStream) {
    let mut dice = Dice::new();
    loop {
        let mut frame = vec![dice.roll() as u8; dice.below(2000)];
        frame.splice(..0, (frame.len() as u32).to_be_bytes());
        if stream.write_all(&frame).is_err() {
            return;
        }
        thread::sleep(Duration::from_millis(dice.below(20) as u64));
    }
}

#[test]
#[ignore = "long"]
fn a_guest_that_does_what_it_likes_harms_no_neighbour() {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let limit = Duration::from_secs(seconds + 280);
    Lab::new().with_variable(SECONDS).timeout(limit).run(|| {
        let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "64M"]));
        let mut dice = Dice::new();
        let neighbour = Plan::workload("count,200").with("--memory", "128M");
        let neighbour = neighbour.with("--mte", "require").with("--broker", broker.socket());
        let mut neighbour = neighbour.start();
        neighbour.report("tick");
        let network = scratch.join("net");
        serve_network(UnixListener::bind(&network).unwrap());
        let (start, mut rounds, mut ends) = (Instant::now(), 0, Vec::new());
        while start.elapsed() < Duration::from_secs(seconds) {
            let kernel = scratch.file("kernel", assault::kernel(&mut dice, 20_000, 7));
            let disk = scratch.file("disk", vec![0; 1 << 20]);
            let text = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
            let plan = Plan::bare(&kernel)
                .with("--memory", "64M")
                .with("--cpus", "2")
                .with("--mte", "require")
                .with("--broker", broker.socket())
                .with("--tag-storage", ["strict", "demand"][rounds % 2])
                .with("--disk", &format!("{},id=data", disk.display()))
                .with("--vsock", &text("vsock"))
                .with("--net", &format!("stream={}", network.display()))
                .flag("--rng")
                .with("--serial", "none");
            let guest = plan.start();
            guest.answers();
            thread::sleep(Duration::from_secs(5));
            // It answers, or has ended with a reason.
            let stopped = guest.tesseractl(&["stop", "--force"]).output().unwrap();
            let finished = guest.finish();
            let named = finished.code.is_some_and(|code| NAMED.contains(&code));
            assert!(named && !finished.messages.contains("panicked"), "{finished:#?} {stopped:?}");
            ends.push(finished.code.unwrap());
            rounds += 1;
            neighbour.drain();
            neighbour.report("tick");
            broker.wait("the lease to end", |report| report.pool.leases.len() == 1);
        }
        println!("{rounds} guests in {:.0} s ended with {ends:?}", start.elapsed().as_secs_f64());
        assert!(ends.contains(&12), "no guest lived: {ends:?}");
        neighbour.stop();
        assert_eq!(broker.end().0, Some(143));
    });
}
