#![allow(clippy::unwrap_used)]

use std::env;
use std::process::{Command, Stdio};

use super::*;
use crate::sys::testing::terminal;

/// Set in the process that a test starts for itself, whose standard input is a terminal.
const INSIDE: &str = "TESSERA_TEST_TERMINAL";

/// Runs the test of this name once more, in a process whose standard input is a fresh terminal, and
/// says whether that process is this one already.
fn on_a_terminal(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        // A session of its own, whose terminal standard input becomes.
        rustix::process::setsid().unwrap();
        rustix::process::ioctl_tiocsctty(io::stdin()).unwrap();
        return true;
    }
    let (_user, terminal) = terminal();
    let run = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "")
        .stdin(terminal)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn modes() -> Termios {
    tcgetattr(io::stdin()).unwrap()
}

fn is_raw(modes: &Termios) -> bool {
    !modes.local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
}

#[test]
fn a_terminal_is_raw_until_dropped() {
    if !on_a_terminal("console::terminal::tests::a_terminal_is_raw_until_dropped") {
        return;
    }
    let before = modes();
    let terminal = RawTerminal::enter().unwrap().unwrap();
    assert!(is_raw(&modes()));
    assert_eq!(modes().output_modes, before.output_modes, "a newline still returns the carriage");
    drop(terminal);
    assert!(!is_raw(&modes()));
    assert_eq!(modes().local_modes, before.local_modes);
    assert_eq!(modes().input_modes, before.input_modes);
    assert_eq!(
        modes().special_codes[SpecialCodeIndex::VMIN],
        before.special_codes[SpecialCodeIndex::VMIN]
    );
}

#[test]
fn a_panic_restores_the_terminal_where_it_ends_the_process_only() {
    let test =
        "console::terminal::tests::a_panic_restores_the_terminal_where_it_ends_the_process_only";
    if !on_a_terminal(test) {
        return;
    }
    let ending = std::panic::catch_unwind(|| {
        let _terminal = RawTerminal::enter().unwrap().unwrap();
        assert!(std::thread::spawn(|| panic!("part of a test")).join().is_err());
        assert!(is_raw(&modes()), "the VM runs on");
        panic!("part of a test, too");
    });
    assert!(ending.is_err());
    assert!(!is_raw(&modes()));
}

#[test]
fn a_terminal_of_another_job_is_left_alone() {
    if !on_a_terminal("console::terminal::tests::a_terminal_of_another_job_is_left_alone") {
        return;
    }
    let mut foreground = Command::new("cat");
    std::os::unix::process::CommandExt::process_group(&mut foreground, 0);
    let mut foreground = foreground.stdin(Stdio::piped()).spawn().unwrap();
    let job = rustix::process::Pid::from_child(&foreground);
    rustix::termios::tcsetpgrp(io::stdin(), job).unwrap();
    assert!(RawTerminal::enter().unwrap().is_none());
    assert!(!is_raw(&modes()));
    drop(foreground.stdin.take());
    foreground.wait().unwrap();
}

#[test]
fn what_is_no_terminal_is_left_alone() {
    if !io::stdin().is_terminal() {
        assert!(RawTerminal::enter().unwrap().is_none());
    }
}
