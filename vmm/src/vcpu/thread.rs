//! The thread of one vCPU, and the orders it obeys.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::thread::{Pid, gettid};
use vmm_sys_util::signal::{Killable, unblock_signal};

use super::{Fault, Kick, Services, Unhandled, Vcpu, VcpuExit, run};
use crate::sys::thread::{self, Role};

/// The signal that brings a vCPU thread out of the guest. Its handler does nothing: that the system
/// call is interrupted is all that is wanted. Not a real-time signal: those are queued, and are refused
/// when other processes of the same user have filled the queue (RLIMIT_SIGPENDING).
pub(super) const KICK_SIGNAL: i32 = libc::SIGUSR1;

/// Enough for the run loop and the device models, none of which recurses; only what is touched of it
/// is ever backed by memory.
const STACK_SIZE: usize = 256 << 10;

/// What a vCPU thread has been told to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    Run,
    Pause,
    Finish,
}

/// What a vCPU thread is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// In the guest, or serving an exit.
    Running,
    /// Out of the guest, the vCPU's lock released, pending MMIO finished.
    Paused,
    /// The thread is done.
    Finished,
}

/// What is between a vCPU thread and those who give it orders.
struct Orders {
    order: Order,
    /// It stays out of the guest for a moment, whatever its order: see [`Hold`](super::Hold).
    held: bool,
    state: State,
}

/// The orders to one vCPU thread and its answers.
pub(super) struct VcpuMailbox {
    inner: Mutex<Orders>,
    changed: Condvar,
    kick: Box<dyn Kick>,
    /// The thread, once it runs.
    thread: OnceLock<Pid>,
}

impl VcpuMailbox {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order. A vCPU in the guest needs the thread's signal besides.
    fn give(&self, order: Order) {
        let mut inner = self.lock();
        inner.order = order;
        // The flag goes before the signal, and changes under the lock, so that an order to pause
        // followed by one to run cannot leave it set.
        self.aim(&inner);
        self.changed.notify_all();
    }

    /// Holds the vCPU, or ends that.
    fn hold(&self, held: bool) {
        let mut inner = self.lock();
        inner.held = held;
        self.aim(&inner);
        self.changed.notify_all();
    }

    /// Has the vCPU leave the guest if it is to be out of it.
    fn aim(&self, inner: &Orders) {
        match inner.order == Order::Run && !inner.held {
            true => self.kick.clear(),
            false => self.kick.leave_guest(),
        }
    }

    fn answer(&self, state: State) {
        self.lock().state = state;
        self.changed.notify_all();
    }

    /// Waits, out of the guest, for an order to run; `false` if there will be none.
    fn wait_for_run(&self) -> bool {
        let mut inner = self.lock();
        loop {
            match inner.order {
                Order::Run if !inner.held => {
                    inner.state = State::Running;
                    self.changed.notify_all();
                    return true;
                }
                Order::Run | Order::Pause => {
                    inner.state = State::Paused;
                    self.changed.notify_all();
                }
                Order::Finish => return false,
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_out_of_guest(&self, deadline: Instant) -> bool {
        let mut inner = self.lock();
        while inner.state == State::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// No input is known to lead here; if one is found, it must not leave a VM half alive.
fn own_panic(vcpu: u32) -> VcpuExit {
    let what = "the VMM's own code panicked on its thread; please report this".to_owned();
    let what = Unhandled { what, address: None };
    VcpuExit::Fault(Box::new(Fault { vcpu, what, registers: None }))
}

/// A vCPU and its thread. Dropped, it ends the thread and waits for it.
pub(super) struct VcpuThread {
    mailbox: Arc<VcpuMailbox>,
    vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VcpuThread {
    /// Starts the thread, paused. `on_end` is called on it at most once, if this vCPU ends the VM.
    pub(super) fn spawn(
        index: u32,
        vcpu: Box<dyn Vcpu>,
        services: Arc<Services>,
        on_end: impl Fn(VcpuExit) + Send + 'static,
    ) -> std::io::Result<Self> {
        let mailbox = Arc::new(VcpuMailbox {
            inner: Mutex::new(Orders { order: Order::Pause, held: false, state: State::Running }),
            changed: Condvar::new(),
            kick: vcpu.kicker()?,
            thread: OnceLock::new(),
        });
        let vcpu = Arc::new(Mutex::new(vcpu));
        let (own_mailbox, own_vcpu) = (Arc::clone(&mailbox), Arc::clone(&vcpu));
        let body = move || {
            // A thread starts with it blocked. It is a valid signal, so this cannot fail.
            let _ = unblock_signal(KICK_SIGNAL);
            let _ = own_mailbox.thread.set(gettid());
            while own_mailbox.wait_for_run() {
                let mut vcpu = own_vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                if index == 0 {
                    services.counters.stamp_first_entry();
                }
                let end = catch_unwind(AssertUnwindSafe(|| run(index, &mut **vcpu, &services)))
                    .unwrap_or_else(|_| Some(own_panic(index)));
                drop(vcpu);
                if let Some(end) = end {
                    on_end(end);
                    break;
                }
            }
            own_mailbox.answer(State::Finished);
        };
        let thread = thread::spawn(Role::Vcpu, format!("vcpu{index}"), STACK_SIZE, body)?;
        Ok(Self { mailbox, vcpu, thread: Mutex::new(Some(thread)) })
    }

    /// Gives an order and sees to it that the thread notices.
    pub(super) fn give(&self, order: Order) {
        self.mailbox.give(order);
        if order != Order::Run {
            self.kick();
        }
    }

    /// Has the vCPU stay out of the guest until [`release`](Self::release), whatever it is ordered to do meanwhile. It is
    /// not waited for.
    pub(super) fn hold(&self) {
        self.mailbox.hold(true);
        self.kick();
    }

    /// Ends [`hold`](Self::hold).
    pub(super) fn release(&self) {
        self.mailbox.hold(false);
    }

    fn kick(&self) {
        if let Some(thread) = &*self.handle() {
            // The only failure is a thread that has gone, which needs no signal.
            let _ = thread.kill(KICK_SIGNAL);
        }
    }

    fn handle(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread, as the kernel knows it, once it runs.
    pub(super) fn id(&self) -> Option<Pid> {
        self.mailbox.thread.get().copied()
    }

    /// Waits until the vCPU is out of the guest; `false` if it is not by the deadline.
    pub(super) fn wait_out_of_guest(&self, deadline: Instant) -> bool {
        self.mailbox.wait_out_of_guest(deadline)
    }

    /// The vCPU of a thread that is out of the guest.
    pub(super) fn vcpu(&self) -> MutexGuard<'_, Box<dyn Vcpu>> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the thread's end; it must have been told to finish.
    pub(super) fn join(&self) {
        let thread = self.handle().take();
        if let Some(thread) = thread {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.give(Order::Finish);
        self.join();
    }
}
