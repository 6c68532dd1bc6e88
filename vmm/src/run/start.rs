//! The main thread of a running VM: its event loop, and everything on it.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::fd::{AsRawFd, RawFd};

use super::broker_events::BrokerEvents;
use super::handle::Handle;
use super::tag_events::TagEvents;
use super::{Ending, Error, Finish};
use crate::console::{self, Input, Keys, Listener, Lost, Output, Quiesce, RawTerminal, Verb};
use crate::control::Server;
use crate::error::say;
use crate::machine::{Board, Machine, Mte};
use crate::spec::{SerialTarget, Spec};
use crate::sys::signals::Signals;
use crate::sys::timer::Timer;

/// How long the power key is held. Guests debounce it: Linux reads the key 5 ms after its interrupt
/// unless told otherwise (drivers/input/keyboard/gpio_keys.c).
const KEY_HELD: Duration = Duration::from_millis(100);

/// Makes the machine, runs the guest to its end, and cleans up.
pub(super) fn start(spec: &Spec, api_sock: Option<&Path>) -> Result<Ending, Error> {
    let board = Board::new(spec)?;
    announce_mte(board.mte(), spec);
    let spec = &Spec { command_line: board.command_line(spec), ..spec.clone() };
    // From here on there are things to clean up, so signals no longer end the process by themselves.
    let signals = Signals::block().map_err(Error::Events)?;
    let quiesce = Quiesce::default();
    let lost = Lost::new()?;
    let (output, listener) = open_console(&spec.serial, &quiesce, &lost)?;
    let mut machine = Machine::new(board, spec, output, quiesce)?;
    let serial = machine.serial();
    let queue_events = machine.take_queue_events();
    let balloon = machine.balloon().cloned();
    let machine = Rc::new(RefCell::new(machine));
    let finish = Finish::default();
    let key = KeyTimer::new(&machine).map_err(Error::Events)?;

    let mut events = Loop::new()?;
    let mut server = None;
    if let Some(path) = api_sock {
        let handle = Handle::new(&machine, key.clone(), finish.clone(), spec);
        let bound = Rc::new(RefCell::new(Server::bind(path, handle)?));
        events.add(Box::new(Rc::clone(&bound)));
        bound
            .borrow()
            .registered()
            .map_err(|error| Error::Events(io::Error::other(error.to_string())))?;
        server = Some(bound);
    }
    events.add(Box::new(Endings::new(&machine, signals, lost, finish.clone())));
    events.add(Box::new(key));
    if let Some(tags) = TagEvents::of(&machine, finish.clone()) {
        events.add(Box::new(tags));
    }
    if let Some(broker) = BrokerEvents::of(&machine, finish.clone()).map_err(Error::Events)? {
        events.add(Box::new(broker));
    }
    queue_events.into_iter().for_each(|queues| events.add(queues));
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
                let finish = finish.clone();
                let on_verb = move |Verb::Quit| finish.with(Ending::Stopped);
                events.add(Box::new(Input::new(serial, keys, on_verb)?));
            }
        }
        (_, None) => {}
    }

    machine.borrow_mut().resume()?;
    let ending = events.run_until(&finish);
    // A client that sees its connection end may rely on the guest's memory being free, and a user who
    // sees the prompt on the terminal being as before.
    drop(events);
    drop(machine);
    drop(terminal);
    drop(server);
    ending
}

fn announce_mte(mte: Mte, spec: &Spec) {
    if mte != Mte::Unavailable {
        return;
    }
    say("this host cannot give the guest MTE (--mte auto): it runs without; see `tessera doctor`");
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

/// The main thread's event loop.
struct Loop(EventManager<Box<dyn MutEventSubscriber>>);

impl Loop {
    fn new() -> Result<Self, Error> {
        EventManager::new().map(Self).map_err(Error::Loop)
    }

    fn add(&mut self, subscriber: Box<dyn MutEventSubscriber>) {
        self.0.add_subscriber(subscriber);
    }

    fn run_until(&mut self, finish: &Finish) -> Result<Ending, Error> {
        loop {
            if let Some(ending) = finish.take() {
                return Ok(ending);
            }
            self.0.run().map_err(Error::Loop)?;
        }
    }
}

/// Everything that ends a VM by itself: its vCPUs, signals, the loss of its output.
struct Endings {
    machine: Rc<RefCell<Machine>>,
    signals: Signals,
    lost: Lost,
    finish: Finish,
}

impl Endings {
    fn new(machine: &Rc<RefCell<Machine>>, signals: Signals, lost: Lost, finish: Finish) -> Self {
        Self { machine: Rc::clone(machine), signals, lost, finish }
    }

    fn look(&self) {
        if let Some(end) = self.machine.borrow().vcpus().end() {
            self.finish.with(Ending::Guest(end));
        }
        if let Some(status) = self.signals.take() {
            self.finish.with(Ending::Signal(status));
        }
        if let Some(error) = self.lost.take() {
            self.finish.with(Ending::OutputLost(error));
        }
    }
}

impl MutEventSubscriber for Endings {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let vcpus = self.machine.borrow().vcpus().end_event().as_raw_fd();
        for fd in [vcpus, self.signals.as_raw_fd(), self.lost.event().as_raw_fd()] {
            watch(fd, ops, &self.finish);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Each event comes once and ends the loop, so none needs to be reset.
        self.look();
    }
}

/// Watches a descriptor without which the VM must not run.
pub(super) fn watch(fd: RawFd, ops: &mut EventOps<'_>, finish: &Finish) {
    if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
        finish.with(Ending::NoEvents(io::Error::other(error)));
    }
}

/// Lets the power key go a moment after it was pressed.
#[derive(Clone)]
pub(super) struct KeyTimer {
    machine: Weak<RefCell<Machine>>,
    timer: Rc<Timer>,
}

impl KeyTimer {
    fn new(machine: &Rc<RefCell<Machine>>) -> io::Result<Self> {
        Ok(Self { machine: Rc::downgrade(machine), timer: Rc::new(Timer::new()?) })
    }

    /// Lets the key go after the time that a press lasts.
    ///
    /// # Errors
    /// When the host refuses the timer.
    pub(super) fn start(&self) -> io::Result<()> {
        self.timer.once(KEY_HELD)
    }
}

impl MutEventSubscriber for KeyTimer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without its event the key would stay pressed, which does the guest no harm.
        let _ = ops.add(Events::new_raw(self.timer.as_raw_fd(), EventSet::IN));
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if !self.timer.take() {
            return;
        }
        let Some(machine) = self.machine.upgrade() else { return };
        if machine.borrow().is_paused() {
            // A guest that stands still has not felt the press. If the timer fails, it stays pressed.
            let _ = self.start();
        } else {
            machine.borrow().set_power_key(false);
        }
    }
}
