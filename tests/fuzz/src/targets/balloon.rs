//! The balloon: pages and ranges of any kind, and what is given back for them.

use devices::ports::{Discarded, GuestRange, Reclaim};
use devices::virtio::Features;
use devices::virtio::balloon::{Balloon, BalloonConfig, Role};
use vm_memory::GuestAddress;

use crate::guest::seed::{Buffer, chain, host, initialise, migrate};
use crate::guest::{Machine, Model, RAM, drive};
use crate::input::Input;

/// The memory that the balloon knows, of which the guest that fuzzes has a part.
const KNOWN: GuestRange = GuestRange { start: GuestAddress(RAM), length: 16 << 20 };

/// Checks that what is given back is memory of the guest.
struct Host {
    page: u64,
    huge: bool,
    refuses: bool,
}

impl Reclaim for Host {
    fn page_size(&self) -> u64 {
        self.page
    }

    fn discard(&mut self, range: GuestRange) -> Discarded {
        check(range);
        match self.refuses {
            true => Discarded { discarded: 0, failed: range.length },
            false => Discarded { discarded: range.length, failed: 0 },
        }
    }

    fn huge_page_size(&self) -> Option<u64> {
        self.huge.then_some(2 << 20)
    }

    fn renew(&mut self, range: GuestRange) {
        check(range);
        assert!(range.start.0.is_multiple_of(2 << 20) && range.length.is_multiple_of(2 << 20));
    }
}

fn check(range: GuestRange) {
    let end = range.start.0.checked_add(range.length);
    assert!(range.start.0 >= RAM && end.is_some_and(|end| end <= RAM + KNOWN.length), "{range:?}");
}

struct Balloons(u8);

impl Model for Balloons {
    type Device = Balloon;

    fn device(&mut self) -> Balloon {
        let options = self.0;
        let config = BalloonConfig {
            reporting: options & 1 != 0,
            deflate_on_oom: options & 2 != 0,
            target: 1 << 20,
        };
        let page = if options & 4 != 0 { 16 << 10 } else { 4 << 10 };
        let host = Host { page, huge: options & 8 != 0, refuses: options & 16 != 0 };
        Balloon::new(config, Box::new(host), KNOWN)
    }

    fn host(&mut self, machine: &mut Machine<Balloon>, input: &mut Input<'_>) {
        let balloon = machine.device_mut();
        match input.below(3) {
            0 => {
                let target = u64::from(input.u16()) << 10;
                if balloon.set_target(target) {
                    machine.config_changed();
                }
            }
            1 => balloon.set_reporting(input.flag()),
            _ => {
                balloon.request_statistics();
                if let Some(queue) = balloon.queue_of(Role::Statistics) {
                    machine.notify(queue);
                }
            }
        }
    }

    fn check(&self, machine: &Machine<Balloon>) {
        let balloon = machine.device();
        assert!(balloon.target() <= KNOWN.length);
        let inflated = &balloon.counters().inflated;
        assert!(inflated.load(std::sync::atomic::Ordering::Relaxed) <= KNOWN.length);
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let options = input.u8();
    drive(Balloons(options), input.rest());
}

fn pages(first: u32) -> Vec<u8> {
    (first..first + 20).flat_map(u32::to_le_bytes).collect()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let frame = (RAM >> 12) as u32;
    let (list, other) = (pages(frame + 3), pages(frame + 700));
    let statistics = [&[0, 0][..], &77u64.to_le_bytes(), &[4, 0], &99u64.to_le_bytes()].concat();
    let traffic = [
        chain(0, &[Buffer::Filled(&list)]),
        chain(0, &[Buffer::Filled(&other), Buffer::Filled(&list)]),
        chain(1, &[Buffer::Filled(&list)]),
        chain(2, &[Buffer::Filled(&statistics)]),
        host(&[2]),
        chain(3, &[Buffer::Writable(0xfd), Buffer::Writable(0xfd)]),
        host(&[0, 0, 4]),
    ]
    .concat();
    let mut seeds = Vec::new();
    for options in [0, 1, 5, 11, 17, 31] {
        for wanted in [0, u64::MAX, Features::BALLOON_STATS_VQ.0] {
            let start = [vec![options], initialise(wanted, 5, 6)].concat();
            seeds.push([&start[..], &traffic, &migrate(), &traffic].concat());
        }
    }
    seeds
}
