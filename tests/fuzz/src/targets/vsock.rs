//! The socket device: packets of any form, and streams of the host that do anything.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::time::Duration;

use devices::virtio::mmio::Served;
use devices::virtio::vsock::{MOST_CONNECTIONS, PeerId, Peers, RX, Readiness, TX, Vsock};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::guest::seed::{Buffer, chain, host, initialise, migrate};
use crate::guest::{Machine, Model, drive};
use crate::input::Input;

const CID: u32 = 3;

/// The far end of a stream.
#[derive(Default)]
struct Stream {
    to_guest: usize,
    room: usize,
    ended: bool,
    gone: bool,
}

/// The host's streams, none of which may be used after it was closed.
#[derive(Default)]
struct Host {
    now: Duration,
    given: u64,
    streams: BTreeMap<PeerId, Stream>,
}

impl Host {
    fn new_peer(&mut self) -> PeerId {
        self.given += 1;
        let peer = PeerId(self.given);
        self.streams.insert(peer, Stream { room: 300, ..Stream::default() });
        peer
    }

    fn stream(&mut self, peer: PeerId) -> &mut Stream {
        match self.streams.get_mut(&peer) {
            Some(stream) => stream,
            None => panic!("{peer:?} is used after it was closed"),
        }
    }
}

impl Peers for Host {
    fn now(&self) -> Duration {
        self.now
    }

    fn connect(&mut self, port: u32) -> io::Result<PeerId> {
        match port % 4 {
            3 => Err(ErrorKind::ConnectionRefused.into()),
            _ => Ok(self.new_peer()),
        }
    }

    fn accepted(&mut self, peer: PeerId, _: u32) -> io::Result<()> {
        match self.stream(peer).gone {
            true => Err(ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn read<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        into: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize> {
        let length: usize = into.iter().map(VolatileSlice::len).sum();
        let stream = self.stream(peer);
        if stream.to_guest == 0 && !stream.ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = stream.to_guest.min(length);
        stream.to_guest -= taken;
        Ok(taken)
    }

    fn write<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        from: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize> {
        let length = from.iter().map(VolatileSlice::len).sum();
        self.take(peer, length)
    }

    fn write_bytes(&mut self, peer: PeerId, from: &[u8]) -> io::Result<usize> {
        self.take(peer, from.len())
    }

    fn want_room(&mut self, peer: PeerId, _: bool) {
        self.stream(peer);
    }

    fn end_writes(&mut self, peer: PeerId) {
        self.stream(peer);
    }

    fn end_reads(&mut self, peer: PeerId) {
        self.stream(peer);
    }

    fn close(&mut self, peer: PeerId) {
        assert!(self.streams.remove(&peer).is_some(), "{peer:?} is closed twice");
    }
}

impl Host {
    fn take(&mut self, peer: PeerId, length: usize) -> io::Result<usize> {
        let stream = self.stream(peer);
        if stream.gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if stream.room == 0 && length > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = stream.room.min(length);
        stream.room -= taken;
        Ok(taken)
    }
}

struct Sockets;

/// As the thread of the device does after each event.
fn follow(machine: &mut Machine<Vsock<Host>>) {
    if machine.device().has_packets() {
        machine.notify(RX);
    }
    if machine.device_mut().resume_packets() {
        machine.notify(TX);
    }
}

impl Model for Sockets {
    type Device = Vsock<Host>;

    fn device(&mut self) -> Vsock<Host> {
        Vsock::new(CID, Host::default())
    }

    fn serve(&mut self, machine: &mut Machine<Vsock<Host>>, queue: usize) -> Served {
        let served = machine.serve(queue);
        if queue == TX {
            follow(machine);
        }
        served
    }

    fn host(&mut self, machine: &mut Machine<Vsock<Host>>, input: &mut Input<'_>) {
        let device = machine.device_mut();
        match input.below(4) {
            0 => {
                let peer = device.peers_mut().new_peer();
                device.connect(peer, u32::from(input.u8()));
            }
            1 => {
                device.peers_mut().now += Duration::from_secs(input.u8().into());
                device.expire();
            }
            _ => {
                let peer = PeerId(u64::from(input.u8()) % (device.peers().given + 1) + 1);
                let (news, data) = (input.u8(), usize::from(input.u8()) * 4);
                let news = Readiness {
                    readable: news & 1 != 0,
                    writable: news & 2 != 0,
                    ended: news & 12 == 4,
                    gone: news & 24 == 8,
                };
                if let Some(stream) = device.peers_mut().streams.get_mut(&peer) {
                    stream.to_guest += if news.readable { data } else { 0 };
                    stream.room = if news.writable { data } else { stream.room };
                    stream.ended |= news.ended;
                    stream.gone |= news.gone;
                }
                device.on_peer(peer, news);
            }
        }
        follow(machine);
    }

    fn check(&self, machine: &Machine<Vsock<Host>>) {
        let device = machine.device();
        assert!(device.peers().streams.len() <= MOST_CONNECTIONS);
        let connections = device.counters().connections.load(std::sync::atomic::Ordering::Relaxed);
        assert!(connections <= MOST_CONNECTIONS as u64);
        assert!(device.peers().streams.len() as u64 <= connections);
    }
}

pub(super) fn run(data: &[u8]) {
    drive(Sockets, data);
}

/// A packet of the guest (5.10.6).
fn packet(ports: (u32, u32), length: u32, operation: u16, flags: u32) -> Vec<u8> {
    let mut bytes = u64::from(CID).to_le_bytes().to_vec();
    bytes.extend(2u64.to_le_bytes());
    for field in [ports.0, ports.1, length] {
        bytes.extend(field.to_le_bytes());
    }
    for field in [1, operation] {
        bytes.extend(field.to_le_bytes());
    }
    for field in [flags, 4096, 0] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    const FIRST_HOST_PORT: u32 = 1 << 30;
    let send =
        |ports, operation, flags| chain(1, &[Buffer::Filled(&packet(ports, 0, operation, flags))]);
    let data =
        |ports| chain(1, &[Buffer::Filled(&packet(ports, 10, 5, 0)), Buffer::Filled(&[1; 10])]);
    let room: Vec<u8> =
        (0..6).flat_map(|_| chain(0, &[Buffer::Writable(44), Buffer::Writable(0xfd)])).collect();
    let start = [initialise(0, 3, 5), room].concat();
    let ours = (9, 52);
    let opened = [send(ours, 1, 0), data(ours), send(ours, 6, 0)].concat();
    let theirs = (7, FIRST_HOST_PORT);
    let accepted = [host(&[0, 7]), send(theirs, 2, 0), host(&[2, 0, 3, 60])].concat();
    let every: Vec<u8> = (0..8).flat_map(|operation| send(ours, operation, 3)).collect();
    vec![
        [&start[..], &opened, &host(&[2, 0, 3, 60]), &send(ours, 4, 3)].concat(),
        [&start[..], &accepted, &send(theirs, 3, 0)].concat(),
        [&start[..], &opened, &host(&[2, 0, 12, 0]), &data(ours)].concat(),
        [&start[..], &opened, &migrate(), &start, &accepted].concat(),
        [&start[..], &every, &host(&[1, 200])].concat(),
        [&host(&[0, 7])[..], &start, &host(&[1, 255]), &host(&[1, 255])].concat(),
    ]
}
