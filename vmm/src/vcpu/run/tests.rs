#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use devices::bus::{Bus, MmioDevice};

use super::*;
use crate::vcpu::OutputThrottle;
use crate::vcpu::fake::{Event, FakeVcpu, Guest, Step};

const DEVICE: GuestAddress = GuestAddress(0x1000_0000);
const NOWHERE: GuestAddress = GuestAddress(0x1800_0000);

/// Answers every load with the same bytes, and keeps what is stored.
#[derive(Default)]
struct Device {
    answer: [u8; 8],
    stored: Vec<(u64, Vec<u8>)>,
}

impl MmioDevice for Device {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.answer[..data.len()]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.stored.push((offset, data.to_vec()));
    }
}

struct Bench {
    guest: Guest,
    device: Arc<Mutex<Device>>,
    services: Services,
}

impl Bench {
    fn new() -> Self {
        let answer = [1, 2, 3, 4, 5, 6, 7, 8];
        let device = Arc::new(Mutex::new(Device { answer, stored: Vec::new() }));
        let mut bus = Bus::new();
        bus.insert(DEVICE, 0x1000, device.clone()).unwrap();
        let services = Services::new(bus, None, Arc::default());
        Self { guest: Guest::default(), device, services }
    }

    fn run(&self, script: impl IntoIterator<Item = Step>) -> Option<VcpuExit> {
        self.run_vcpu(&mut self.guest.vcpu(3, script))
    }

    fn run_vcpu(&self, vcpu: &mut FakeVcpu) -> Option<VcpuExit> {
        run(3, vcpu, &self.services)
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |event| match event {
            Event::Entered(_, entry) => Some(entry),
            _ => None,
        };
        self.guest.events().into_iter().filter_map(entry).collect()
    }
}

fn load(address: GuestAddress, length: usize) -> Step {
    Step::Exit(Exit::MmioRead { address, length })
}

fn store(address: GuestAddress, data: [u8; 8], length: usize) -> Step {
    Step::Exit(Exit::MmioWrite { address, data, length })
}

fn power_off() -> Step {
    Step::Exit(Exit::PowerOff)
}

fn fault(end: Option<VcpuExit>) -> Fault {
    match end {
        Some(VcpuExit::Fault(fault)) => *fault,
        other => panic!("expected a fault, not {other:?}"),
    }
}

#[test]
fn a_load_is_answered_at_the_next_entry_with_as_many_bytes_as_were_asked_for() {
    for (length, answer) in [
        (1, [1, 0, 0, 0, 0, 0, 0, 0]),
        (2, [1, 2, 0, 0, 0, 0, 0, 0]),
        (4, [1, 2, 3, 4, 0, 0, 0, 0]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
    ] {
        let bench = Bench::new();
        let end = bench.run([load(DEVICE, length), power_off()]);
        assert!(matches!(end, Some(VcpuExit::PowerOff)), "{end:?}");
        assert_eq!(bench.entries(), [Entry::Resume, Entry::MmioData(answer)]);
    }
}

#[test]
fn a_store_reaches_the_device_and_is_not_answered() {
    let bench = Bench::new();
    let address = GuestAddress(DEVICE.0 + 8);
    bench.run([store(address, [9, 8, 7, 6, 5, 4, 3, 2], 4), power_off()]);
    assert_eq!(bench.device.lock().unwrap().stored, [(8, vec![9, 8, 7, 6])]);
    assert_eq!(bench.entries(), [Entry::Resume, Entry::Resume]);
}

#[test]
fn an_answer_is_given_once() {
    let bench = Bench::new();
    bench.run([load(DEVICE, 1), store(DEVICE, [0; 8], 1), power_off()]);
    let answer = Entry::MmioData([1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.entries(), [Entry::Resume, answer, Entry::Resume]);
}

#[test]
fn exits_and_accesses_are_counted() {
    let bench = Bench::new();
    bench.run([load(DEVICE, 1), load(DEVICE, 1), store(DEVICE, [0; 8], 1), power_off()]);
    assert_eq!(bench.services.counters.exits.get(), 4);
    assert_eq!(bench.services.counters.mmio_reads.get(), 2);
    assert_eq!(bench.services.counters.mmio_writes.get(), 1);
}

#[test]
fn each_request_of_the_guest_ends_the_vm_in_its_own_way() {
    let end = |exit| Bench::new().run([Step::Exit(exit)]);
    assert!(matches!(end(Exit::PowerOff), Some(VcpuExit::PowerOff)));
    assert!(matches!(end(Exit::Reset), Some(VcpuExit::Reset)));
    assert!(matches!(end(Exit::WarmReset), Some(VcpuExit::GuestPanic)));
    assert!(end(Exit::Interrupted).is_none());
}

#[test]
fn an_interruption_during_an_access_comes_after_its_answer() {
    struct Interrupting(Arc<crate::vcpu::fake::Gate>);
    impl MmioDevice for Interrupting {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(7);
            self.0.set(true);
        }
        fn write(&mut self, _: u64, _: &[u8]) {}
    }
    let mut bench = Bench::new();
    let mut vcpu = bench.guest.vcpu(3, [load(NOWHERE, 1)]);
    let device = Interrupting(Arc::clone(&vcpu.immediate_exit));
    bench.services.bus.insert(NOWHERE, 0x1000, Arc::new(Mutex::new(device))).unwrap();
    let end = bench.run_vcpu(&mut vcpu);
    assert!(end.is_none(), "{end:?}");
    assert_eq!(bench.entries(), [Entry::Resume, Entry::MmioData([7, 0, 0, 0, 0, 0, 0, 0])]);
}

/// Runs accesses that nothing serves and then a power-off, which the guest is to come to.
fn aborted(accesses: impl IntoIterator<Item = Step>) -> (Bench, Option<VcpuExit>) {
    let bench = Bench::new();
    let end = bench.run(accesses.into_iter().chain([power_off()]));
    (bench, end)
}

#[test]
fn an_access_that_nothing_serves_is_an_external_abort_at_every_width() {
    for length in [1, 2, 4, 8] {
        let (bench, end) = aborted([load(NOWHERE, length), store(NOWHERE, [0; 8], length)]);

        assert!(matches!(end, Some(VcpuExit::PowerOff)), "{length}: {end:?}");
        let events = bench.guest.events();
        let aborts = events.iter().filter(|event| **event == Event::Aborted(3)).count();
        assert_eq!(aborts, 2, "{events:?}");
        assert_eq!(bench.services.counters.aborts.get(), 2);
        // Nothing is handed to the guest.
        assert_eq!(bench.entries(), [Entry::Resume; 3]);
    }
}

#[test]
fn an_access_across_the_end_of_a_device_is_an_external_abort() {
    let across = GuestAddress(DEVICE.0 + 0x1000 - 4);
    let (bench, end) = aborted([load(across, 8)]);
    assert!(matches!(end, Some(VcpuExit::PowerOff)), "{end:?}");
    assert_eq!(bench.services.counters.aborts.get(), 1);
}

#[test]
fn an_access_that_cannot_be_decoded_is_an_external_abort() {
    let access = Unhandled { what: "a pair".to_owned(), address: Some(NOWHERE) };
    let (bench, end) = aborted([Step::Exit(Exit::Undecoded(access))]);
    assert!(matches!(end, Some(VcpuExit::PowerOff)), "{end:?}");
    assert_eq!(bench.services.counters.aborts.get(), 1);
}

#[test]
fn a_guest_that_never_stops_is_reported_once() {
    let (bench, end) = aborted((0..1000).map(|_| load(NOWHERE, 4)));
    assert!(matches!(end, Some(VcpuExit::PowerOff)), "{end:?}");
    assert_eq!(bench.services.counters.aborts.get(), 1000);
    assert!(bench.services.reported.load(Ordering::Relaxed));
}

#[test]
fn a_hypervisor_that_injects_no_aborts_makes_it_a_fault_with_address_and_registers() {
    for (step, said) in
        [(load(NOWHERE, 4), "load of 4 bytes"), (store(NOWHERE, [0; 8], 2), "store of 2 bytes")]
    {
        let bench = Bench::new();
        let mut vcpu = bench.guest.vcpu(3, [step]);
        vcpu.takes_aborts = false;
        let fault = fault(bench.run_vcpu(&mut vcpu));
        assert_eq!(fault.vcpu, 3);
        assert_eq!(fault.what.address, Some(NOWHERE));
        assert_eq!(fault.registers.map(|registers| registers.pc), Some(0x1234));
        assert!(fault.what.what.contains(said), "{}", fault.what);
        assert_eq!(bench.services.counters.aborts.get(), 0);
    }
}

#[test]
fn a_page_that_the_host_cannot_give_ends_the_vm_by_name() {
    let what = Unhandled { what: "no page".to_owned(), address: Some(NOWHERE) };
    let end = Bench::new().run([Step::Exit(Exit::MemoryFault(what.clone()))]);
    let Some(VcpuExit::MemoryFault(fault)) = end else { panic!("{end:?}") };
    assert_eq!(fault.what, what);
    assert!(fault.registers.is_some());
}

#[test]
fn lengths_that_no_load_has_do_no_harm() {
    for length in [0, 3, 9, usize::MAX] {
        let bench = Bench::new();
        let end = bench.run([load(DEVICE, length), store(DEVICE, [1; 8], length), power_off()]);
        assert!(matches!(end, Some(VcpuExit::PowerOff | VcpuExit::Fault(_))), "{length}: {end:?}");
    }
}

#[test]
fn an_exit_that_nobody_handles_is_a_fault_in_the_hypervisors_words() {
    let unhandled = Unhandled { what: "KVM_EXIT_ARM_NISV".to_owned(), address: Some(NOWHERE) };
    let fault = fault(Bench::new().run([Step::Exit(Exit::Unhandled(unhandled.clone()))]));
    assert_eq!(fault.what, unhandled);
}

#[test]
fn a_vcpu_that_cannot_be_entered_is_a_fault() {
    let fault = fault(Bench::new().run([Step::Fails(io::ErrorKind::PermissionDenied)]));
    assert_eq!(fault.what.address, None);
    assert!(fault.what.what.contains("permission denied"), "{}", fault.what);
}

#[test]
fn a_report_shows_the_address_and_all_registers() {
    let mut registers = Registers { sp: 0x51, pc: 0xffff_8000_0000_1234, ..Registers::default() };
    registers.x[30] = 0xdead_beef;
    let what = Unhandled { what: "odd".to_owned(), address: Some(GuestAddress(0x1800_0000)) };
    let report = Fault { vcpu: 2, what, registers: Some(registers) }.to_string();
    let first = "vCPU 2 stopped: odd at guest-physical address 0x18000000\n";
    assert!(report.starts_with(first), "{report}");
    assert!(report.contains("pc  ffff800000001234"), "{report}");
    assert!(report.contains("sp  0000000000000051"), "{report}");
    for n in 0..31 {
        assert!(report.contains(&format!("x{n} ")), "x{n} is missing: {report}");
    }
    assert!(report.contains("x30 00000000deadbeef"), "{report}");
}

#[test]
fn a_report_without_registers_says_so() {
    let bench = Bench::new();
    let mut vcpu = bench.guest.vcpu(3, [Step::Fails(io::ErrorKind::PermissionDenied)]);
    vcpu.registers = None;
    let report = fault(bench.run_vcpu(&mut vcpu)).to_string();
    assert!(report.ends_with("registers: not available"), "{report}");
}

/// Counts how often a vCPU was held.
#[derive(Default)]
struct CountingThrottle(std::sync::atomic::AtomicU32);

impl OutputThrottle for CountingThrottle {
    fn wait(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn a_vcpu_is_held_when_it_starts_and_after_each_store() {
    let throttle = Arc::new(CountingThrottle::default());
    let mut bench = Bench::new();
    bench.services.throttle = Some(throttle.clone());
    bench.run([load(DEVICE, 1), store(DEVICE, [0; 8], 1), store(DEVICE, [0; 8], 1), power_off()]);
    assert_eq!(throttle.0.load(std::sync::atomic::Ordering::SeqCst), 3);
}
