//! The network device: frames both ways, over a port with or without a header.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use devices::ports::NetPort;
use devices::virtio::Features;
use devices::virtio::net::{LONGEST, Net, RECEIVE, TRANSMIT, features};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::guest::seed::{Buffer, chain, host, initialise, migrate};
use crate::guest::{Machine, Model, drive};
use crate::input::Input;

/// Frames that come from the host, and what becomes of those of the guest.
struct Port {
    header: bool,
    coming: VecDeque<Vec<u8>>,
    /// What the next calls of `send` answer.
    answers: VecDeque<ErrorKind>,
}

impl NetPort for Port {
    fn has_header(&self) -> bool {
        self.header
    }

    fn offloads(&self) -> Features {
        match self.header {
            true => features::CSUM.with(features::GUEST_CSUM).with(features::GUEST_TSO4),
            false => Features::default(),
        }
    }

    fn set_offloads(&mut self, _: Features) {}

    fn receive<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        assert!(pieces.len() <= Self::MOST_PIECES);
        let frame = self.coming.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let mut left = &frame[..];
        for piece in pieces {
            let (here, after) = left.split_at(piece.len().min(left.len()));
            piece.copy_from(here);
            left = after;
        }
        let over = left.len().min(rest.len());
        rest[..over].copy_from_slice(&left[..over]);
        Ok(frame.len())
    }

    fn send<B: BitmapSlice>(&mut self, pieces: &[VolatileSlice<'_, B>]) -> io::Result<()> {
        assert!(pieces.len() <= Self::MOST_PIECES);
        let length: usize = pieces.iter().map(VolatileSlice::len).sum();
        assert!(length <= LONGEST);
        self.answers.pop_front().map_or(Ok(()), |kind| Err(kind.into()))
    }
}

struct Networks {
    header: bool,
}

impl Model for Networks {
    type Device = Net<Port>;

    fn device(&mut self) -> Net<Port> {
        let port = Port { header: self.header, coming: VecDeque::new(), answers: VecDeque::new() };
        Net::new(port, [2, 0, 0, 0, 0, 1], Some(1400))
    }

    fn host(&mut self, machine: &mut Machine<Net<Port>>, input: &mut Input<'_>) {
        let port = machine.device_mut().port_mut();
        match input.below(6) {
            0..=2 => {
                let length = match input.u8() {
                    0xff => LONGEST + 2 - input.below(20),
                    0xfe => usize::from(input.u16()),
                    length => usize::from(length) * 8,
                };
                // Frames that the guest takes no room for are few.
                if port.coming.len() < 8 {
                    port.coming.push_back(vec![0x5a; length]);
                }
                machine.notify(RECEIVE);
            }
            3 => {
                let kinds = [ErrorKind::WouldBlock, ErrorKind::NotConnected, ErrorKind::Other];
                let kind = input.one_of(&kinds);
                port.answers.push_back(kind);
            }
            4 => machine.notify(TRANSMIT),
            _ => {
                let up = input.flag();
                if machine.device_mut().set_link(up) {
                    machine.config_changed();
                }
            }
        }
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header = input.flag();
    drive(Networks { header }, input.rest());
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let receive = chain(0, &[Buffer::Writable(96), Buffer::Writable(0xfd)]);
    let small = chain(0, &[Buffer::Writable(12), Buffer::Writable(60)]);
    let send = chain(1, &[Buffer::Filled(&[0; 12]), Buffer::Filled(&[7; 60])]);
    let one = chain(1, &[Buffer::Filled(&[3; 90])]);
    let frame = host(&[0, 12]);
    let long = host(&[0, 0xfe, 0, 20]);
    let mut seeds = Vec::new();
    for header in [0, 1] {
        for wanted in [0, 1 << 15, u64::MAX] {
            let start = [vec![header], initialise(wanted, 2, 5)].concat();
            let traffic = [&receive[..], &small, &frame, &send, &one, &host(&[5, 0])].concat();
            seeds.push([&start[..], &traffic, &migrate(), &traffic].concat());
            seeds.push(
                [&start[..], &small, &small, &receive, &long, &host(&[3, 0]), &send].concat(),
            );
        }
    }
    seeds
}
