//! The host's side, made of vectors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::virtio::vsock::{PeerId, Peers};

/// A stream's far end. Clones of [`FakePeers`] share all of them.
#[derive(Debug, Default)]
pub(super) struct FakeStream {
    to_guest: VecDeque<u8>,
    from_guest: Vec<u8>,
    /// The far end writes nothing more.
    pub(super) ended: bool,
    /// The far end is closed.
    pub(super) gone: bool,
    /// How much it still takes.
    pub(super) room: usize,
    pub(super) wants_room: bool,
    pub(super) writes_ended: bool,
    pub(super) reads_ended: bool,
    pub(super) closed: bool,
    pub(super) accepted: Option<u32>,
}

#[derive(Debug, Default)]
struct Host {
    now: Duration,
    listening: BTreeSet<u32>,
    streams: BTreeMap<PeerId, FakeStream>,
    asked: Vec<u32>,
    reads: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FakePeers(Arc<Mutex<Host>>);

impl FakePeers {
    fn lock(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap()
    }

    pub(super) fn listen(&self, port: u32) {
        self.lock().listening.insert(port);
    }

    /// A process that wants a connection.
    pub(super) fn new_peer(&self) -> PeerId {
        let mut host = self.lock();
        let peer = PeerId(host.streams.len() as u64 + 1);
        host.streams.insert(peer, FakeStream { room: usize::MAX, ..FakeStream::default() });
        peer
    }

    pub(super) fn with<T>(&self, peer: PeerId, look: impl FnOnce(&mut FakeStream) -> T) -> T {
        look(self.lock().streams.get_mut(&peer).unwrap())
    }

    pub(super) fn write(&self, peer: PeerId, bytes: &[u8]) {
        self.with(peer, |stream| stream.to_guest.extend(bytes));
    }

    pub(super) fn received(&self, peer: PeerId) -> Vec<u8> {
        self.with(peer, |stream| stream.from_guest.clone())
    }

    pub(super) fn received_length(&self, peer: PeerId) -> usize {
        self.with(peer, |stream| stream.from_guest.len())
    }

    pub(super) fn unread(&self, peer: PeerId) -> usize {
        self.with(peer, |stream| stream.to_guest.len())
    }

    /// The ports that the guest asked for.
    pub(super) fn asked(&self) -> Vec<u32> {
        self.lock().asked.clone()
    }

    pub(super) fn reads(&self) -> usize {
        self.lock().reads
    }

    pub(super) fn all_streams(&self) -> u64 {
        self.lock().streams.len() as u64
    }

    pub(super) fn open_streams(&self) -> usize {
        self.lock().streams.values().filter(|stream| !stream.closed).count()
    }

    pub(super) fn pass(&self, time: Duration) {
        self.lock().now += time;
    }

    fn open<T>(
        &self,
        peer: PeerId,
        look: impl FnOnce(&mut FakeStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut host = self.lock();
        let stream = host.streams.get_mut(&peer).unwrap();
        assert!(!stream.closed, "{peer:?} is used after it was closed");
        look(stream)
    }
}

impl FakeStream {
    fn room(&self) -> io::Result<usize> {
        match self.gone {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false if self.room == 0 => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(self.room),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        assert!(!self.writes_ended);
        self.from_guest.extend(bytes);
        self.room = self.room.saturating_sub(bytes.len());
    }
}

impl Peers for FakePeers {
    fn now(&self) -> Duration {
        self.lock().now
    }

    fn connect(&mut self, port: u32) -> io::Result<PeerId> {
        self.lock().asked.push(port);
        let listens = self.lock().listening.contains(&port);
        if listens { Ok(self.new_peer()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }

    fn accepted(&mut self, peer: PeerId, port: u32) -> io::Result<()> {
        self.open(peer, |stream| {
            stream.accepted = Some(port);
            if stream.gone { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        })
    }

    fn read<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        into: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize> {
        self.lock().reads += 1;
        self.open(peer, |stream| {
            assert!(!stream.reads_ended && !into.is_empty());
            let mut done = 0;
            for slice in into {
                let length = slice.len().min(stream.to_guest.len());
                let bytes: Vec<u8> = stream.to_guest.drain(..length).collect();
                slice.copy_from(&bytes);
                done += length;
            }
            let ended = stream.ended || stream.gone;
            if done == 0 && !ended { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(done) }
        })
    }

    fn write<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        from: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize> {
        self.open(peer, |stream| {
            let mut left = stream.room()?;
            let mut done = 0;
            for slice in from {
                let mut bytes = vec![0; slice.len().min(left)];
                slice.copy_to(&mut bytes);
                stream.take(&bytes);
                left -= bytes.len();
                done += bytes.len();
            }
            Ok(done)
        })
    }

    fn write_bytes(&mut self, peer: PeerId, from: &[u8]) -> io::Result<usize> {
        self.open(peer, |stream| {
            let length = stream.room()?.min(from.len());
            stream.take(&from[..length]);
            Ok(length)
        })
    }

    fn want_room(&mut self, peer: PeerId, wanted: bool) {
        self.open(peer, |stream| {
            assert_ne!(stream.wants_room, wanted);
            stream.wants_room = wanted;
            Ok(())
        })
        .unwrap();
    }

    fn end_writes(&mut self, peer: PeerId) {
        self.open(peer, |stream| {
            stream.writes_ended = true;
            Ok(())
        })
        .unwrap();
    }

    fn end_reads(&mut self, peer: PeerId) {
        self.open(peer, |stream| {
            stream.reads_ended = true;
            Ok(())
        })
        .unwrap();
    }

    fn close(&mut self, peer: PeerId) {
        self.open(peer, |stream| {
            stream.closed = true;
            Ok(())
        })
        .unwrap();
    }
}
