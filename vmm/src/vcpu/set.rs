//! All vCPUs of a VM: started, paused, resumed and ended together.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

use super::thread::{KICK_SIGNAL, Order, VcpuThread};
use super::{End, Services, Vcpu};

/// How long a vCPU may take to leave the guest. It needs microseconds; a host that has it wait this long
/// is in trouble that the user should hear of.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

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
struct Verdict {
    /// Told, it is `Some(None)`: a later end must not pass for the first.
    end: Mutex<Option<Option<End>>>,
    event: EventFd,
}

/// The vCPUs and their threads. Dropped, it ends them all and waits for them.
pub struct VcpuSet {
    threads: Vec<VcpuThread>,
    verdict: Arc<Verdict>,
    /// The guest's counter while it is paused: the guest's clock stands still meanwhile.
    counter: Option<u64>,
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
        let verdict = Arc::new(Verdict { end: Mutex::new(None), event });
        let mut set =
            Self { threads: Vec::new(), verdict, counter: None, patience: LEAVE_DEADLINE };
        for (at, vcpu) in vcpus.into_iter().enumerate() {
            let verdict = Arc::clone(&set.verdict);
            let on_end = move |end| verdict.give(end);
            let services = Arc::clone(services);
            let thread =
                VcpuThread::spawn(at as u32, vcpu, services, on_end).map_err(failed(at))?;
            set.threads.push(thread);
        }
        Ok(set)
    }

    /// The event that is raised when a vCPU ends the VM; then [`VcpuSet::end`] says how.
    pub fn end_event(&self) -> &EventFd {
        &self.verdict.event
    }

    /// How the VM ended, if it has; it is told once.
    pub fn end(&self) -> Option<End> {
        let mut end = self.verdict.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.as_mut().and_then(Option::take)
    }

    /// Takes all vCPUs out of the guest, their pending MMIO finished, and stops the guest's counter.
    /// Nothing happens if they are paused already.
    ///
    /// # Errors
    /// When a vCPU stays in the guest: then all go on.
    pub fn pause(&mut self) -> Result<(), Error> {
        if self.counter.is_some() {
            return Ok(());
        }
        self.order(Order::Pause);
        let paused = self.wait().and_then(|()| {
            let counter = self.threads.first().map(|first| first.vcpu().counter());
            counter.transpose().map_err(|source| Error::Counter { action: "read", source })
        });
        match paused {
            Ok(counter) => self.counter = Some(counter.unwrap_or(0)),
            Err(error) => {
                self.order(Order::Run);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sets the guest's counter to where it stopped and lets all vCPUs into the guest. The counter comes
    /// first: it belongs to all of them, and must never run backwards in front of one.
    ///
    /// # Errors
    /// When the counter cannot be set: the vCPUs stay paused.
    pub fn resume(&mut self) -> Result<(), Error> {
        if let (Some(counter), Some(first)) = (self.counter, self.threads.first()) {
            first
                .vcpu()
                .set_counter(counter)
                .map_err(|source| Error::Counter { action: "set", source })?;
        }
        self.counter = None;
        self.order(Order::Run);
        Ok(())
    }

    fn order(&self, order: Order) {
        for thread in &self.threads {
            thread.give(order);
        }
    }

    fn wait(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience;
        for (vcpu, thread) in self.threads.iter().enumerate() {
            if !thread.wait_out_of_guest(deadline) {
                return Err(Error::Stuck { vcpu });
            }
        }
        Ok(())
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.order(Order::Finish);
        for thread in &mut self.threads {
            thread.join();
        }
    }
}

impl Verdict {
    fn give(&self, end: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Some(end));
        // It cannot be full: it is written at most once a vCPU.
        let _ = self.event.write(1);
    }
}

#[cfg(test)]
mod tests;
