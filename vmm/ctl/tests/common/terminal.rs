//! `tesseractl` on a terminal of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::until;

/// `tesseractl`, its terminal, and what it has written there.
pub(crate) struct OnTerminal {
    pub(crate) master: File,
    terminal: OwnedFd,
    pub(crate) child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    /// With these words, this variable, and a terminal of this size.
    pub(crate) fn start(words: &[&str], (name, value): (&str, &str), size: Winsize) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let master = File::from(master);
        tcsetwinsize(&master, size).unwrap();
        let clone = || Stdio::from(terminal.as_fd().try_clone_to_owned().unwrap());
        // A session whose terminal it is, as that of a shell.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_tesseractl")])
            .args(words)
            .env(name, value)
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

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    pub(crate) fn shows(&self, what: &str) {
        until(what, || self.text().contains(what).then_some(()));
    }

    pub(crate) fn keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// The client itself, not the program that gives it a terminal. It is either the child or a child of that.
    pub(crate) fn client(&self) -> u32 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().map_or(pid, |child| child.parse().unwrap())
    }

    /// Its status; the terminal is as before.
    pub(crate) fn end(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw(), "the terminal is left raw: {}", self.text());
        status.code()
    }
}

pub(crate) fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
