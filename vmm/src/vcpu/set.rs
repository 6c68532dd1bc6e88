//! All vCPUs of a VM: started, paused, resumed and ended together.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::Pid;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

use super::thread::{KICK_SIGNAL, Order, VcpuThread};
use super::{Hold, Services, Vcpu, VcpuExit};
use crate::hypervisor::state::VcpuState;

/// How long a vCPU may take to leave the guest. It needs microseconds; a host that has it wait this long
/// is in trouble that is to be reported to the user.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a vCPU is waited for before it is checked whether it waits for a page: one that does not needs
/// microseconds.
const EXCUSE_AFTER: Duration = Duration::from_millis(100);

/// Why the vCPUs could not be started, paused or resumed.
#[derive(Debug, Error)]
pub enum Error {
    /// A thread, an event or a signal handler could not be made.
    #[error(
        "cannot start the thread of vCPU {vcpu}: look at the host's limits on processes and memory (ulimit -u, pids.max)"
    )]
    Spawn {
        /// Which vCPU.
        vcpu: usize,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A vCPU did not leave the guest in time.
    #[error("vCPU {vcpu} did not leave the guest within {} s: the host is overloaded, or the console's reader is stuck", LEAVE_DEADLINE.as_secs())]
    Stuck {
        /// Which vCPU.
        vcpu: usize,
    },
    /// A vCPU waits for memory that is loaded as it is touched.
    #[error(
        "vCPU {vcpu} has waited for {} s for memory of the snapshot that it was restored from, and cannot stop before it \
         has that: look at the disk with the snapshot, and try again",
        LEAVE_DEADLINE.as_secs()
    )]
    Loading {
        /// Which vCPU.
        vcpu: usize,
    },
    /// A vCPU that is to be saved is in the guest.
    #[error(
        "vCPU {vcpu} waits for a page of guest memory, and cannot be saved before it has it: give the VM tag storage"
    )]
    Inside {
        /// Which vCPU.
        vcpu: usize,
    },
    /// The state of a vCPU could not be read.
    #[error("cannot save the state of vCPU {vcpu}")]
    Save {
        /// Which vCPU.
        vcpu: usize,
        /// The hypervisor's reason.
        #[source]
        source: io::Error,
    },
    /// The guest's counter could not be read or set.
    #[error("cannot {action} the guest's counter: its clock would jump")]
    Counter {
        /// What was tried.
        action: &'static str,
        /// The hypervisor's reason.
        #[source]
        source: io::Error,
    },
}

/// What a vCPU thread leaves behind when it ends the VM: the first one counts.
struct ExitSlot {
    /// Told, it is `Some(None)`: a later end must not pass for the first.
    end: Mutex<Option<Option<VcpuExit>>>,
    event: EventFd,
}

/// The vCPUs and their threads. Dropped, it ends them all and waits for them.
pub struct VcpuSet {
    threads: Arc<[VcpuThread]>,
    exit_slot: Arc<ExitSlot>,
    /// The guest's counter while it is paused, if it stops meanwhile.
    counter: Option<u64>,
    /// A pause stops the guest's counter.
    stops_counter: bool,
    /// The vCPUs have been told to stay out of the guest.
    paused: bool,
    /// [`LEAVE_DEADLINE`], which tests shorten.
    patience: Duration,
}

impl VcpuSet {
    /// Starts one thread a vCPU, all of them paused.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn spawn(vcpus: Vec<Box<dyn Vcpu>>, services: &Arc<Services>) -> Result<Self, Error> {
        extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        let failed = |vcpu| move |source| Error::Spawn { vcpu, source };
        register_signal_handler(KICK_SIGNAL, nothing).map_err(|errno| failed(0)(errno.into()))?;
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed(0))?;
        let exit_slot = Arc::new(ExitSlot { end: Mutex::new(None), event });
        let patience = LEAVE_DEADLINE;
        let mut threads = Vec::new();
        for (at, vcpu) in vcpus.into_iter().enumerate() {
            let exit_slot = Arc::clone(&exit_slot);
            let on_end = move |end| exit_slot.give(end);
            let services = Arc::clone(services);
            let thread =
                VcpuThread::spawn(at as u32, vcpu, services, on_end).map_err(failed(at))?;
            threads.push(thread);
        }
        let threads = threads.into();
        Ok(Self { threads, exit_slot, counter: None, stops_counter: true, paused: false, patience })
    }

    /// Has these vCPUs be what `hold` holds.
    pub fn give_to(&self, hold: &Hold) {
        hold.set(&self.threads);
    }

    /// From here on the guest's counter advances with the host's while the guest is paused.
    pub fn keep_counter_advancing(&mut self) {
        self.stops_counter = false;
    }

    /// The event that is raised when a vCPU ends the VM; then [`VcpuSet::end`] says how.
    pub fn end_event(&self) -> &EventFd {
        &self.exit_slot.event
    }

    /// Ends the VM as one of the vCPUs would.
    pub fn ender(&self) -> impl Fn(VcpuExit) + Send + Sync + 'static {
        let exit_slot = Arc::clone(&self.exit_slot);
        move |end| exit_slot.give(end)
    }

    /// How the VM ended, if it has; it is reported once.
    pub fn end(&self) -> Option<VcpuExit> {
        let mut end = self.exit_slot.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.as_mut().and_then(Option::take)
    }

    /// Takes all vCPUs out of the guest, their pending MMIO finished, and stops the guest's counter, unless that is to
    /// [advance](Self::keep_counter_advancing).
    /// Nothing happens if they are paused already.
    ///
    /// # Errors
    /// When a vCPU stays in the guest: then all go on.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.pause_excusing(|_| false)
    }

    /// As [`pause`](Self::pause), where vCPUs may be in the middle of a page fault that the VMM itself does
    /// not resolve, as `waits` says of a thread. The fault path of KVM is not interruptible, so such a vCPU
    /// cannot leave the guest, but nor does it execute in it: with its page it sees the signal and leaves.
    /// All others are waited for. Where no vCPU is out of the guest, its counter does not stop.
    ///
    /// # Errors
    /// When a vCPU stays in the guest and does not wait for a page: then all go on.
    pub fn pause_excusing(&mut self, waits: impl Fn(Pid) -> bool) -> Result<(), Error> {
        if self.paused {
            return Ok(());
        }
        self.order(Order::Pause);
        match self.wait(waits).and_then(|out| self.read_counter(&out)) {
            Ok(counter) => (self.paused, self.counter) = (true, counter),
            Err(error) => {
                self.order(Order::Run);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The guest's counter, by the first vCPU that is out of the guest; `None` where it does not stop.
    fn read_counter(&self, out: &[bool]) -> Result<Option<u64>, Error> {
        if !self.stops_counter {
            return Ok(None);
        }
        let first = self.threads.iter().zip(out).find(|(_, out)| **out);
        let counter = first.map(|(thread, _)| thread.vcpu().counter());
        counter.transpose().map_err(|source| Error::Counter { action: "read", source })
    }

    /// Sets the guest's counter to where it stopped and lets all vCPUs into the guest. The counter comes
    /// first: it belongs to all of them, and must never run backwards in front of one.
    ///
    /// # Errors
    /// When the counter cannot be set: the vCPUs stay paused.
    pub fn resume(&mut self) -> Result<(), Error> {
        let out = |thread: &&VcpuThread| thread.wait_out_of_guest(Instant::now());
        if let (Some(counter), Some(first)) = (self.counter, self.threads.iter().find(out)) {
            first
                .vcpu()
                .set_counter(counter)
                .map_err(|source| Error::Counter { action: "set", source })?;
        }
        (self.paused, self.counter) = (false, None);
        self.order(Order::Run);
        Ok(())
    }

    /// The states of all vCPUs, which are [paused](Self::pause).
    ///
    /// # Errors
    /// When one of them waits for a page, in the guest, or the hypervisor does not give its state.
    pub fn save(&self) -> Result<Vec<VcpuState>, Error> {
        let saved = self.threads.iter().enumerate().map(|(vcpu, thread)| {
            if !thread.wait_out_of_guest(Instant::now()) {
                return Err(Error::Inside { vcpu });
            }
            thread.vcpu().save().map_err(|source| Error::Save { vcpu, source })
        });
        saved.collect()
    }

    /// The guest's counter. The vCPUs are [paused](Self::pause).
    ///
    /// # Errors
    /// When the hypervisor does not give it.
    pub fn counter(&self) -> Result<u64, Error> {
        let read = || self.threads.first().map(|first| first.vcpu().counter());
        let counter = self.counter.map(Ok).or_else(read).unwrap_or(Ok(0));
        counter.map_err(|source| Error::Counter { action: "read", source })
    }

    /// Has the guest's counter continue from a value when the vCPUs first run; from now on, if it
    /// [advances](Self::keep_counter_advancing) while they do not.
    ///
    /// # Errors
    /// When the hypervisor does not set it, or the threads do not start in time.
    pub fn start_counter_at(&mut self, value: u64) -> Result<(), Error> {
        if self.stops_counter {
            // A thread that has only just started is not known to be out of the guest.
            self.wait(|_| false)?;
            self.counter = Some(value);
            return Ok(());
        }
        let set = self.threads.first().map_or(Ok(()), |first| first.vcpu().set_counter(value));
        set.map_err(|source| Error::Counter { action: "set", source })
    }

    /// Tells all vCPUs to leave the guest for good. They are waited for when this is dropped.
    pub fn finish(&self) {
        self.order(Order::Finish);
    }

    fn order(&self, order: Order) {
        for thread in self.threads.iter() {
            thread.give(order);
        }
    }

    /// Waits for all vCPUs to leave the guest; returns which have, as others may wait for a page.
    fn wait(&self, waits: impl Fn(Pid) -> bool) -> Result<Vec<bool>, Error> {
        let deadline = Instant::now() + self.patience;
        let mut out = Vec::with_capacity(self.threads.len());
        for (vcpu, thread) in self.threads.iter().enumerate() {
            let left = loop {
                let step = deadline.min(Instant::now() + EXCUSE_AFTER);
                if thread.wait_out_of_guest(step) {
                    break true;
                }
                if thread.id().is_some_and(&waits) {
                    break false;
                }
                if Instant::now() >= deadline {
                    return Err(Error::Stuck { vcpu });
                }
            };
            out.push(left);
        }
        Ok(out)
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        // All at once, and here: who holds them may have them for a little longer.
        self.finish();
        for thread in self.threads.iter() {
            thread.join();
        }
    }
}

impl ExitSlot {
    fn give(&self, end: VcpuExit) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Some(end));
        // It cannot be full: it is written at most once a vCPU.
        let _ = self.event.write(1);
    }
}

#[cfg(test)]
mod tests;
