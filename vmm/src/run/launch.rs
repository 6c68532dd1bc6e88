//! From a description to a machine whose events are watched: what a start does, whenever it comes.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::rc::Rc;

use event_manager::MutEventSubscriber;

use super::broker_events::BrokerEvents;
use super::controller::MachineController;
use super::error::Error;
use super::event_loop::Subscribers;
use super::exit_reason::ExitReason;
use super::exit_watcher::ExitWatcher;
use super::files;
use super::metrics_file::{MetricsFile, MetricsTimer};
use super::power_key::PowerKeyTimer;
use super::shutdown::ShutdownRequest;
use super::signal_watcher::SignalWatcher;
use super::snapshots::{self, Restore};
use super::tag_events::TagEvents;
use crate::console::{self, Input, Keys, Listener, Lost, Output, Quiesce, RawTerminal, Verb};
use crate::error::{log_to, say};
use crate::events::{Event, EventLog};
use crate::hypervisor::Hypervisor;
use crate::machine::{Board, Machine, Mte};
use crate::sandbox;
use crate::spec::{SerialTarget, Spec};
use crate::sys::signals::Signals;
use crate::sys::thread::Role;
use crate::sys::{append, startup_pages};

/// What a start needs. Clones are the same.
#[derive(Clone)]
pub(super) struct Launcher<'h> {
    hypervisor: &'h dyn Hypervisor,
    shutdown: ShutdownRequest,
    log: EventLog,
    subscribers: Subscribers<'h>,
    running: Rc<RefCell<Option<Running>>>,
    signals_caught: Rc<Cell<bool>>,
}

/// A machine that has started.
pub(super) struct Running {
    // Field order is drop order: a user who sees the prompt on the terminal finds it as before.
    machine: Rc<RefCell<Machine>>,
    _terminal: Option<RawTerminal>,
}

/// A machine that has not started.
pub(super) struct Launched {
    running: Running,
    subscribers: Vec<Box<dyn MutEventSubscriber>>,
}

impl<'h> Launcher<'h> {
    pub(super) fn new(
        hypervisor: &'h dyn Hypervisor,
        shutdown: ShutdownRequest,
        log: EventLog,
        subscribers: Subscribers<'h>,
    ) -> Self {
        let (running, signals_caught) = (Rc::default(), Rc::default());
        Self { hypervisor, shutdown, log, subscribers, running, signals_caught }
    }

    /// Makes signals events: from here on there are things to clean up, so that they may no longer end the process
    /// by themselves.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    pub(super) fn catch_signals(&self) -> Result<(), Error> {
        if !self.signals_caught.get() {
            let signals = Signals::block().map_err(Error::Events)?;
            self.signals_caught.set(true);
            self.subscribers.add(Box::new(SignalWatcher::new(signals, self.shutdown.clone())));
        }
        Ok(())
    }

    /// Makes the machine of a description, or restores it, and its controller. Nothing of it runs.
    ///
    /// # Errors
    /// When it cannot be made. Nothing is left of it then.
    pub(super) fn make(
        &self,
        spec: Spec,
        restore: Option<Restore>,
    ) -> Result<(Launched, MachineController), Error> {
        sandbox::check_free()?;
        if let Some(path) = &spec.log {
            let opened = append::open(path);
            let path = path.clone();
            log_to(opened.map_err(|source| Error::Output { path, what: "log", source })?);
        }
        sandbox::restrict_files(files::of_the_vm(&spec, restore.as_ref()))?;
        let restored = restore.is_some();
        let board = match restore {
            None => Board::new(&spec, self.hypervisor)?,
            Some(restore) => snapshots::board(&spec, self.hypervisor, restore)?,
        };
        announce_mte(board.mte(), &spec);
        let (command_line, disks) = (board.command_line(&spec), board.disks(&spec));
        let spec = Spec { command_line, disks, ..spec };
        self.catch_signals()?;
        let metrics = MetricsFile::of(&spec)?;
        let quiesce = Quiesce::default();
        let lost = Lost::new()?;
        let (output, listener) = open_console(&spec.serial, &quiesce, &lost)?;
        let mut machine = Machine::new(board, &spec, output, quiesce, self.log.clone())?;
        let mut subscribers = machine.take_device_events();
        let machine = Rc::new(RefCell::new(machine));
        let key = PowerKeyTimer::new(&machine).map_err(Error::Events)?;
        self.watch(&machine, lost, &key, metrics.as_ref(), &mut subscribers)?;
        let terminal = self.read_console(&machine, &spec.serial, listener, &mut subscribers)?;
        let shutdown = self.shutdown.clone();
        let controller = MachineController::new(&machine, key, shutdown, metrics, spec);
        if restored {
            self.log.publish(&Event::Restored);
        }
        let running = Running { machine, _terminal: terminal };
        Ok((Launched { running, subscribers }, controller))
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When a vCPU does not start, or the main thread cannot be confined.
    pub(super) fn start(&self, launched: Launched) -> Result<(), Error> {
        sandbox::confine(Role::Main)?;
        launched.running.machine.borrow_mut().resume()?;
        self.watch_events(launched);
        Ok(())
    }

    /// Leaves it as it is: paused, until a client resumes it.
    ///
    /// # Errors
    /// When the main thread cannot be confined.
    pub(super) fn hold(&self, launched: Launched) -> Result<(), Error> {
        sandbox::confine(Role::Main)?;
        self.watch_events(launched);
        Ok(())
    }

    fn watch_events(&self, launched: Launched) {
        let Launched { running, subscribers } = launched;
        subscribers.into_iter().for_each(|subscriber| self.subscribers.add(subscriber));
        *self.running.borrow_mut() = Some(running);
        startup_pages::release_stack();
        self.subscribers.started();
    }

    /// Ends the machine, if there is one.
    pub(super) fn end(&self) {
        drop(self.running.borrow_mut().take());
    }

    fn watch(
        &self,
        machine: &Rc<RefCell<Machine>>,
        lost: Lost,
        key: &PowerKeyTimer,
        metrics: Option<&MetricsFile>,
        subscribers: &mut Vec<Box<dyn MutEventSubscriber>>,
    ) -> Result<(), Error> {
        let shutdown = || self.shutdown.clone();
        subscribers.push(Box::new(ExitWatcher::new(machine, lost, shutdown())));
        subscribers.push(Box::new(key.clone()));
        if let Some(tags) = TagEvents::of(machine, shutdown()).map_err(Error::Events)? {
            subscribers.push(Box::new(tags));
        }
        if let Some(broker) = BrokerEvents::of(machine, shutdown()).map_err(Error::Events)? {
            subscribers.push(Box::new(broker));
        }
        if let Some(balloon) = machine.borrow().balloon().cloned() {
            subscribers.push(Box::new(balloon));
        }
        if let Some(file) = metrics {
            let timer = MetricsTimer::new(file.clone(), machine).map_err(Error::Events)?;
            subscribers.push(Box::new(timer));
        }
        Ok(())
    }

    fn read_console(
        &self,
        machine: &Rc<RefCell<Machine>>,
        target: &SerialTarget,
        listener: Option<Listener>,
        subscribers: &mut Vec<Box<dyn MutEventSubscriber>>,
    ) -> Result<Option<RawTerminal>, Error> {
        let serial = machine.borrow().serial();
        match (target, listener) {
            (_, Some(mut listener)) => {
                listener.feed(serial)?;
                subscribers.push(Box::new(listener));
                Ok(None)
            }
            (SerialTarget::Stdio, None) => {
                let terminal = RawTerminal::enter().map_err(Error::Terminal)?;
                // Reading the terminal of another job would stop this process.
                if terminal.is_some() || !io::stdin().is_terminal() {
                    let keys = terminal.is_some().then(Keys::default);
                    let shutdown = self.shutdown.clone();
                    let on_verb = move |Verb::Quit| shutdown.with(ExitReason::Stopped);
                    subscribers.push(Box::new(Input::new(serial, keys, on_verb)?));
                }
                Ok(terminal)
            }
            (_, None) => Ok(None),
        }
    }
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
