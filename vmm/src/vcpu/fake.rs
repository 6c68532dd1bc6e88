//! Scripted vCPUs, and a record of all that happened to them in one order.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use arch::irq::Spi;
use arch::regs::RegId;
use vm_memory::GuestAddress;

use super::{Entry, Exit, Kick, Registers, Vcpu};
use crate::hypervisor::state::{SavedRegisters, VcpuState, VcpuStateError};

/// How long a test waits for something that takes microseconds, before it fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a fake guest does once it has been entered.
pub(crate) enum Step {
    /// Leaves with this exit.
    Exit(Exit),
    /// Leaves with this exit now and ever after.
    Forever(Exit),
    /// Cannot be entered.
    Fails(io::ErrorKind),
    /// Runs until it is asked to leave, as a guest that computes; so does one whose script has ended.
    Compute,
    /// Runs on until the test lets it out with this exit, whatever asks it to leave.
    Deaf(Arc<Gate>, Exit),
    /// Sits in a system call, out of which nothing but a signal brings it.
    Sleep,
    /// A defect of the VMM.
    Panic,
}

/// One thing that happened to a vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Entered(usize, Entry),
    Left(usize),
    CounterRead(u64),
    CounterSet(u64),
    Dropped(usize),
    Aborted(usize),
    Saved(usize),
    Restored(usize),
    BootState {
        index: usize,
        entry: GuestAddress,
        fdt: GuestAddress,
    },
    /// A page for the guest, and what it begins with.
    Shown(GuestAddress, [u8; 16]),
    /// A level of an interrupt line.
    Level(Spi, bool),
    /// Something else of the fake machine.
    Note(&'static str),
}

/// A latch that stays open or shut until it is changed.
#[derive(Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }

    fn is_open(&self) -> bool {
        *self.open.lock().unwrap()
    }

    pub(crate) fn wait(&self) {
        let open = self.open.lock().unwrap();
        let (open, _) = self.changed.wait_timeout_while(open, DEADLINE, |open| !*open).unwrap();
        assert!(*open, "the gate stayed closed");
    }
}

/// KVM's immediate_exit: open, the guest is left, and not entered again.
impl Kick for Arc<Gate> {
    fn leave_guest(&self) {
        self.set(true);
    }

    fn clear(&self) {
        self.set(false);
    }
}

/// What all vCPUs of one fake guest share.
#[derive(Clone, Default)]
pub(crate) struct Guest {
    record: Arc<(Mutex<Vec<Event>>, Condvar)>,
    counter: Arc<AtomicU64>,
}

impl Guest {
    pub(crate) fn vcpu(&self, index: usize, script: impl IntoIterator<Item = Step>) -> FakeVcpu {
        FakeVcpu {
            index,
            guest: self.clone(),
            script: script.into_iter().collect(),
            immediate_exit: Arc::default(),
            registers: Some(Registers { pc: 0x1234, ..Registers::default() }),
            takes_aborts: true,
            counter_fails: Arc::default(),
        }
    }

    /// The counter keeps counting, as it does in a host whose guest is paused.
    pub(crate) fn pass_time(&self, ticks: u64) {
        self.counter.fetch_add(ticks, Ordering::SeqCst);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.record.0.lock().unwrap().clone()
    }

    /// Waits until the record is as wanted.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&[Event]) -> bool) {
        let (events, changed) = &*self.record;
        let events = events.lock().unwrap();
        let (events, _) =
            changed.wait_timeout_while(events, DEADLINE, |events| !wanted(events)).unwrap();
        assert!(wanted(&events), "the vCPUs did not come to do what was expected: {events:?}");
    }

    pub(crate) fn wait_until_inside(&self, vcpus: usize) {
        self.wait_for(|events| inside(events) == vcpus);
    }

    pub(crate) fn note(&self, event: Event) {
        self.record.0.lock().unwrap().push(event);
        self.record.1.notify_all();
    }
}

/// How many vCPUs are in the guest at the end of a record.
pub(crate) fn inside(events: &[Event]) -> usize {
    let entered = events.iter().filter(|event| matches!(event, Event::Entered(..))).count();
    let left = events.iter().filter(|event| matches!(event, Event::Left(_))).count();
    entered - left
}

/// Whether the guest's counter was ever touched while a vCPU was in the guest.
pub(crate) fn counter_touched_while_running(events: &[Event]) -> bool {
    let is_counter = |event: &Event| matches!(event, Event::CounterRead(_) | Event::CounterSet(_));
    let mut at = 0..events.len();
    at.any(|at| is_counter(&events[at]) && inside(&events[..at]) > 0)
}

/// A vCPU that follows a script.
pub(crate) struct FakeVcpu {
    index: usize,
    guest: Guest,
    script: VecDeque<Step>,
    pub(crate) immediate_exit: Arc<Gate>,
    /// `None`: the hypervisor does not give them.
    pub(crate) registers: Option<Registers>,
    /// Whether the hypervisor can inject aborts.
    pub(crate) takes_aborts: bool,
    /// No counter can be read or set while this is set.
    pub(crate) counter_fails: Arc<AtomicBool>,
}

impl FakeVcpu {
    fn next(&mut self) -> io::Result<Exit> {
        match self.script.pop_front().unwrap_or(Step::Compute) {
            Step::Exit(exit) => return Ok(exit),
            Step::Forever(exit) => {
                self.script.push_front(Step::Forever(exit.clone()));
                return Ok(exit);
            }
            Step::Fails(kind) => return Err(kind.into()),
            Step::Compute => self.immediate_exit.wait(),
            Step::Deaf(out, exit) => {
                out.wait();
                return Ok(exit);
            }
            Step::Sleep => sleep_until_a_signal(),
            Step::Panic => panic!("this panic is part of a test"),
        }
        Ok(Exit::Interrupted)
    }
}

fn sleep_until_a_signal() {
    let started = Instant::now();
    let long = rustix::event::Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    let woken = rustix::event::poll(&mut [], Some(&long));
    assert!(woken.is_err(), "no signal came for {:?}", started.elapsed());
}

impl Vcpu for FakeVcpu {
    fn enter(&mut self, entry: Entry) -> io::Result<Exit> {
        // Looked at before the entry is noted: a test that sees it inside knows that its script continues.
        let kicked = self.immediate_exit.is_open();
        self.guest.note(Event::Entered(self.index, entry));
        let exit = if kicked { Ok(Exit::Interrupted) } else { self.next() };
        self.guest.note(Event::Left(self.index));
        exit
    }

    fn inject_abort(&mut self) -> io::Result<()> {
        if !self.takes_aborts {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.guest.note(Event::Aborted(self.index));
        Ok(())
    }

    fn registers(&self) -> io::Result<Registers> {
        self.registers.clone().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn save(&self) -> io::Result<VcpuState> {
        self.guest.note(Event::Saved(self.index));
        let mut registers = SavedRegisters::default();
        registers.push(RegId::PC).fill(self.index as u8);
        Ok(VcpuState { registers, mp_state: 0, serror: None, sve_lengths: None })
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), VcpuStateError> {
        self.guest.note(Event::Restored(self.index));
        match state.registers.iter().next() {
            Some((RegId::PC, value)) if *value == [self.index as u8; 8] => Ok(()),
            _ => Err(VcpuStateError::Registers {
                vcpu: self.index as u32,
                registers: "pc".to_owned(),
            }),
        }
    }

    fn counter(&self) -> io::Result<u64> {
        if self.counter_fails.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let value = self.guest.counter.load(Ordering::SeqCst);
        self.guest.note(Event::CounterRead(value));
        Ok(value)
    }

    fn set_counter(&mut self, value: u64) -> io::Result<()> {
        if self.counter_fails.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.guest.counter.store(value, Ordering::SeqCst);
        self.guest.note(Event::CounterSet(value));
        Ok(())
    }

    fn set_boot_state(&mut self, entry: GuestAddress, fdt: GuestAddress) -> io::Result<()> {
        self.guest.note(Event::BootState { index: self.index, entry, fdt });
        Ok(())
    }

    fn kicker(&self) -> io::Result<Box<dyn Kick>> {
        Ok(Box::new(Arc::clone(&self.immediate_exit)))
    }
}

impl Drop for FakeVcpu {
    fn drop(&mut self) {
        self.guest.note(Event::Dropped(self.index));
    }
}
