//! The block device: requests of any form to a small disk.

use devices::ports::Throttle;
use devices::virtio::block::{Block, Disk, Extent, Operation, Request, SECTOR, Status};
use devices::virtio::mmio::Served;

use crate::guest::seed::{Buffer, chain, host, initialise, migrate};
use crate::guest::{Machine, Model, Ram, drive};
use crate::input::Input;

const SECTORS: u64 = 64;

/// Lets everything through.
struct Open;

impl Throttle for Open {
    fn is_open(&mut self) -> bool {
        true
    }

    fn spend(&mut self, _: u64) {}
}

struct Disks {
    disk: Disk,
    contents: Vec<u8>,
    /// Requests are left under way until the host does something.
    slow: bool,
    ram: Option<Ram>,
    under_way: Vec<Request>,
}

impl Disks {
    /// Does a request, whose extents must lie on the disk.
    fn perform(&mut self, machine: &Machine<Block>, operation: &Operation) {
        let size = SECTORS * SECTOR;
        let Some(memory) = &self.ram else { return };
        match operation {
            Operation::Read { offset, into } => {
                assert!(offset + into.len() <= size);
                let at = *offset as usize;
                let _ = into.clone().write(&**memory, &self.contents[at..at + into.len() as usize]);
            }
            Operation::Write { offset, from, .. } => {
                assert!(offset + from.len() <= size && !self.disk.read_only);
                let at = *offset as usize;
                let bytes = &mut self.contents[at..at + from.len() as usize];
                let _ = from.clone().read(&**memory, bytes);
            }
            Operation::Flush => {}
            Operation::Discard(parts) | Operation::WriteZeroes(parts) => {
                assert!(!self.disk.read_only && self.disk.discards);
                for Extent { offset, length, .. } in parts {
                    assert!(offset + length <= size);
                    self.contents[*offset as usize..(offset + length) as usize].fill(0);
                }
            }
        }
        assert_eq!(machine.device().disk(), self.disk);
    }

    fn finish(&mut self, machine: &mut Machine<Block>, status: Status) {
        let requests = std::mem::take(&mut self.under_way);
        for request in &requests {
            self.perform(machine, request.operation());
        }
        machine.device().in_flight().done(requests.len());
        let done = requests.into_iter().map(|request| (request, status));
        machine.with_queue(0, |device, ring| device.complete(ring, done));
    }
}

impl Model for Disks {
    type Device = Block;

    fn device(&mut self) -> Block {
        self.under_way.clear();
        Block::new(self.disk, "a serial number", Box::new(Open))
    }

    fn has(&mut self, ram: &Ram) {
        self.ram = Some(ram.clone());
    }

    fn serve(&mut self, machine: &mut Machine<Block>, queue: usize) -> Served {
        let served = machine.serve_part(queue);
        self.under_way.extend(machine.device_mut().take());
        // A reset waits for what is under way: this thread is the one that it would wait for.
        if self.slow {
            machine.device().in_flight().abandon();
        } else {
            self.finish(machine, Status::Ok);
        }
        served
    }

    fn host(&mut self, machine: &mut Machine<Block>, input: &mut Input<'_>) {
        let status = input.one_of(&[Status::Ok, Status::IoError, Status::Unsupported]);
        self.finish(machine, status);
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let options = input.u8();
    let disk = Disk {
        sectors: SECTORS,
        read_only: options & 1 != 0,
        discards: options & 2 != 0,
        block_size: if options & 4 != 0 { 4096 } else { 512 },
    };
    let contents = vec![0; (SECTORS * SECTOR) as usize];
    let disks = Disks { disk, contents, slow: options & 8 != 0, ram: None, under_way: Vec::new() };
    drive(disks, input.rest());
}

/// The header of a request (5.2.6).
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let status = Buffer::Writable(1);
    let sector = [Buffer::Readable(0xfc), Buffer::Writable(0xfc)];
    let segment = [&3u64.to_le_bytes()[..], &5u32.to_le_bytes(), &1u32.to_le_bytes()].concat();
    let requests: Vec<Vec<u8>> = [(0, 2), (1, 3), (4, 0), (8, 0), (11, 0), (13, 0)]
        .into_iter()
        .map(|(kind, at)| {
            let header = header(kind, at);
            let header = Buffer::Filled(&header);
            match kind {
                0 => chain(0, &[header, sector[1], status]),
                1 => chain(0, &[header, sector[0], status]),
                8 => chain(0, &[header, Buffer::Writable(20), status]),
                11 | 13 => chain(0, &[header, Buffer::Filled(&segment), status]),
                _ => chain(0, &[header, status]),
            }
        })
        .collect();
    let all = requests.concat();
    let mut seeds: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| [vec![2], initialise(u64::MAX, 1, 7), request.clone()].concat())
        .collect();
    for options in [0, 1, 2, 3, 6, 10] {
        let start = [vec![options], initialise(u64::MAX, 1, 4)].concat();
        seeds.push([start, all.clone(), host(&[1]), migrate(), all.clone()].concat());
    }
    seeds
}
