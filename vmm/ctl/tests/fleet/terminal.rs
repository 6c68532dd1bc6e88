//! What a user with a terminal sees: the console, the table of `top`, and the terminal as it was afterwards.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::harness::{Place, said, until};

/// `tesseractl` on a terminal of its own.
struct OnTerminal {
    master: File,
    terminal: OwnedFd,
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(place: &Place, words: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let master = File::from(master);
        tcsetwinsize(&master, size(12, 70)).unwrap();
        let clone = || Stdio::from(terminal.as_fd().try_clone_to_owned().unwrap());
        // A session whose terminal it is, as that of a shell.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_tesseractl")])
            .args(words)
            .env("TESSERA_RUNTIME_DIR", place.path(""))
            .stdin(clone())
            .stdout(clone())
            .stderr(clone())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut reader) = (Arc::clone(&seen), master.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                kept.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        Self { master, terminal, child, seen }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn shows(&self, what: &str) {
        until(what, || self.text().contains(what).then_some(()));
    }

    fn keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Its exit status; the terminal is as it was before.
    fn end(&mut self) -> i32 {
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw(), "the terminal is left raw");
        status.code().unwrap()
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn place() -> Place {
    let place = Place::new();
    said(&place.run(&["--kernel", "Image", "--id", "web"]));
    place
}

#[test]
fn a_console_is_detached_from_with_its_key() {
    let place = place();
    let mut console = OnTerminal::start(&place, &["console", "web"]);
    console.shows("Ctrl-] detaches");
    console.shows("login: ");
    assert!(console.is_raw());

    // Ctrl-C is the guest's.
    console.keys(b"root\x03\r");
    console.shows("root\u{3}\r");
    console.keys(b"x\x1dy");

    assert_eq!(console.end(), 0);
    console.shows("detached from web");
    assert!(said(&place.tesseractl(&["status", "web"])).contains("Running"));
}

#[test]
fn a_console_ends_with_its_vm() {
    let place = place();
    let mut console = OnTerminal::start(&place, &["console", "web"]);
    console.shows("login: ");

    place.tesseractl(&["stop", "web", "--force"]);

    assert_eq!(console.end(), 0);
    console.shows("web has closed its console");
}

#[test]
fn the_table_is_renewed_until_it_is_ended() {
    let place = place();
    let mut top = OnTerminal::start(&place, &["top", "--interval", "0.1"]);
    top.shows("web  Running");
    assert!(top.is_raw());

    place.tesseractl(&["pause", "web"]);
    top.shows("web  Paused");
    said(&place.run(&["--kernel", "Image", "--id", "db"]));
    top.shows("db   Running");
    place.tesseractl(&["kill", "db"]);
    top.shows("\u{1b}[H1 VMs");
    top.keys(b"q");

    assert_eq!(top.end(), 0);
    top.shows("\u{1b}[?25h\u{1b}[?1049l");
    let text = top.text();
    // No line is longer than the terminal is wide.
    let lines = text.split("\r\n").map(|line| line.replace("\u{1b}[H", "").replace("\u{1b}[K", ""));
    assert!(lines.filter(|line| !line.contains('\u{1b}')).all(|line| line.chars().count() <= 70));
}

#[test]
fn more_vms_than_lines_are_counted() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| place.run(&["--kernel", "Image"]));
        }
    });

    let mut top = OnTerminal::start(&place, &["top"]);

    // Of 15 lines, 9 fit 12 rows beside the count and the help.
    top.shows("(6 more lines)");
    top.keys(&[3]);
    assert_eq!(top.end(), 0);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let place = place();
    for (words, sign) in [(&["top"][..], "web  Running"), (&["console", "web"], "login: ")] {
        let mut session = OnTerminal::start(&place, words);
        session.shows(sign);
        // setsid(1) waits for the program that it has started.
        let path = format!("/proc/{0}/task/{0}/children", session.child.id());
        let child = std::fs::read_to_string(path).unwrap();
        let child = child.trim().parse().ok().unwrap_or(session.child.id().try_into().unwrap());

        kill_process(Pid::from_raw(child).unwrap(), Signal::TERM).unwrap();

        assert_eq!(session.end(), 143, "{words:?}");
    }
}
