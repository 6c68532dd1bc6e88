//! The guest's console on a Unix socket: one client at a time.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::serial::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

use super::Error;
use super::input::Feeder;
use crate::error::say;
use crate::sys::accept::{AcceptPause, Remedy};
use crate::sys::unix_socket::Socket;

/// The attached client, shared between the event loop, which attaches it, and the vCPU that writes.
#[derive(Clone, Debug, Default)]
pub struct Client(Arc<Mutex<Option<UnixStream>>>);

impl Client {
    fn lock(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the client takes at once, and says how much that was. A client that does not read
    /// loses output; it must not hold up the guest.
    pub(super) fn send(&self, bytes: &[u8]) -> usize {
        let Some(stream) = &*self.lock() else {
            return 0;
        };
        send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap_or(0)
    }

    /// Whether an attached client has hung up. One that did so while the guest's FIFO was full was not
    /// being watched.
    fn has_gone(&self) -> bool {
        let Some(stream) = &*self.lock() else {
            return false;
        };
        let mut asked = [PollFd::new(stream, PollFlags::empty())];
        poll(&mut asked, Some(&Timespec::default())).is_ok()
            && asked[0].revents().contains(PollFlags::HUP)
    }
}

/// The console's socket, on the event loop. Its file goes with it.
pub(crate) struct Listener {
    socket: Socket,
    pause: AcceptPause,
    client: Client,
    feeder: Option<Feeder>,
    attached: Option<RawFd>,
    watched: bool,
}

const LISTENER: u32 = 0;
const CLIENT: u32 = 1;
const DRAINED: u32 = 2;
const PAUSED: u32 = 3;

impl Listener {
    /// Listens on `path`.
    ///
    /// # Errors
    /// When the socket cannot be made there, or the host gives no timer.
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        let socket = Socket::bind(path)?;
        let pause = AcceptPause::new().map_err(Error::Event)?;
        let client = Client::default();
        Ok(Self { socket, pause, client, feeder: None, attached: None, watched: false })
    }

    /// The client's side for the guest's output.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Feeds the guest from the client.
    ///
    /// # Errors
    /// When the host gives no event.
    pub(crate) fn feed(&mut self, serial: Arc<Mutex<Serial>>) -> Result<(), Error> {
        self.feeder = Some(Feeder::new(serial)?);
        Ok(())
    }

    fn event(&self) -> Events {
        Events::with_data(self.socket.listener(), LISTENER, EventSet::IN)
    }

    /// Attaches the next client; one that comes while another is attached is turned away.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let stream = match self.socket.accept() {
            Ok(stream) => stream,
            Err(error) => {
                return match Remedy::for_accept(&error) {
                    Remedy::TurnAway if self.socket.turn_away() => {}
                    Remedy::TurnAway | Remedy::Pause => self.pause.start(self.event(), ops),
                    Remedy::None => {}
                };
            }
        };
        if self.client.has_gone() {
            self.detach(ops);
        }
        if self.attached.is_some() || stream.set_nonblocking(true).is_err() {
            return;
        }
        let fd = stream.as_raw_fd();
        if ops.add(Events::with_data_raw(fd, CLIENT, EventSet::IN)).is_ok() {
            self.attached = Some(fd);
            self.watched = true;
            *self.client.lock() = Some(stream);
        }
    }

    fn detach(&mut self, ops: &mut EventOps<'_>) {
        if let Some(fd) = self.attached.take() {
            let _ = ops.remove(Events::with_data_raw(fd, CLIENT, EventSet::IN));
            *self.client.lock() = None;
        }
    }

    /// Reads once from the client, as much as the guest has room for.
    fn receive(&mut self, ops: &mut EventOps<'_>) {
        let room = self.feeder.as_ref().map_or(0, Feeder::room);
        if room == 0 {
            return self.watch(false, ops);
        }
        let mut buffer = [0; 64];
        let room = room.min(buffer.len());
        let read = match &mut *self.client.lock() {
            Some(stream) => stream.read(&mut buffer[..room]),
            None => return,
        };
        match read {
            Ok(n) if n > 0 => {
                if let Some(feeder) = &self.feeder {
                    feeder.feed(&buffer[..n]);
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Ok(_) | Err(_) => self.detach(ops),
        }
    }

    /// Watches the client for input, or waits until the guest has room. Removed from the loop rather
    /// than masked, as a hang-up is reported through any mask.
    fn watch(&mut self, on: bool, ops: &mut EventOps<'_>) {
        let Some(fd) = self.attached else { return };
        let client = Events::with_data_raw(fd, CLIENT, EventSet::IN);
        let changed = match (on, self.watched) {
            (true, false) => ops.add(client).is_ok(),
            (false, true) => ops.remove(client).is_ok(),
            _ => false,
        };
        if changed {
            self.watched = on;
        }
    }
}

impl MutEventSubscriber for Listener {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let paused = Events::with_data(&self.pause, PAUSED, EventSet::IN);
        let drained = self.feeder.as_ref().map(|feeder| feeder.drained());
        let drained = drained.map(|event| Events::with_data(event, DRAINED, EventSet::IN));
        for event in [Some(self.event()), Some(paused), drained].into_iter().flatten() {
            // The guest runs all the same.
            if let Err(error) = ops.add(event) {
                say(&format!(
                    "no client reaches the console's socket, as it cannot be watched: {error}"
                ));
                return;
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            LISTENER => self.accept(ops),
            CLIENT => self.receive(ops),
            PAUSED => self.pause.end(self.event(), ops),
            _ => {
                if let Some(feeder) = &self.feeder {
                    // Nothing is lost if it is not raised any more.
                    let _ = feeder.drained().read();
                }
                self.watch(true, ops);
            }
        }
    }
}

#[cfg(test)]
mod tests;
