//! The order of start-up: from a description to a guest that has ended.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use super::Waiting;
use super::draft_controller::{DraftController, Phase};
use super::entry::Listed;
use super::error::Error;
use super::event_loop::Loop;
use super::exit_reason::ExitReason;
use super::launch::Launcher;
use super::shutdown::ShutdownRequest;
use super::snapshots::Restore;
use crate::api::Server;
use crate::error::chain;
use crate::events::{Event, EventLog};
use crate::hypervisor::Hypervisor;
use crate::memory::tag_checks;
use crate::spec::Spec;
use crate::sys::supervisor;
use crate::vcpu::VcpuExit;

/// Makes the machine, or restores it, runs the guest to its end, and cleans up.
// Boxed up to the call that uses them up: opened earlier, they stay in a frame that lasts as long as the guest.
pub(super) fn start(
    hypervisor: &dyn Hypervisor,
    spec: Box<Spec>,
    restore: Option<Box<Restore>>,
    api_sock: Option<&Path>,
    entry: Listed,
) -> Result<ExitReason, Error> {
    tag_checks::disable();
    let mut vm = Process::new(hypervisor, api_sock, entry)?;
    let leave_sockets = spec.leave_sockets;
    let runs = restore.as_ref().is_none_or(|restore| restore.resume);
    let (launched, controller) = vm.launcher.make(*spec, restore.map(|restore| *restore))?;
    let phase = Phase::Started(controller);
    let server = api_sock.map(|path| vm.serve(path, phase, leave_sockets)).transpose()?;
    match runs {
        true => vm.launcher.start(launched)?,
        false => vm.launcher.hold(launched)?,
    }
    vm.run(server)
}

/// Has a client of the control socket configure a VM and start it, runs the guest to its end, and cleans up.
// Not inlined: its frame would be a part of its caller's, which every running VM keeps.
#[inline(never)]
pub(super) fn start_on_request(
    hypervisor: &dyn Hypervisor,
    waiting: Box<Waiting<'_>>,
    entry: Listed,
) -> Result<ExitReason, Error> {
    let Waiting { config, draft, flags, api_sock } = *waiting;
    tag_checks::disable();
    let mut vm = Process::new(hypervisor, Some(api_sock), entry)?;
    vm.launcher.catch_signals()?;
    let (launcher, shutdown) = (vm.launcher.clone(), vm.shutdown.clone());
    let entry = vm.entry.clone();
    let controller = DraftController::new(config, draft, flags, entry, launcher, shutdown);
    let phase = Phase::NotStarted(Box::new(controller));
    let server = vm.serve(api_sock, phase, flags.leave_sockets)?;
    vm.run(Some(server))
}

type SharedServer<'h> = Rc<RefCell<Server<Phase<'h>>>>;

/// The main thread of a VM's process.
struct Process<'h> {
    events: Loop<'h>,
    launcher: Launcher<'h>,
    shutdown: ShutdownRequest,
    log: EventLog,
    entry: Listed,
}

impl<'h> Process<'h> {
    /// A process whose events clients may follow if there is a control socket.
    fn new(
        hypervisor: &'h dyn Hypervisor,
        api_sock: Option<&Path>,
        entry: Listed,
    ) -> Result<Self, Error> {
        let log = match api_sock {
            Some(_) => EventLog::new().map_err(Error::Events)?,
            None => EventLog::default(),
        };
        let shutdown = ShutdownRequest::default();
        let events = Loop::new()?;
        let launcher =
            Launcher::new(hypervisor, shutdown.clone(), log.clone(), events.subscribers());
        Ok(Self { events, launcher, shutdown, log, entry })
    }

    fn serve(
        &mut self,
        path: &Path,
        phase: Phase<'h>,
        leave_socket: bool,
    ) -> Result<SharedServer<'h>, Error> {
        let mut server = Server::bind(path, phase, self.log.clone())?;
        if leave_socket {
            server.leave_socket();
        }
        let server = Rc::new(RefCell::new(server));
        self.events.add(Box::new(Rc::clone(&server)));
        let registered = server.borrow().registered().map_err(|error| error.to_string());
        registered.map_err(|error| Error::Events(io::Error::other(error)))?;
        Ok(server)
    }

    fn run(self, server: Option<SharedServer<'h>>) -> Result<ExitReason, Error> {
        let Self { mut events, launcher, shutdown, log, entry } = self;
        // The VM is of use without its service manager.
        let _ = supervisor::notify_ready();
        let reason = events.run_until(&shutdown);
        // A client that sees its connection end may rely on the guest's memory being free, and a user who
        // sees the prompt on the terminal being as before.
        drop(events);
        launcher.end();
        // The id is free for the next VM before a client sees that this one has gone.
        entry.remove();
        if let Some(server) = server {
            if let Ok(ExitReason::Guest(VcpuExit::GuestPanic)) = reason {
                log.publish(&Event::GuestPanic);
            }
            log.publish(&ended(&reason));
            server.borrow_mut().end_events();
        }
        reason
    }
}

/// The last event of a VM.
fn ended(reason: &Result<ExitReason, Error>) -> Event {
    let (status, word, message) = match reason {
        Ok(reason) => {
            let (status, message) = reason.report();
            (status, reason.word(), message)
        }
        Err(error) => (error.status(), "failed", Some(chain(error))),
    };
    let message = message.as_deref().map(Into::into);
    Event::Ended { status: status as u8, reason: word, message }
}

#[cfg(test)]
mod tests;
