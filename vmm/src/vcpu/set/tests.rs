#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use devices::bus::{Bus, MmioDevice};
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::vcpu::fake::{Event, Gate, Guest, Step, counter_touched_while_running, inside};
use crate::vcpu::{Exit, Unhandled};

const DEVICE: GuestAddress = GuestAddress(0x1000_0000);

struct Nothing;

impl MmioDevice for Nothing {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&mut self, _: u64, _: &[u8]) {}
}

fn spawn(vcpus: Vec<Box<dyn Vcpu>>) -> VcpuSet {
    let mut bus = Bus::new();
    bus.insert(DEVICE, 0x1000, Arc::new(Mutex::new(Nothing))).unwrap();
    let services = Services::new(bus, None, Arc::default());
    VcpuSet::spawn(vcpus, &Arc::new(services)).unwrap()
}

fn scripted(guest: &Guest, scripts: impl IntoIterator<Item = Vec<Step>>) -> VcpuSet {
    let vcpu = |(at, script)| Box::new(guest.vcpu(at, script)) as Box<dyn Vcpu>;
    spawn(scripts.into_iter().enumerate().map(vcpu).collect())
}

fn computing(guest: &Guest, vcpus: usize) -> VcpuSet {
    scripted(guest, (0..vcpus).map(|_| vec![]))
}

fn wait_for_end(set: &VcpuSet) -> Option<VcpuExit> {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, set.end_event().as_raw_fd(), event).unwrap();
    let mut ready = [EpollEvent::default()];
    assert_eq!(epoll.wait(30_000, &mut ready).unwrap(), 1, "the VM did not end");
    set.end()
}

impl VcpuSet {
    /// vCPUs that compute for ever.
    pub(crate) fn computing(guest: &Guest, vcpus: usize) -> Self {
        computing(guest, vcpus)
    }
}

#[test]
fn nobody_enters_the_guest_before_the_first_resume() {
    let guest = Guest::default();
    let mut set = computing(&guest, 4);
    set.pause().unwrap();
    assert_eq!(guest.events(), [Event::CounterRead(0)]);
}

#[test]
fn all_vcpus_run_after_resume_and_none_after_pause() {
    for vcpus in [1, 2, 8] {
        let guest = Guest::default();
        let mut set = computing(&guest, vcpus);
        for _ in 0..3 {
            set.resume().unwrap();
            guest.wait_until_inside(vcpus);
            set.pause().unwrap();
            assert_eq!(inside(&guest.events()), 0);
        }
        drop(set);
        assert!(!counter_touched_while_running(&guest.events()));
    }
}

#[test]
fn the_guests_clock_stands_still_while_it_is_paused() {
    let guest = Guest::default();
    let mut set = computing(&guest, 2);
    set.resume().unwrap();
    guest.wait_until_inside(2);
    guest.pass_time(100);
    set.pause().unwrap();
    guest.pass_time(5000);
    let paused = guest.events().len();
    set.resume().unwrap();
    guest.wait_until_inside(2);
    assert_eq!(guest.events()[paused - 1], Event::CounterRead(100));
    assert_eq!(guest.events()[paused], Event::CounterSet(100), "before anybody enters");
}

#[test]
fn a_counter_that_is_to_advance_is_neither_read_nor_set() {
    let guest = Guest::default();
    let mut set = computing(&guest, 2);
    set.keep_counter_advancing();
    for _ in 0..2 {
        set.resume().unwrap();
        guest.wait_until_inside(2);
        set.pause().unwrap();
        guest.pass_time(5000);
    }
    let events = guest.events();
    let touched = |event: &Event| matches!(event, Event::CounterRead(_) | Event::CounterSet(_));
    assert!(!events.iter().any(touched), "{events:?}");
}

#[test]
fn a_second_pause_keeps_the_counter_of_the_first() {
    let guest = Guest::default();
    let mut set = computing(&guest, 2);
    set.resume().unwrap();
    guest.pass_time(100);
    set.pause().unwrap();
    guest.pass_time(5000);
    set.pause().unwrap();
    set.resume().unwrap();
    assert!(guest.events().contains(&Event::CounterSet(100)));
    assert!(!guest.events().contains(&Event::CounterRead(5100)));
}

#[test]
fn a_second_resume_does_not_touch_the_counter() {
    let guest = Guest::default();
    let mut set = computing(&guest, 2);
    set.resume().unwrap();
    guest.wait_until_inside(2);
    set.resume().unwrap();
    set.pause().unwrap();
    set.resume().unwrap();
    guest.wait_until_inside(2);
    set.resume().unwrap();
    let sets = guest.events().iter().filter(|event| matches!(event, Event::CounterSet(_))).count();
    assert_eq!(sets, 1);
}

#[test]
fn a_thousand_pauses_lose_no_wake_up() {
    for vcpus in [1, 2, 8] {
        let guest = Guest::default();
        let read = Exit::MmioRead { address: DEVICE, length: 4 };
        // Half of them never stop asking a device, so that pauses meet accesses.
        let script = |at| if at % 2 == 0 { vec![] } else { vec![Step::Forever(read.clone())] };
        let set = scripted(&guest, (0..vcpus).map(script));
        let (orders, requests) = mpsc::channel();
        let loop_thread = std::thread::spawn(move || {
            let mut set = set;
            for pause in requests {
                if pause { set.pause() } else { set.resume() }.unwrap();
            }
        });
        for _ in 0..1000 {
            orders.send(false).unwrap();
            orders.send(true).unwrap();
        }
        drop(orders);
        loop_thread.join().unwrap();
        assert_eq!(inside(&guest.events()), 0);
    }
}

#[test]
fn a_signal_brings_a_vcpu_out_of_a_system_call() {
    let guest = Guest::default();
    let mut set = scripted(&guest, [vec![Step::Sleep]]);
    // The fake cannot sleep and look at the kick's flag in one step, as KVM does; so a signal may come
    // between the two, and the pause is asked for again.
    set.patience = Duration::from_millis(100);
    set.resume().unwrap();
    guest.wait_until_inside(1);
    let attempts = (0..100).take_while(|_| set.pause().is_err()).count();
    assert!(attempts < 100, "no signal reaches the vCPU's thread");
}

#[test]
fn a_vcpu_that_stays_in_the_guest_is_named_and_the_others_go_on() {
    let (guest, out) = (Guest::default(), Arc::new(Gate::default()));
    let deaf = Step::Deaf(Arc::clone(&out), Exit::Interrupted);
    let mut set = scripted(&guest, [vec![deaf], vec![]]);
    set.patience = Duration::from_millis(50);
    set.resume().unwrap();
    guest.wait_until_inside(2);
    assert!(matches!(set.pause(), Err(Error::Stuck { vcpu: 0 })));
    guest.wait_until_inside(2);
    out.set(true);
    set.patience = LEAVE_DEADLINE;
    set.pause().unwrap();
    assert_eq!(inside(&guest.events()), 0);
}

#[test]
fn a_vcpu_that_waits_for_a_page_does_not_hold_up_a_pause() {
    let (guest, page) = (Guest::default(), Arc::new(Gate::default()));
    let faults = Step::Deaf(Arc::clone(&page), Exit::Interrupted);
    let mut set = scripted(&guest, [vec![faults], vec![]]);
    set.resume().unwrap();
    guest.wait_until_inside(2);
    let waiting = set.threads[0].id().unwrap();

    set.pause_excusing(|thread| thread == waiting).unwrap();

    assert_eq!(inside(&guest.events()), 1);
    page.set(true);
    guest.wait_until_inside(0);
    assert!(guest.events().iter().any(|event| matches!(event, Event::CounterRead(_))));
}

#[test]
fn a_slow_vcpu_is_not_excused_by_one_that_waits_for_a_page() {
    let (guest, page) = (Guest::default(), Arc::new(Gate::default()));
    let deaf = || vec![Step::Deaf(Arc::clone(&page), Exit::Interrupted)];
    let mut set = scripted(&guest, [deaf(), deaf()]);
    set.patience = Duration::from_millis(250);
    set.resume().unwrap();
    guest.wait_until_inside(2);
    let waiting = set.threads[0].id().unwrap();

    let paused = set.pause_excusing(|thread| thread == waiting);

    assert!(matches!(paused, Err(Error::Stuck { vcpu: 1 })), "{paused:?}");
    assert!(!guest.events().iter().any(|event| matches!(event, Event::CounterRead(_))));
    page.set(true);
}

#[test]
fn a_pause_does_not_wait_for_a_vcpu_that_ends_the_vm_meanwhile() {
    // Whether the end comes while the pause waits is chance; fifty times it comes so at least once.
    for _ in 0..50 {
        let (guest, out) = (Guest::default(), Arc::new(Gate::default()));
        let vcpu = guest.vcpu(0, [Step::Deaf(Arc::clone(&out), Exit::PowerOff)]);
        let kicked = Arc::clone(&vcpu.immediate_exit);
        let mut set = spawn(vec![Box::new(vcpu)]);
        set.resume().unwrap();
        guest.wait_until_inside(1);
        let asked = Instant::now();
        let pausing = std::thread::spawn(move || set.pause().map(|()| set));
        kicked.wait();
        out.set(true);
        let set = pausing.join().unwrap().unwrap();
        assert!(asked.elapsed() < LEAVE_DEADLINE, "it waited for the deadline");
        assert!(matches!(set.end(), Some(VcpuExit::PowerOff)));
    }
}

#[test]
fn a_counter_that_cannot_be_read_leaves_the_guest_running() {
    let guest = Guest::default();
    let vcpu = guest.vcpu(0, []);
    vcpu.counter_fails.store(true, Ordering::SeqCst);
    let mut set = spawn(vec![Box::new(vcpu)]);
    set.resume().unwrap();
    guest.wait_until_inside(1);
    assert!(matches!(set.pause(), Err(Error::Counter { action: "read", .. })));
    guest.wait_until_inside(1);
}

#[test]
fn a_counter_that_cannot_be_set_leaves_the_guest_paused() {
    let guest = Guest::default();
    let vcpu = guest.vcpu(0, []);
    vcpu.counter_fails.store(true, Ordering::SeqCst);
    let mut set = spawn(vec![Box::new(vcpu)]);
    set.counter = Some(1);
    set.wait(|_| false).unwrap();
    assert!(matches!(set.resume(), Err(Error::Counter { action: "set", .. })));
    assert!(matches!(set.resume(), Err(Error::Counter { action: "set", .. })), "it stays paused");
    assert_eq!(guest.events(), []);
}

#[test]
fn a_vcpu_that_ends_the_vm_raises_the_event() {
    let guest = Guest::default();
    let mut set = scripted(&guest, [vec![], vec![Step::Exit(Exit::PowerOff)]]);
    assert!(set.end().is_none());
    set.resume().unwrap();
    assert!(matches!(wait_for_end(&set), Some(VcpuExit::PowerOff)));
}

#[test]
fn of_two_ends_the_first_counts_and_is_told_once() {
    let guest = Guest::default();
    let mut set = scripted(&guest, [vec![Step::Exit(Exit::Reset)], vec![]]);
    set.resume().unwrap();
    assert!(matches!(wait_for_end(&set), Some(VcpuExit::Reset)));
    set.exit_slot.give(VcpuExit::PowerOff);
    assert!(set.end().is_none());
}

#[test]
fn of_two_ends_before_anybody_looks_the_first_counts() {
    let set = computing(&Guest::default(), 1);
    set.exit_slot.give(VcpuExit::GuestPanic);
    set.exit_slot.give(VcpuExit::PowerOff);
    assert!(matches!(set.end(), Some(VcpuExit::GuestPanic)));
    assert!(set.end().is_none());
}

#[test]
fn pausing_after_an_end_stops_the_others() {
    let guest = Guest::default();
    let mut set = scripted(&guest, [vec![Step::Exit(Exit::PowerOff)], vec![], vec![]]);
    set.resume().unwrap();
    wait_for_end(&set);
    guest.wait_until_inside(2);
    set.pause().unwrap();
    assert_eq!(inside(&guest.events()), 0);
    set.resume().unwrap();
    guest.wait_until_inside(2);
}

#[test]
fn a_panic_on_a_vcpus_thread_ends_the_vm_with_a_report() {
    let guest = Guest::default();
    let mut set = scripted(&guest, [vec![Step::Panic], vec![]]);
    set.resume().unwrap();
    let Some(VcpuExit::Fault(fault)) = wait_for_end(&set) else { panic!("expected a fault") };
    assert_eq!(fault.vcpu, 0);
    let Unhandled { what, address } = fault.what;
    assert!(what.contains("panicked") && address.is_none(), "{what}");
}

#[test]
fn dropped_in_any_state_it_ends_every_thread() {
    let actions: [fn(&mut VcpuSet); 4] = [
        |_| {},
        |set| set.resume().unwrap(),
        |set| set.pause().unwrap(),
        |set| set.resume().and_then(|()| set.pause()).unwrap(),
    ];
    for vcpus in [1, 2, 8] {
        for action in actions {
            let guest = Guest::default();
            let mut set = computing(&guest, vcpus);
            action(&mut set);
            drop(set);
            // A vCPU is dropped with the last of its thread and the set: now, if the threads are gone.
            let dropped = |event: &&Event| matches!(event, Event::Dropped(_));
            assert_eq!(guest.events().iter().filter(dropped).count(), vcpus);
        }
    }
}

#[test]
fn a_vm_without_vcpus_can_be_paused_and_resumed() {
    let mut set = spawn(vec![]);
    set.pause().unwrap();
    set.resume().unwrap();
    assert!(set.end().is_none());
}

#[test]
fn the_first_entry_is_stamped_when_vcpu_0_enters() {
    let (guest, counters) = (Guest::default(), Arc::<crate::metrics::VcpuCounters>::default());
    let vcpus: Vec<Box<dyn Vcpu>> = vec![Box::new(guest.vcpu(0, []))];
    let services = Services::new(Bus::new(), None, Arc::clone(&counters));
    let mut set = VcpuSet::spawn(vcpus, &Arc::new(services)).unwrap();
    assert_eq!(counters.first_entry(), 0);
    set.resume().unwrap();
    guest.wait_until_inside(1);
    assert_ne!(counters.first_entry(), 0);
}
