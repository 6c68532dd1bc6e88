//! Input for the guest: read when the UART's FIFO has room, never kept back in the VMM.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::serial::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use crate::error::say;

/// The UART's receive FIFO has 64 bytes (vm-superio); more is never read at once.
const MAX_READ: usize = 64;

/// The escape key, as in QEMU and minicom.
const CONTROL_A: u8 = 0x01;

/// What the user's keys ask of the VMM itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    /// End the VM now.
    Quit,
}

/// Finds the escape sequences in what is typed: Ctrl-A x quits, Ctrl-A Ctrl-A sends one Ctrl-A. Ctrl-A
/// before any other key sends both.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes typed bytes: what is for the guest, and what is for the VMM.
    pub(crate) fn take(&mut self, typed: &[u8]) -> (Vec<u8>, Option<Verb>) {
        let mut guest = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (true, b'x' | b'X') => return (guest, Some(Verb::Quit)),
                (true, CONTROL_A) => guest.push(CONTROL_A),
                (true, other) => guest.extend([CONTROL_A, other]),
                (false, CONTROL_A) => self.escaped = true,
                (false, other) => guest.push(other),
            }
        }
        (guest, None)
    }
}

/// The serial device's receiving side.
#[derive(Clone)]
pub(super) struct Feeder {
    serial: Arc<Mutex<Serial>>,
    drained: Arc<EventFd>,
}

impl Feeder {
    pub(super) fn new(serial: Arc<Mutex<Serial>>) -> Result<Self, Error> {
        let drained = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::Event)?;
        let drained = Arc::new(drained);
        let raise = Arc::clone(&drained);
        // Full only if it is raised already.
        let on_drained = Box::new(move || drop(raise.write(1)));
        serial.lock().unwrap_or_else(PoisonError::into_inner).on_drained(on_drained);
        Ok(Self { serial, drained })
    }

    /// Raised when the guest has read all there was.
    pub(super) fn drained(&self) -> &EventFd {
        &self.drained
    }

    /// How many bytes the guest can take now.
    pub(super) fn room(&self) -> usize {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).capacity().min(MAX_READ)
    }

    /// Gives bytes to the guest. What does not fit is lost, so ask for room first.
    pub(super) fn feed(&self, bytes: &[u8]) {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).receive(bytes);
    }
}

/// Standard input, on the event loop.
pub(crate) struct Input<Q: FnMut(Verb)> {
    feeder: Feeder,
    file: File,
    keys: Option<Keys>,
    on_verb: Q,
    source: Source,
}

/// What is known of standard input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    /// On the event loop, watched.
    Watched,
    /// Off the event loop until the guest, whose FIFO is full, has read. Masked it would not do: a
    /// hang-up is reported through any mask.
    Held,
    /// A regular file: it cannot be watched, and can always be read.
    AlwaysReady,
    /// At its end.
    Ended,
}

const STDIN: u32 = 0;
const DRAINED: u32 = 1;

impl<Q: FnMut(Verb)> Input<Q> {
    /// Feeds the guest from standard input. With `keys`, the escape sequences are looked for.
    ///
    /// # Errors
    /// When standard input is closed, or the host gives no event.
    pub(crate) fn new(
        serial: Arc<Mutex<Serial>>,
        keys: Option<Keys>,
        on_verb: Q,
    ) -> Result<Self, Error> {
        let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(Error::Stdio)?;
        Self::reading(stdin.into(), serial, keys, on_verb)
    }

    fn reading(
        file: File,
        serial: Arc<Mutex<Serial>>,
        keys: Option<Keys>,
        on_verb: Q,
    ) -> Result<Self, Error> {
        let feeder = Feeder::new(serial)?;
        Ok(Self { feeder, file, keys, on_verb, source: Source::Ended })
    }

    fn event(&self) -> Events {
        Events::with_data_raw(self.file.as_raw_fd(), STDIN, EventSet::IN)
    }

    /// Reads once; `false` if nothing more will come for now.
    fn pass(&mut self) -> bool {
        // One byte may be held back by `keys` and come out with the next: leave room for it.
        let room = self.feeder.room().saturating_sub(usize::from(self.keys.is_some()));
        if room == 0 {
            return false;
        }
        let mut buffer = [0; MAX_READ];
        let read = match self.file.read(&mut buffer[..room]) {
            Ok(0) => {
                self.source = Source::Ended;
                return false;
            }
            Ok(n) => &buffer[..n],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => {
                self.source = Source::Ended;
                return false;
            }
        };
        match &mut self.keys {
            None => self.feeder.feed(read),
            Some(keys) => {
                let (guest, verb) = keys.take(read);
                self.feeder.feed(&guest);
                if let Some(verb) = verb {
                    (self.on_verb)(verb);
                }
            }
        }
        true
    }

    fn full(&self) -> bool {
        self.feeder.room() <= usize::from(self.keys.is_some())
    }
}

impl<Q: FnMut(Verb)> MutEventSubscriber for Input<Q> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let drained = Events::with_data(self.feeder.drained(), DRAINED, EventSet::IN);
        if ops.add(drained).is_err() {
            return;
        }
        self.source = match ops.add(self.event()) {
            Ok(()) => Source::Watched,
            // epoll refuses regular files, which never have a read wait.
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EPERM => {
                Source::AlwaysReady
            }
            Err(error) => {
                say(&format!("the console has no input, as it cannot be watched: {error}"));
                Source::Ended
            }
        };
        while self.source == Source::AlwaysReady && self.pass() {}
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == DRAINED {
            // Nothing is lost if it is not raised any more.
            let _ = self.feeder.drained().read();
        }
        match (self.source, events.data()) {
            (Source::AlwaysReady, DRAINED) => while self.pass() {},
            (Source::Held, DRAINED) if !self.full() && ops.add(self.event()).is_ok() => {
                self.source = Source::Watched;
            }
            (Source::Watched, STDIN) => {
                self.pass();
                // At its end, a terminal or pipe would wake the loop for ever.
                if self.source == Source::Ended {
                    let _ = ops.remove(self.event());
                } else if self.full() && ops.remove(self.event()).is_ok() {
                    self.source = Source::Held;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
