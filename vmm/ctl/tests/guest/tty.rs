//! Commands with a terminal: size, keys, and the user's terminal as it was on every way out.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;
use rustix::termios::tcsetwinsize;

use super::common::terminal::{OnTerminal, size};
use super::common::until;
use super::harness::{Guest, runs, signal};

/// A verb for this guest, on a terminal of its own.
fn start(guest: &Guest, verb: &str, arguments: &[&str]) -> OnTerminal {
    let name = guest.name();
    let words = [&[verb, name.as_str()], arguments].concat();
    OnTerminal::start(&words, ("TERM", "vt220"), size(33, 101))
}

#[test]
fn the_command_has_the_terminals_size_and_its_changes() {
    let guest = Guest::start();
    let script =
        "stty size; echo $TERM; until [ \"$(stty size)\" = '40 90' ]; do sleep 0.02; done; exit 4";
    let mut terminal = start(&guest, "exec", &["--tty", "--", "sh", "-c", script]);
    terminal.shows("33 101\r\nvt220\r\n");

    tcsetwinsize(&terminal.master, size(40, 90)).unwrap();

    assert_eq!(terminal.end(), Some(4));
}

#[test]
fn keys_are_the_commands() {
    let guest = Guest::start();
    let mut terminal =
        start(&guest, "exec", &["--tty", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    terminal.shows("ready");
    assert!(terminal.is_raw());

    // Ctrl-C, which the guest's terminal makes a signal.
    terminal.keys(b"\x03");

    assert_eq!(terminal.end(), Some(130));
}

#[test]
fn a_shell_is_a_login_shell_that_ends_by_its_exit() {
    let guest = Guest::start();
    let mut terminal = start(&guest, "shell", &["--env", "PS1=prompt:"]);

    terminal.keys(b"echo $((6*7))=$0; exit 7\n");

    terminal.shows("42=-");
    assert_eq!(terminal.end(), Some(7));
}

#[test]
fn the_terminal_is_restored_however_it_ends() {
    let mut guest = Guest::start();
    let script = "trap '' INT TERM; echo ready; sleep 1000";
    let arguments = ["--tty", "--die-with-client", "--", "sh", "-c", script];

    for end in [Signal::TERM, Signal::HUP] {
        let mut terminal = start(&guest, "exec", &arguments);
        terminal.shows("ready");
        until("the client ends", || {
            if runs(terminal.client()) {
                signal(terminal.client(), end);
            }
            terminal.child.try_wait().unwrap()
        });
        assert_eq!(terminal.end(), Some(128 + end.as_raw()));
    }
    let mut terminal = start(&guest, "exec", &arguments);
    terminal.shows("ready");
    guest.kill_agent();
    assert_eq!(terminal.end(), Some(125));
}

#[test]
fn a_client_that_is_killed_hangs_up() {
    let guest = Guest::start();
    let hung_up = guest.path("hung-up");
    let script = format!(
        "trap 'echo 1 >{}; exit' HUP; echo ready; while :; do sleep 0.02; done",
        hung_up.display()
    );
    let terminal = start(&guest, "exec", &["--tty", "--", "sh", "-c", &script]);
    terminal.shows("ready");

    signal(terminal.client(), Signal::KILL);

    until("SIGHUP", || fs::read_to_string(&hung_up).ok().filter(|text| text == "1\n"));
}

#[test]
fn input_that_ends_is_the_end_of_a_terminals_input() {
    let guest = Guest::start();

    for input in ["whole line\n", "half a line", ""] {
        let mut child = guest
            .command(
                "exec",
                &["--tty", "--", "sh", "-c", "stty -echo -onlcr; echo ready; exec cat"],
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = Vec::new();
        while !ready.ends_with(b"ready\n") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stdout, &mut byte).unwrap();
            ready.push(byte[0]);
        }
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);

        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut rest).unwrap();
        assert_eq!(rest, input);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

/// Output that a command has written right before its end.
#[test]
fn the_end_of_a_terminals_output_is_not_lost() {
    let guest = Guest::start();

    for round in 0..10 {
        let output =
            guest.run("exec", &["--tty", "--", "sh", "-c", "head -c 30000 /dev/zero | tr '\\0' x"]);
        assert_eq!(output.stdout.len(), 30_000, "round {round}");
    }
}
