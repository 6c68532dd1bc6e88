//! The whole terminal, for as long as the table is shown: its other screen, keys without Enter.
//!
//! # References
//! XTerm Control Sequences, "Private Mode Set (DECSET)" 1049 and 25; ECMA-48, "ED", "EL", "CUP"

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::guest::stdio;
use crate::terminal::{RawTerminal, size};

/// The other screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// As it was.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// The size of a terminal that does not say it.
const SIZE: (usize, usize) = (80, 24);
/// Ctrl-C, in raw mode a key as any other.
const CTRL_C: u8 = 3;

/// What a key means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Key {
    /// q, Ctrl-C, or the end of input.
    Quit,
    /// Any other.
    Other,
}

/// The terminal; dropped, it is as before.
pub(super) struct Screen {
    raw: Arc<Option<RawTerminal>>,
    shown: String,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        let raw = Arc::new(RawTerminal::enter()?);
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
        let other = Arc::clone(&raw);
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                leave(&other);
                std::process::exit(128_i32.saturating_add(signal));
            }
        });
        let screen = Self { raw, shown: String::new() };
        put(ENTER)?;
        Ok(screen)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (usize, usize) {
        size().map_or(SIZE, |size| (size.columns.into(), size.rows.into()))
    }

    /// Shows lines from the top, as many as there is room for.
    pub(super) fn draw(&mut self, lines: &[String], height: usize) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        let is_cut = lines.len() > height.saturating_sub(1);
        let room = height.saturating_sub(2 + usize::from(is_cut));
        for line in lines.iter().take(if is_cut { room } else { lines.len() }) {
            text.push_str(line);
            text.push_str("\x1b[K\r\n");
        }
        if is_cut {
            text.push_str(&format!("({} more lines)\x1b[K\r\n", lines.len().saturating_sub(room)));
        }
        text.push_str("\x1b[Jq ends");
        if text != self.shown {
            put(&text)?;
            self.shown = text;
        }
        Ok(())
    }

    /// The next key, if there is one within the time.
    pub(super) fn key(&self, timeout: Duration) -> io::Result<Option<Key>> {
        let stdin = rustix::stdio::stdin();
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut keys = [0; 64];
        let count = stdio::read_input(&mut keys);
        let quits = |key: &u8| matches!(*key, b'q' | b'Q' | CTRL_C);
        Ok(Some(match count == 0 || keys[..count].iter().any(quits) {
            true => Key::Quit,
            false => Key::Other,
        }))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave(&self.raw);
    }
}

fn leave(raw: &Option<RawTerminal>) {
    // Nothing can be done about a terminal that has gone.
    let _ = put(LEAVE);
    if let Some(raw) = raw {
        raw.restore();
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}
