//! Commands with a terminal: size, keys, and the user's terminal as it was on every way out.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::harness::{Guest, runs, signal, text, until};

/// `tesseractl` on a terminal of its own.
struct OnTerminal {
    master: fs::File,
    terminal: OwnedFd,
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(guest: &Guest, command: &str, arguments: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let master = fs::File::from(master);
        tcsetwinsize(&master, size(33, 101)).unwrap();
        let clone = || Stdio::from(terminal.as_fd().try_clone_to_owned().unwrap());
        // A session whose terminal it is, as that of a shell.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_tesseractl"), command])
            .arg(guest.name())
            .args(arguments)
            .env("TERM", "vt220")
            .stdin(clone())
            .stdout(clone())
            .stderr(clone())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kept, reader) = (Arc::clone(&seen), master.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = std::io::Read::read(&mut &reader, &mut chunk) {
                kept.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        Self { master, terminal, child, seen }
    }

    fn shows(&self, what: &str) {
        until(what, || text(&self.seen.lock().unwrap()).contains(what).then_some(()));
    }

    fn keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// The client itself, not the program that gives it a terminal. It is either the child or a child of that.
    fn client(&self) -> u32 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().map_or(pid, |child| child.parse().unwrap())
    }

    /// Its status; the terminal is as before.
    fn end(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw(), "{}", text(&self.seen.lock().unwrap()));
        status.code()
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn the_command_has_the_terminals_size_and_its_changes() {
    let guest = Guest::start();
    let script =
        "stty size; echo $TERM; until [ \"$(stty size)\" = '40 90' ]; do sleep 0.02; done; exit 4";
    let mut terminal = OnTerminal::start(&guest, "exec", &["--tty", "--", "sh", "-c", script]);
    terminal.shows("33 101\r\nvt220\r\n");

    tcsetwinsize(&terminal.master, size(40, 90)).unwrap();

    assert_eq!(terminal.end(), Some(4));
}

#[test]
fn keys_are_the_commands() {
    let guest = Guest::start();
    let mut terminal = OnTerminal::start(
        &guest,
        "exec",
        &["--tty", "--", "sh", "-c", "echo ready; exec sleep 1000"],
    );
    terminal.shows("ready");
    assert!(terminal.is_raw());

    // Ctrl-C, which the guest's terminal makes a signal.
    terminal.keys(b"\x03");

    assert_eq!(terminal.end(), Some(130));
}

#[test]
fn a_shell_is_a_login_shell_that_ends_by_its_exit() {
    let guest = Guest::start();
    let mut terminal = OnTerminal::start(&guest, "shell", &["--env", "PS1=prompt:"]);

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
        let mut terminal = OnTerminal::start(&guest, "exec", &arguments);
        terminal.shows("ready");
        until("the client ends", || {
            if runs(terminal.client()) {
                signal(terminal.client(), end);
            }
            terminal.child.try_wait().unwrap()
        });
        assert_eq!(terminal.end(), Some(128 + end.as_raw()));
    }
    let mut terminal = OnTerminal::start(&guest, "exec", &arguments);
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
    let terminal = OnTerminal::start(&guest, "exec", &["--tty", "--", "sh", "-c", &script]);
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
