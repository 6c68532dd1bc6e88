//! Commands in number, with much output, and without their client.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command};

use testing::guest::Guest;
use testing::scratch::Scratch;
use testing::wait::until;

use crate::debian::{exec, lab, plan, said, sh, start, tesseractl, timed};

const AT_ONCE: usize = 50;
const MUCH: usize = 100 << 20;

/// The next line of a command's output.
fn line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    let output = child.stdout.as_mut().unwrap();
    while output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.extend(byte);
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// All of them run before the first may end.
fn fifty_at_once(guest: &Guest) {
    let script = r#"echo "begun $1"; read word; echo "$word"; echo "error $1" >&2; exit "$1""#;
    let begin =
        |number: usize| start(guest, &["--", "sh", "-c", script, "sh", &number.to_string()]);
    let mut all: Vec<Child> = (0..AT_ONCE).map(begin).collect();
    for (number, child) in all.iter_mut().enumerate() {
        let begun = line(child);
        let mut said = String::new();
        if begun.is_empty() {
            child.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
        }
        assert_eq!(begun, format!("begun {number}"), "{said}");
    }
    for (number, child) in all.iter_mut().enumerate() {
        writeln!(child.stdin.as_mut().unwrap(), "word {number}").unwrap();
    }
    for (number, child) in all.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(number as i32), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("word {number}\n"));
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("error {number}\n"));
    }
}

/// The guest says the digest of what it writes on the other stream.
fn much_output(guest: &Guest) {
    let file = "/dev/shm/much";
    said(sh(guest, &format!("head -c {MUCH} /dev/urandom >{file}")));
    let script = format!("sha256sum <{file} >&2; cat {file}; rm {file}");
    let mut child = start(guest, &["--", "sh", "-c", &script]);
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut expected = String::new();
    errors.read_line(&mut expected).unwrap();
    let sum = timed("100 MiB of output", || {
        let output = child.stdout.take().unwrap();
        said(Command::new("sha256sum").stdin(output).output().unwrap())
    });
    assert_eq!(sum, expected.trim());
    assert!(child.wait().unwrap().success());
}

/// Kills the client of a command once that has said the number of its process.
fn without_client(guest: &Guest, options: &[&str], script: &str) -> u32 {
    let mut client = start(guest, &[options, &["--", "sh", "-c", script]].concat());
    let process = line(&mut client).parse().unwrap();
    // Its input stays open on this side.
    client.kill().unwrap();
    client.wait().unwrap();
    process
}

fn wait_in_guest(guest: &Guest, what: &str, condition: &str) {
    until(what, || sh(guest, condition).status.success().then_some(()));
}

/// docs/agent.md, "When the client has gone".
fn clients_that_are_killed(guest: &Guest) {
    // More output than is kept for a client: it is dropped, and delays nothing.
    let runs_on =
        "echo $$; cat; head -c 1000000 /dev/zero; echo ended >/run/outlived; exec sleep 1000000";
    let process = without_client(guest, &[], runs_on);
    wait_in_guest(guest, "its input to end", "grep -q ended /run/outlived");
    said(sh(guest, &format!("kill {process}")));

    let killed = "echo $$; sleep 1000000 & wait";
    let process = without_client(guest, &["--die-with-client"], killed);
    wait_in_guest(guest, "its process group to go", &format!("! pgrep --pgroup {process}"));

    let hangs_up = "trap 'echo hup >/run/hung-up; exit' HUP; echo $$; while :; do sleep 0.1; done";
    without_client(guest, &["--tty"], hangs_up);
    wait_in_guest(guest, "SIGHUP", "grep -q hup /run/hung-up");
    // Nothing is left of any.
    wait_in_guest(guest, "all to end", "! pgrep --full '[1]000000'");
}

#[test]
fn commands_run_fifty_at_once_write_100_mib_and_outlive_their_clients() {
    lab().run(|| {
        let scratch = Scratch::new();
        let guest = plan(&scratch).start();
        guest.answers();
        timed("boot", || said(exec(&guest, &["systemctl", "is-system-running", "--wait"])));

        timed("50 commands at once", || fifty_at_once(&guest));
        much_output(&guest);
        timed("clients that are killed", || clients_that_are_killed(&guest));

        said(tesseractl(&guest, &["stop"]));
        guest.finish().expect_power_off();
    });
}
