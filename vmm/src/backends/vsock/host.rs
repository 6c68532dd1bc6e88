//! The host's side of the guest's sockets: a listening Unix socket, and a stream for each connection.
//!
//! All of them are watched by an epoll instance of their own, which itself is one event of the thread that serves
//! the device. Streams are watched for edges: each fact comes once, so a stream that nothing can be done with for
//! now costs no turns.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::vsock::{MOST_CONNECTIONS, PeerId, Peers, Readiness, Vsock};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::{Shutdown, SocketType, shutdown};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::greeting::{Greeting, Progress};
use crate::backends::gate::QueueGate;
use crate::exit_status::ExitStatus;
use crate::sys::accept::{Remedy, is_short_of_memory};
use crate::sys::unix_socket::{self, Kind, Socket};
use crate::sys::{open_files, vectored};

/// Connections that wait to be accepted. Others wait in connect(2), or fail with EAGAIN.
const BACKLOG: i32 = 128;

/// Most processes of which it is not known yet what they want. Others wait to be accepted.
const MOST_GREETINGS: usize = 64;

/// Most streams: connections, and processes that may want one.
pub const MOST_STREAMS: usize = MOST_CONNECTIONS + MOST_GREETINGS;

/// Descriptors that are left to the rest of the VM: each of 512 vCPUs has one, and every device some. Where the
/// process may have few, they are half of them.
const OTHERS: u64 = 1024;

/// How long such a process has to say what it wants: a person may type it.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(60);

/// Most connections that are accepted in one turn.
const MOST_ACCEPTS: usize = 16;

/// Most events that are taken in one turn; the others are still there in the next.
const MOST_EVENTS: usize = 64;

/// How long nothing is accepted while the host is short of memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The number of the listener's events. Streams have theirs from 1 on.
const LISTENER: u64 = 0;

/// The processes of the host.
pub struct HostPeers {
    epoll: Arc<OwnedFd>,
    socket: Socket,
    path: PathBuf,
    streams: BTreeMap<PeerId, UnixStream>,
    /// How many there may be.
    places: usize,
    greetings: BTreeMap<PeerId, (Greeting, Duration)>,
    next: u64,
    clock: Clock,
    /// Whether the listener is watched.
    listens: bool,
    /// When it is watched again after the host had been short of memory.
    pause: Option<Duration>,
}

impl HostPeers {
    /// Listens at `path`. No time passes while `gate` is closed.
    ///
    /// # Errors
    /// When the path cannot be had.
    pub(crate) fn listen(path: &Path, gate: QueueGate) -> Result<Self, Error> {
        let kind = Kind { backlog: BACKLOG, ..Kind::PRIVATE_STREAM };
        let socket = Socket::bind_as(path, kind)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(watch)?;
        let listener = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, socket.listener(), listener, epoll::EventFlags::IN).map_err(watch)?;
        Ok(Self {
            epoll: Arc::new(epoll),
            socket,
            path: path.to_owned(),
            streams: BTreeMap::new(),
            places: places(),
            greetings: BTreeMap::new(),
            next: LISTENER + 1,
            clock: Clock { start: Instant::now(), gate },
            listens: true,
            pause: None,
        })
    }

    /// Readable while there is something for [`take_events`].
    pub(super) fn events(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<PeerId> {
        let peer = PeerId(self.next);
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(peer.0), flags(false))?;
        self.next += 1;
        self.streams.insert(peer, stream);
        Ok(peer)
    }

    fn stream(&self, peer: PeerId) -> io::Result<&UnixStream> {
        self.streams.get(&peer).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn shut_down(&self, peer: PeerId, how: Shutdown) {
        if let Ok(stream) = self.stream(peer) {
            // It fails for a stream that is closed already.
            let _ = shutdown(stream, how);
        }
    }

    /// Accepts what waits.
    fn accept(&mut self) {
        for _ in 0..MOST_ACCEPTS {
            if !self.has_place() {
                break;
            }
            match self.socket.accept() {
                Ok(stream) => self.greet(stream),
                Err(error) => match Remedy::for_accept(&error) {
                    Remedy::TurnAway if self.socket.turn_away() => {}
                    Remedy::TurnAway | Remedy::Pause => self.pause = Some(self.clock.now() + PAUSE),
                    Remedy::None if error.kind() == io::ErrorKind::WouldBlock => break,
                    Remedy::None => {}
                },
            }
            if self.pause.is_some() {
                break;
            }
        }
        self.listen_if_possible();
    }

    fn greet(&mut self, stream: UnixStream) {
        // What cannot be watched is closed.
        if stream.set_nonblocking(true).is_ok()
            && let Ok(peer) = self.add(stream)
        {
            let deadline = self.clock.now() + GREETING_TIMEOUT;
            self.greetings.insert(peer, (Greeting::default(), deadline));
        }
    }

    /// Whether another process can say what it wants.
    fn has_place(&self) -> bool {
        self.greetings.len() < MOST_GREETINGS && self.streams.len() < self.places
    }

    /// Has the socket's file stay when the device goes.
    pub(crate) fn leave_socket(&mut self) {
        self.socket.leave_file();
    }

    /// Watches the listener as long as what it has can be accepted.
    fn listen_if_possible(&mut self) {
        let wanted = self.has_place() && self.pause.is_none();
        if wanted == self.listens {
            return;
        }
        let flags = if wanted { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
        let listener = epoll::EventData::new_u64(LISTENER);
        if epoll::modify(&self.epoll, self.socket.listener(), listener, flags).is_ok() {
            self.listens = wanted;
        }
    }

    /// When something is to be done without an event.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.greetings.values().map(|(_, deadline)| *deadline).chain(self.pause).min()
    }

    /// Closes what has not said what it wants.
    pub(super) fn expire(&mut self) {
        let now = self.clock.now();
        let late = |(_, (_, deadline)): &(&PeerId, &(Greeting, Duration))| *deadline <= now;
        for peer in self.greetings.iter().filter(late).map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.forget(peer);
        }
        self.pause = self.pause.filter(|pause| *pause > now);
        self.listen_if_possible();
    }

    /// As if so much time had passed.
    #[cfg(test)]
    pub(super) fn pass(&mut self, time: Duration) {
        self.clock.start -= time;
    }

    /// As if the process could have so many descriptors.
    #[cfg(test)]
    pub(super) fn limit(&mut self, places: usize) {
        self.places = places;
    }

    /// How many streams are open, and of how many it is not known yet what they want.
    #[cfg(test)]
    pub(super) fn open_streams(&self) -> (usize, usize) {
        (self.streams.len(), self.greetings.len())
    }

    fn forget(&mut self, peer: PeerId) {
        self.greetings.remove(&peer);
        self.streams.remove(&peer);
    }
}

/// As many streams as there are descriptors for, after asking for as many as are allowed. A guest that connects
/// again and again is not to take those that the control socket needs.
fn places() -> usize {
    let have = open_files::raise_limit(OTHERS + MOST_STREAMS as u64);
    let places = have - OTHERS.min(have / 2);
    usize::try_from(places).unwrap_or(MOST_STREAMS).min(MOST_STREAMS)
}

/// Takes what has happened on the host, a turn's worth.
pub(super) fn take_events(device: &mut Vsock<HostPeers>) {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(MOST_EVENTS);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A wait that is interrupted is repeated by its thread, for which there are still events.
    if epoll::wait(&device.peers().epoll, spare_capacity(&mut events), Some(&now)).is_err() {
        return;
    }
    for event in events {
        let (data, flags) = (event.data, event.flags);
        match data.u64() {
            LISTENER => device.peers_mut().accept(),
            peer => on_stream(device, PeerId(peer), flags),
        }
    }
}

fn on_stream(device: &mut Vsock<HostPeers>, peer: PeerId, flags: epoll::EventFlags) {
    let peers = device.peers_mut();
    let Some((greeting, _)) = peers.greetings.get_mut(&peer) else {
        let any = |wanted| flags.intersects(wanted);
        return device.on_peer(
            peer,
            Readiness {
                readable: any(epoll::EventFlags::IN),
                writable: any(epoll::EventFlags::OUT),
                ended: any(epoll::EventFlags::RDHUP),
                gone: any(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
            },
        );
    };
    let Some(stream) = peers.streams.get(&peer) else { return };
    match greeting.read(stream) {
        Progress::Unfinished if !flags.intersects(epoll::EventFlags::HUP) => return,
        Progress::Port(port) => {
            peers.greetings.remove(&peer);
            device.connect(peer, port);
            // It may have left with its last byte; nothing announces that again.
            if flags.intersects(epoll::EventFlags::HUP) {
                device.on_peer(peer, Readiness { gone: true, ..Readiness::default() });
            } else if flags.intersects(epoll::EventFlags::RDHUP) {
                device.on_peer(peer, Readiness { ended: true, ..Readiness::default() });
            }
        }
        Progress::Unfinished | Progress::Wrong => peers.forget(peer),
    }
    device.peers_mut().listen_if_possible();
}

/// What a stream is watched for.
fn flags(room: bool) -> epoll::EventFlags {
    let always = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    if room { always | epoll::EventFlags::OUT } else { always }
}

impl Peers for HostPeers {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    /// What listens for port 52 has the path of the socket with `_52` behind it.
    fn connect(&mut self, port: u32) -> io::Result<PeerId> {
        if self.streams.len() >= self.places {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let stream = unix_socket::connect(Path::new(&path), SocketType::STREAM)?;
        self.add(stream)
    }

    fn accepted(&mut self, peer: PeerId, port: u32) -> io::Result<()> {
        // Nothing has been written before, so it finds room.
        let mut stream = self.stream(peer)?;
        stream.write_all(format!("OK {port}\n").as_bytes())
    }

    fn read<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        into: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize> {
        vectored::readv(self.stream(peer)?, into).map_err(passing)
    }

    fn write<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        from: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize> {
        vectored::writev(self.stream(peer)?, from).map_err(passing)
    }

    fn write_bytes(&mut self, peer: PeerId, from: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream(peer)?;
        loop {
            match stream.write(from) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done.map_err(passing),
            }
        }
    }

    fn want_room(&mut self, peer: PeerId, wanted: bool) {
        if let Ok(stream) = self.stream(peer) {
            let data = epoll::EventData::new_u64(peer.0);
            // It cannot fail for a stream that is watched.
            let _ = epoll::modify(&self.epoll, stream.as_fd(), data, flags(wanted));
        }
    }

    fn end_writes(&mut self, peer: PeerId) {
        self.shut_down(peer, Shutdown::Write);
    }

    fn end_reads(&mut self, peer: PeerId) {
        self.shut_down(peer, Shutdown::Read);
    }

    /// A stream that is closed leaves the epoll instance, as there is no other descriptor of it.
    fn close(&mut self, peer: PeerId) {
        self.streams.remove(&peer);
        self.listen_if_possible();
    }
}

/// Time that stands still while the VM is paused.
struct Clock {
    start: Instant,
    gate: QueueGate,
}

impl Clock {
    fn now(&self) -> Duration {
        self.start.elapsed().saturating_sub(self.gate.time_closed())
    }
}

fn watch(errno: rustix::io::Errno) -> Error {
    Error::Watch(errno.into())
}

/// Why the guest's sockets cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] unix_socket::Error),
    /// There is no descriptor for the events.
    #[error("cannot watch the sockets of the guest's connections")]
    Watch(#[source] io::Error),
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Socket(error) => error.status(),
            Self::Watch(_) => ExitStatus::Unavailable,
        }
    }
}

/// A kernel that is short of memory has no room for now: what is not taken is sent later.
fn passing(error: io::Error) -> io::Error {
    if is_short_of_memory(&error) { io::ErrorKind::WouldBlock.into() } else { error }
}
