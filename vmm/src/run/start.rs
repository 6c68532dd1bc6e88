//! The order of start-up: from a description to a guest that has ended.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::rc::Rc;

use super::broker_events::BrokerEvents;
use super::controller::MachineController;
use super::error::Error;
use super::event_loop::Loop;
use super::exit_reason::ExitReason;
use super::exit_watcher::ExitWatcher;
use super::power_key::PowerKeyTimer;
use super::shutdown::ShutdownRequest;
use super::tag_events::TagEvents;
use crate::api::Server;
use crate::console::{self, Input, Keys, Listener, Lost, Output, Quiesce, RawTerminal, Verb};
use crate::error::say;
use crate::events::EventLog;
use crate::hypervisor::Hypervisor;
use crate::machine::{Board, Machine, Mte};
use crate::memory::tag_checks;
use crate::spec::{SerialTarget, Spec};
use crate::sys::signals::Signals;
use crate::sys::startup_pages;

/// Makes the machine, runs the guest to its end, and cleans up.
pub(super) fn start(
    hypervisor: &dyn Hypervisor,
    spec: &Spec,
    api_sock: Option<&Path>,
) -> Result<ExitReason, Error> {
    tag_checks::disable();
    let board = Board::new(spec, hypervisor)?;
    announce_mte(board.mte(), spec);
    let (command_line, disks) = (board.command_line(spec), board.disks(spec));
    let spec = &Spec { command_line, disks, ..spec.clone() };
    // From here on there are things to clean up, so signals no longer end the process by themselves.
    let signals = Signals::block().map_err(Error::Events)?;
    let quiesce = Quiesce::default();
    let lost = Lost::new()?;
    let (output, listener) = open_console(&spec.serial, &quiesce, &lost)?;
    let mut machine = Machine::new(board, spec, output, quiesce, EventLog::default())?;
    let serial = machine.serial();
    let device_events = machine.take_device_events();
    let balloon = machine.balloon().cloned();
    let machine = Rc::new(RefCell::new(machine));
    let shutdown = ShutdownRequest::default();
    let key = PowerKeyTimer::new(&machine).map_err(Error::Events)?;

    let mut events = Loop::new()?;
    let mut server = None;
    if let Some(path) = api_sock {
        let handle = MachineController::new(&machine, key.clone(), shutdown.clone(), spec);
        let bound = Rc::new(RefCell::new(Server::bind(path, handle)?));
        events.add(Box::new(Rc::clone(&bound)));
        bound
            .borrow()
            .registered()
            .map_err(|error| Error::Events(io::Error::other(error.to_string())))?;
        server = Some(bound);
    }
    events.add(Box::new(ExitWatcher::new(&machine, signals, lost, shutdown.clone())));
    events.add(Box::new(key));
    if let Some(tags) = TagEvents::of(&machine, shutdown.clone()).map_err(Error::Events)? {
        events.add(Box::new(tags));
    }
    if let Some(broker) = BrokerEvents::of(&machine, shutdown.clone()).map_err(Error::Events)? {
        events.add(Box::new(broker));
    }
    device_events.into_iter().for_each(|device| events.add(device));
    if let Some(balloon) = balloon {
        events.add(Box::new(balloon));
    }
    let mut terminal = None;
    match (&spec.serial, listener) {
        (_, Some(mut listener)) => {
            listener.feed(serial)?;
            events.add(Box::new(listener));
        }
        (SerialTarget::Stdio, None) => {
            terminal = RawTerminal::enter().map_err(Error::Terminal)?;
            // Reading the terminal of another job would stop this process.
            if terminal.is_some() || !io::stdin().is_terminal() {
                let keys = terminal.is_some().then(Keys::default);
                let shutdown = shutdown.clone();
                let on_verb = move |Verb::Quit| shutdown.with(ExitReason::Stopped);
                events.add(Box::new(Input::new(serial, keys, on_verb)?));
            }
        }
        (_, None) => {}
    }

    machine.borrow_mut().resume()?;
    startup_pages::release();
    let reason = events.run_until(&shutdown);
    // A client that sees its connection end may rely on the guest's memory being free, and a user who
    // sees the prompt on the terminal being as before.
    drop(events);
    drop(machine);
    drop(terminal);
    drop(server);
    reason
}

fn announce_mte(mte: &Mte, spec: &Spec) {
    let Mte::Unavailable(why) = mte else { return };
    say(&format!("this host cannot give the guest MTE (--mte auto), and it runs without: {why}"));
    if let Some(wanted) = &spec.tag_storage {
        let mode = wanted.when.mode();
        say(&format!("a guest without MTE needs no tag storage: --tag-storage {mode} is off"));
    }
}

fn open_console(
    target: &SerialTarget,
    quiesce: &Quiesce,
    lost: &Lost,
) -> Result<(Output, Option<Listener>), console::Error> {
    Ok(match target {
        SerialTarget::Stdio => (Output::stdout(quiesce.clone(), lost.clone())?, None),
        SerialTarget::File(path) => (Output::file(path, quiesce.clone(), lost.clone())?, None),
        SerialTarget::Socket(path) => {
            let listener = Listener::bind(Path::new(path))?;
            (Output::client(listener.client()), Some(listener))
        }
        SerialTarget::None => (Output::nowhere(), None),
    })
}

#[cfg(test)]
mod tests;
