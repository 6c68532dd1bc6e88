#![allow(clippy::unwrap_used)]

mod negotiation;
mod queues;
mod random;
mod serving;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::state::{RestoreError, Stateful};
use crate::testing::BrokenLine;
use crate::virtio::testing::{
    Bench, CountingEntropy, DATA, Descriptor, RecordingDoorbells, register, status,
};
use crate::virtio::{DeviceId, Head};

/// What the transport has called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    Activate(Features),
    Serve(usize),
    Reset,
}

/// A device that completes what it gets with 0, and remembers what happened.
#[derive(Debug)]
struct Probe {
    sizes: Vec<u16>,
    features: Features,
    config: [u8; 6],
    calls: Vec<Call>,
    /// Leaves chains where they are.
    idle: bool,
    /// Keeps a chain until the next one.
    held: Option<Head>,
    holds: bool,
    /// Where a driver that never stops has its available ring.
    endless: Option<u64>,
    /// A queue that is to be served after each write of the configuration space.
    due: Option<usize>,
    /// Where a driver has its available ring that makes a chain available as soon as the device has found
    /// none.
    late: Option<u64>,
}

impl Probe {
    fn new(sizes: &[u16]) -> Self {
        Self {
            sizes: sizes.to_vec(),
            features: Features(0),
            config: *b"config",
            calls: Vec::new(),
            idle: false,
            held: None,
            holds: false,
            endless: None,
            due: None,
            late: None,
        }
    }
}

impl Stateful for Probe {
    type State = Option<Head>;

    fn save(&self) -> Option<Head> {
        self.held
    }

    fn restore(&mut self, held: Option<Head>) -> Result<(), RestoreError> {
        self.held = held;
        Ok(())
    }
}

impl Device for Probe {
    fn id(&self) -> DeviceId {
        DeviceId(42)
    }

    fn features(&self) -> Features {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.checked_add(index);
            *byte = at.and_then(|at| self.config.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let offset = usize::try_from(offset).unwrap();
        for (index, byte) in data.iter().enumerate() {
            let at = offset.checked_add(index);
            if let Some(to) = at.and_then(|at| self.config.get_mut(at)) {
                *to = *byte;
            }
        }
        self.due
    }

    fn activate(&mut self, acked: Features) {
        self.calls.push(Call::Activate(acked));
    }

    fn serve<M: GuestMemory>(
        &mut self,
        queue: usize,
        ring: &mut Ring<'_, M>,
    ) -> Result<(), Broken> {
        self.calls.push(Call::Serve(queue));
        while !self.idle {
            let Some(chain) = ring.take()? else {
                if let Some(available) = self.late.take() {
                    advance(ring.memory(), available);
                }
                break;
            };
            chain.buffers()?;
            let done =
                if self.holds { self.held.replace(chain.head()) } else { Some(chain.head()) };
            if let Some(head) = done {
                ring.complete(head, 0)?;
            }
            if let Some(available) = self.endless {
                advance(ring.memory(), available);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.calls.push(Call::Reset);
        self.held = None;
    }
}

/// Makes one more chain available on the ring at `available`.
fn advance<M: GuestMemory>(memory: &M, available: u64) {
    let index = GuestAddress(available + 2);
    let next = memory.read_obj::<u16>(index).unwrap().wrapping_add(1);
    memory.write_obj(next, index).unwrap();
}

/// A device with two queues, of 8 and 4, that no driver has touched.
fn fresh() -> Bench<Probe> {
    Bench::new(Probe::new(&[8, 4]))
}

/// The same device, whose driver is ready, with these of the transport's features.
fn started(features: Features) -> Bench<Probe> {
    let mut bench = Bench::started_with(Probe::new(&[8, 4]), features);
    bench.transport.device_mut().calls.clear();
    bench
}

fn calls(bench: &mut Bench<Probe>) -> Vec<Call> {
    std::mem::take(&mut bench.transport.device_mut().calls)
}

const ANY: Descriptor = Descriptor::readable(DATA, 1);

#[test]
fn a_driver_finds_the_device() {
    let mut bench = fresh();

    assert_eq!(bench.read(0x000), 0x7472_6976);
    assert_eq!(bench.read(0x004), 2);
    assert_eq!(bench.read(0x008), 42);
    assert_eq!(bench.read(0x00c), VENDOR_ID);
}

const VENDOR_ID: u32 = registers::VENDOR;

#[test]
fn a_register_that_cannot_be_read_reads_zero() {
    let write_only = [
        0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4,
        0x0ac,
    ];
    let unknown = [0x018, 0x01c, 0x028, 0x02c, 0x03c, 0x040, 0x048, 0x054, 0x06c, 0x0c4, 0x0f8];
    let mut bench = started(Features::EVENT_IDX);

    for register in write_only.into_iter().chain(unknown) {
        assert_eq!(bench.read(register), 0, "{register:#x}");
    }
}

#[test]
fn there_is_no_shared_memory_and_no_queue_reset() {
    let mut bench = fresh();

    for select in [0, 1, u32::MAX] {
        bench.write(0x0ac, select);
        for register in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
            assert_eq!(bench.read(register), u32::MAX);
        }
    }
    bench.write(0x0c0, 1);
    assert_eq!(bench.read(0x0c0), 0);
}

#[test]
fn registers_are_32_bits_wide_and_aligned() {
    for width in 1..=8 {
        for offset in 0..registers::CONFIG {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            let mut bench = fresh();
            let mut data = vec![0xff; width];

            bench.transport.write(offset, &data);
            bench.transport.read(offset, &mut data);

            assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
            assert_eq!(bench.status(), 0, "{width} bytes at {offset:#x}");
        }
    }
}

#[test]
fn configuration_space_takes_any_width_at_any_offset() {
    for width in 0..=8 {
        for offset in (0..9).chain([0xfff, u64::MAX - registers::CONFIG - 2, u64::MAX / 2]) {
            let mut bench = fresh();
            let mut expected = b"config".to_vec();
            let here = expected.iter_mut().enumerate().filter(|(index, _)| {
                (offset..offset.saturating_add(width as u64)).contains(&(*index as u64))
            });
            here.for_each(|(_, byte)| *byte = 0xaa);

            bench.transport.write(registers::CONFIG + offset, &vec![0xaa; width]);
            let mut data = vec![0xff; width];
            bench.transport.read(registers::CONFIG + offset, &mut data);

            assert_eq!(bench.transport.device().config[..], expected[..]);
            let read: Vec<u8> = (0..width)
                .map(|index| {
                    let at = usize::try_from(offset).unwrap() + index;
                    expected.get(at).copied().unwrap_or(0)
                })
                .collect();
            assert_eq!(data, read, "{width} bytes at {offset:#x}");
        }
    }
}

#[test]
fn configuration_space_begins_where_registers_end() {
    let mut bench = fresh();
    let mut data = [0xff; 8];

    // It would be the generation and four bytes of configuration space.
    bench.transport.write(registers::CONFIG - 4, &data);
    bench.transport.read(registers::CONFIG - 4, &mut data);

    assert_eq!(data, [0; 8]);
    assert_eq!(&bench.transport.device().config, b"config");
}

#[test]
fn what_a_write_of_the_configuration_makes_due_is_for_the_thread_that_serves() {
    let mut bench = started(Features::default());
    bench.transport.write(registers::CONFIG, b"C");
    assert!(bench.doorbells.take().is_empty());

    bench.transport.device_mut().due = Some(1);
    bench.transport.write(registers::CONFIG, b"C");

    assert_eq!(bench.doorbells.take(), [1]);
}

#[test]
fn a_change_of_configuration_interrupts_a_driver_that_is_ready() {
    let mut bench = started(Features::default());
    let before = bench.read(register::CONFIG_GENERATION);

    bench.transport.config_changed();

    assert_ne!(bench.read(register::CONFIG_GENERATION), before);
    assert_eq!((bench.take_interrupts(), bench.line.take()), (2, 1));
}

#[test]
fn a_change_of_configuration_before_the_driver_is_ready_changes_the_generation() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));
    let before = bench.read(register::CONFIG_GENERATION);

    bench.transport.config_changed();

    assert_ne!(bench.read(register::CONFIG_GENERATION), before);
    assert_eq!((bench.take_interrupts(), bench.line.take()), (0, 0));
}

#[test]
fn a_driver_that_has_given_up_is_not_interrupted() {
    let mut bench = started(Features::default());
    bench.advance(status::FAILED);

    bench.transport.config_changed();

    assert_eq!((bench.take_interrupts(), bench.line.take()), (0, 0));
}

#[test]
fn generations_go_round() {
    let mut bench = fresh();
    bench.transport.config_generation = u32::MAX;

    bench.transport.config_changed();

    assert_eq!(bench.read(register::CONFIG_GENERATION), 0);
}

#[test]
fn interrupts_are_pending_until_each_is_acknowledged() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);
    bench.transport.config_changed();
    assert_eq!(bench.read(register::INTERRUPT_STATUS), 3);

    bench.write(register::INTERRUPT_ACK, 1);
    assert_eq!(bench.read(register::INTERRUPT_STATUS), 2);
    bench.write(register::INTERRUPT_ACK, !2);
    assert_eq!(bench.read(register::INTERRUPT_STATUS), 2);
    bench.write(register::INTERRUPT_ACK, u32::MAX);
    assert_eq!(bench.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn an_event_while_another_is_pending_is_an_edge_of_its_own() {
    let mut bench = started(Features::default());

    bench.transport.config_changed();
    bench.transport.config_changed();

    assert_eq!(bench.line.take(), 2);
}

#[test]
fn a_cut_line_is_counted_and_leaves_the_interrupt_pending() {
    let memory = crate::virtio::testing::memory();
    let (line, doorbells) = (Box::new(BrokenLine), Box::new(RecordingDoorbells::default()));
    let mut transport = Transport::new(Probe::new(&[]), memory, line, doorbells);
    for (offset, value) in [(0x070, 3_u32), (0x024, 1), (0x020, 1), (0x070, 8), (0x070, 15)] {
        transport.write(offset, &value.to_le_bytes());
    }

    // The third and fourth bit of the status come before the driver's turn.
    transport.write(0x070, &15_u32.to_le_bytes());
    transport.config_changed();

    assert!(transport.is_active());
    assert_eq!(transport.counters().irq_failures.load(Ordering::Relaxed), 1);
    let mut pending = [0; 4];
    transport.read(0x060, &mut pending);
    assert_eq!(pending, [2, 0, 0, 0]);
}

#[test]
fn what_passes_is_counted() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);
    bench.kick(7);
    bench.rings(0).make_available(8);
    bench.kick(0);

    let counters = bench.transport.counters();
    let all = [
        &counters.turns,
        &counters.interrupts,
        &counters.irq_failures,
        &counters.resets,
        &counters.broken,
    ];
    // Each queue gets a turn when the driver is ready.
    assert_eq!(all.map(|counter| counter.load(Ordering::Relaxed)), [4, 2, 0, 1, 1]);
}

#[test]
fn it_shows_itself_without_its_memory() {
    let shown = format!("{:?}", fresh().transport);

    assert!(shown.starts_with("Transport { device: Probe"), "{shown}");
}
