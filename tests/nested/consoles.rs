//! Each place the guest's serial port can go to.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use testing::guest::{Plan, parse};
use testing::lab::Lab;
use testing::scratch::Scratch;
use testing::wait::{PATIENCE, until};

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
}

#[test]
fn standard_input_and_output_reach_the_guest() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("echo").start();
        guest.report("ready");
        for text in ["hello", "", &"x".repeat(200), "last"] {
            guest.type_line(text);
            assert_eq!(guest.report("line")["text"], text);
        }
        guest.client().stop().unwrap();
        assert_eq!(guest.finish().code, Some(12));
    });
}

#[test]
fn a_file_as_standard_input_is_read_to_its_end_and_the_guest_goes_on() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let long = "y".repeat(150);
        let input = scratch.file("input", format!("one\n{long}\n"));
        let mut command = Plan::workload("echo").command();
        command.arg("--api-sock").arg(scratch.join("sock"));
        let mut child =
            command.stdin(fs::File::open(input).unwrap()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut texts = lines
            .by_ref()
            .filter_map(|line| parse(&line))
            .filter(|report| report["event"] == "line")
            .map(|report| report["text"].as_str().unwrap().to_owned());

        // The first line may come before the guest's driver listens, as with any serial port.
        let seen = texts.find(|text| *text == long);
        assert_eq!(seen, Some(long));
        drop(texts);
        stop(&scratch.join("sock"));
        lines.for_each(drop);
        assert_eq!(child.wait().unwrap().code(), Some(12));
    });
}

fn stop(socket: &Path) {
    tesseractl::client::Client::connect(socket, PATIENCE).unwrap().stop().unwrap();
}

#[test]
fn a_file_takes_the_output_of_one_run() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let file = scratch.file("console", "what an earlier run left");
        let target = format!("file:{}", file.display());

        let guest = Plan::workload("count,100").with("--serial", &target).start();

        // Ticks are whole lines here, and the file is read while it is written.
        let ticking = || {
            let text = fs::read_to_string(&file).unwrap();
            let mut reports = text.lines().filter_map(parse);
            reports.any(|report| report["event"] == "tick").then_some(text)
        };
        let text = until("ticks in the file", ticking);
        assert!(!text.contains("earlier run"), "{text}");
        // As logrotate's `copytruncate`: the output continues at the start of the file, without a hole.
        fs::File::options().write(true).open(&file).unwrap().set_len(0).unwrap();
        let text = until("ticks after the file was truncated", ticking);
        assert!(!text.contains('\0'), "{text:?}");
        guest.client().stop().unwrap();
        let finished = guest.finish();
        assert_eq!(finished.code, Some(12), "{finished:#?}");
        assert!(finished.console.is_empty(), "{finished:#?}");
    });
}

#[test]
fn a_socket_serves_one_client_after_another() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let socket = scratch.join("console");
        let target = format!("socket:{}", socket.display());
        let mut command = Plan::workload("echo").with("--serial", &target).command();
        command.arg("--api-sock").arg(scratch.join("api"));
        let mut child = spawn(command);
        for round in 0..3 {
            let mut client = until("the console's socket", || UnixStream::connect(&socket).ok());
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            // Until the guest listens, and until the client before has been let go, what is typed may go
            // nowhere: say it again.
            let word = format!("round{round}");
            client.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
            until("an echo", || {
                match writeln!(client, "{word}") {
                    Ok(()) => {}
                    Err(_) => {
                        client = UnixStream::connect(&socket).ok()?;
                        client.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
                        lines = BufReader::new(client.try_clone().unwrap()).lines();
                    }
                }
                let line = lines.next()?.ok()?;
                parse(&line).filter(|report| report["text"] == word.as_str())
            });
        }
        stop(&scratch.join("api"));
        assert_eq!(child.wait().unwrap().code(), Some(12));
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    });
}

#[test]
fn no_console_is_no_hindrance() {
    Lab::new().run(|| {
        let finished = Plan::workload("smp").with("--serial", "none").run().expect_power_off();

        assert!(finished.console.is_empty(), "{finished:#?}");
    });
}

#[test]
#[ignore = "long"]
fn a_reader_that_stops_reading_neither_loses_bytes_nor_keeps_the_vm_from_pausing() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        let socket = scratch.join("api");
        let mut command = Plan::workload("count,1").command();
        command.arg("--api-sock").arg(&socket);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        // Two pages, of which poll wants one free: full after some sixty lines. Twice as many are read below.
        rustix::pipe::fcntl_setpipe_size(&stdout, 8192).unwrap();
        let mut client = until("the control socket", || {
            tesseractl::client::Client::connect(&socket, PATIENCE).ok()
        });
        let mut written = 0;
        until("a full pipe", || {
            let now = client.metrics().unwrap()["serial"]["output_bytes"].as_u64().unwrap();
            let full = now == written && now >= 4096;
            written = now;
            std::thread::sleep(std::time::Duration::from_millis(300));
            full.then_some(())
        });

        for _ in 0..3 {
            client.pause().unwrap();
            client.resume().unwrap();
        }

        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let ticks = lines.by_ref().filter_map(|line| parse(&line));
        let ticks = ticks.filter(|report| report["event"] == "tick");
        assert!(ticks.map(|report| report["tick"].as_u64()).take(120).eq((0..120).map(Some)));
        client.stop().unwrap();
        lines.for_each(drop);
        assert_eq!(child.wait().unwrap().code(), Some(12));
    });
}

#[test]
fn a_terminal_is_raw_while_the_guest_runs_and_as_before_afterwards() {
    Lab::new().run(|| {
        for keys in [&b"\x01x"[..], &b""[..]] {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
            grantpt(&master).unwrap();
            unlockpt(&master).unwrap();
            let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
            let open = || fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
            let terminal = open();
            let before = tcgetattr(&terminal).unwrap();
            let raw = || !tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ICANON);
            let run = Plan::workload("idle").command();
            let mut child = Command::new("setsid")
                .arg("-c")
                .arg(run.get_program())
                .args(run.get_args())
                .stdin(open())
                .stdout(open())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap();
            until("a raw terminal", || raw().then_some(()));

            let mut master = fs::File::from(master);
            let expected = match keys {
                b"" => {
                    let pid = rustix::process::Pid::from_child(&child);
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                    143
                }
                keys => {
                    master.write_all(keys).unwrap();
                    12
                }
            };
            let reader = std::thread::spawn(move || {
                let mut console = BufReader::new(master);
                let mut line = Vec::new();
                while console.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    line.clear();
                }
            });
            assert_eq!(child.wait().unwrap().code(), Some(expected));

            let after = tcgetattr(&terminal).unwrap();
            assert_eq!(after.local_modes, before.local_modes);
            assert_eq!(after.input_modes, before.input_modes);
            drop(terminal);
            reader.join().unwrap();
        }
    });
}
