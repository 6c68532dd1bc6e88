#![allow(clippy::unwrap_used)]

mod random;
mod receiving;
mod sending;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::*;
use crate::bus::MmioDevice;
use crate::state::RestoreError;
use crate::virtio::mmio::Served;
use crate::virtio::testing::{Bench, DATA, Descriptor, register};

const MAC: Mac = [2, 0, 0, 0, 0, 7];

/// A network whose frames a test puts in and takes out. Clones are one network.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    has_header: bool,
    offloads: Features,
    acked: Option<Features>,
    coming: VecDeque<io::Result<Vec<u8>>>,
    sent: Vec<Vec<u8>>,
    /// What sending answers, then nothing but success.
    answers: VecDeque<ErrorKind>,
}

impl Network {
    fn with_header() -> Self {
        let network = Self::default();
        network.0.lock().unwrap().has_header = true;
        network
    }

    fn put(&self, frame: &[u8]) {
        self.0.lock().unwrap().coming.push_back(Ok(frame.to_vec()));
    }

    fn fail(&self, kind: ErrorKind) {
        self.0.lock().unwrap().coming.push_back(Err(kind.into()));
    }

    fn answer(&self, kind: ErrorKind) {
        self.0.lock().unwrap().answers.push_back(kind);
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap().sent)
    }

    fn coming(&self) -> usize {
        self.0.lock().unwrap().coming.len()
    }
}

impl NetPort for Network {
    fn has_header(&self) -> bool {
        self.0.lock().unwrap().has_header
    }

    fn offloads(&self) -> Features {
        self.0.lock().unwrap().offloads
    }

    fn set_offloads(&mut self, acked: Features) {
        self.0.lock().unwrap().acked = Some(acked);
    }

    fn receive<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        let coming = self.0.lock().unwrap().coming.pop_front();
        let frame = coming.unwrap_or(Err(ErrorKind::WouldBlock.into()))?;
        let mut left = &frame[..];
        for piece in pieces.iter().take(Self::MOST_PIECES) {
            let (here, after) = left.split_at(piece.len().min(left.len()));
            piece.copy_from(here);
            left = after;
        }
        let over = left.len().min(rest.len());
        rest[..over].copy_from_slice(&left[..over]);
        Ok(frame.len())
    }

    fn send<B: BitmapSlice>(&mut self, pieces: &[VolatileSlice<'_, B>]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        if let Some(kind) = inner.answers.pop_front() {
            return Err(kind.into());
        }
        let mut frame = Vec::new();
        for piece in pieces {
            let start = frame.len();
            frame.resize(start + piece.len(), 0);
            piece.copy_to(&mut frame[start..]);
        }
        inner.sent.push(frame);
        Ok(())
    }
}

type NetBench = Bench<Net<Network>>;

/// A device whose driver has these features.
fn bench(network: &Network, acked: Features) -> NetBench {
    Bench::started_with(Net::new(network.clone(), MAC, None), acked.with(Features::EVENT_IDX))
}

fn receive(bench: &mut NetBench) -> Option<Progress> {
    bench.transport.with_queue(RECEIVE, Net::receive)
}

fn transmit(bench: &mut NetBench) -> Option<Progress> {
    bench.transport.with_queue(TRANSMIT, Net::transmit)
}

fn memory(bench: &NetBench, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bench.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn counted(bench: &NetBench, counter: fn(&Counters) -> &AtomicU64) -> u64 {
    counter(&bench.transport.device().counters()).load(Ordering::Relaxed)
}

/// Bytes that differ from their neighbours.
fn frame(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 256 + 1) as u8).collect()
}

#[test]
fn it_offers_offloads_only_with_the_header_that_describes_them() {
    let network = Network::default();
    network.0.lock().unwrap().offloads = features::CSUM.with(features::HOST_TSO4);
    let own = features::MAC.with(features::STATUS).with(features::MRG_RXBUF);

    assert_eq!(Net::new(network.clone(), MAC, None).features(), own);
    let with_mtu = Net::new(network.clone(), MAC, Some(1400));
    assert_eq!(with_mtu.features(), own.with(features::MTU));
    network.0.lock().unwrap().has_header = true;
    let all = own.with(features::CSUM).with(features::HOST_TSO4);
    assert_eq!(Net::new(network.clone(), MAC, None).features(), all);
    network.0.lock().unwrap().offloads = Features(u64::MAX);
    assert_eq!(Net::new(network, MAC, None).features(), own.with(features::OFFLOADS));
}

#[test]
fn its_configuration_space_is_read_and_not_written() {
    let mut bench = Bench::new(Net::new(Network::default(), MAC, Some(9000)));
    bench.transport.write(register::CONFIG, &[0xff; 12]);
    let mut space = [0xee; 16];

    bench.transport.read(register::CONFIG, &mut space);

    assert_eq!(space, [2, 0, 0, 0, 0, 7, 1, 0, 0, 0, 0x28, 0x23, 0, 0, 0, 0]);
    assert_eq!(bench.read(0x008), 1);
}

#[test]
fn the_driver_is_notified_of_a_link_that_changes() {
    let mut bench = bench(&Network::default(), features::STATUS);
    bench.take_interrupts();
    for (up, changed) in [(true, false), (false, true), (false, false), (true, true)] {
        let before = bench.read(register::CONFIG_GENERATION);
        if bench.transport.device_mut().set_link(up) {
            bench.transport.config_changed();
        }
        assert_eq!(bench.take_interrupts(), if changed { 2 } else { 0 });
        assert_eq!(bench.read(register::CONFIG_GENERATION) - before, u32::from(changed));
        assert_eq!(bench.read(register::CONFIG + 4) >> 16, u32::from(up));
    }
    assert_eq!(counted(&bench, |counters| &counters.link_changes), 2);
}

#[test]
fn the_port_gets_what_the_driver_takes_when_it_starts_and_when_it_is_restored() {
    let network = Network::with_header();
    network.0.lock().unwrap().offloads = features::CSUM.with(features::GUEST_CSUM);
    let bench = bench(&network, features::GUEST_CSUM.with(features::MRG_RXBUF));
    assert_eq!(network.0.lock().unwrap().acked, Some(features::GUEST_CSUM));

    let other = Network::with_header();
    other.0.lock().unwrap().offloads = features::CSUM.with(features::GUEST_CSUM);
    bench.migrate(Net::new(other.clone(), MAC, None)).unwrap();

    assert_eq!(other.0.lock().unwrap().acked, Some(features::GUEST_CSUM));
}

#[test]
fn a_restored_driver_keeps_its_address_and_its_buffers() {
    let network = Network::default();
    let mut first = bench(&network, features::MRG_RXBUF);
    let head = first.rings(RECEIVE).offer(&[Descriptor::writable(DATA, 2000)]);
    assert_eq!(receive(&mut first), Some(Progress::Port));

    let mut second = first.migrate(Net::new(network.clone(), [2; 6], None)).unwrap();

    let mut mac = [0; 6];
    second.transport.read(register::CONFIG, &mut mac);
    assert_eq!(mac, MAC);
    network.put(&frame(60));
    assert_eq!(receive(&mut second), Some(Progress::Driver));
    assert_eq!(second.rings(RECEIVE).used(), [(head.into(), 72)]);
}

#[test]
fn a_state_with_another_mtu_or_more_offloads_is_refused() {
    let network = Network::with_header();
    network.0.lock().unwrap().offloads = features::CSUM;
    let with = || bench(&network, features::CSUM);
    let failed = with().migrate(Net::new(network.clone(), MAC, Some(1500))).map(drop);
    assert!(matches!(failed, Err(RestoreError::Configuration { .. })));
    let failed = with().migrate(Net::new(Network::default(), MAC, None)).map(drop);
    assert!(matches!(failed, Err(RestoreError::Configuration { .. })));
}

#[test]
fn the_transport_may_serve_it_too() {
    let network = Network::default();
    let mut bench = bench(&network, features::MRG_RXBUF);
    bench.rings(RECEIVE).offer(&[Descriptor::writable(DATA, 2000)]);
    network.put(&frame(60));

    assert_eq!(bench.transport.serve(RECEIVE), Served::Done);

    assert_eq!(bench.rings(RECEIVE).used().len(), 1);
}
