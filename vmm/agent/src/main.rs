//! `tessera-agent`: runs in a guest, and there runs commands and copies files for the host over vsock. It
//! also sets the clock after a pause, and powers the guest off when the power key is pressed and no driver
//! of the kernel takes it.

mod args;
mod clock;
mod connection;
mod copy;
mod exec;
mod listen;
mod power_key;
mod session;
mod sys;
mod users;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::args::{Options, Task};
use crate::listen::Listener;
use crate::session::Shared;

/// The stack of a connection's thread.
const STACK: usize = 512 << 10;
/// How long the agent waits where the kernel cannot give it a connection, for lack of memory or descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// The command line is wrong (EX_USAGE of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// The agent cannot listen (EX_UNAVAILABLE of sysexits.h).
const EXIT_UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Task::Help) => print(args::HELP),
        Ok(Task::Version) => print(&format!("{}\n", session::AGENT)),
        Err(message) => {
            say(&message);
            return ExitCode::from(EXIT_USAGE);
        }
        Ok(Task::Serve(options)) => match serve(&options) {
            Ok(()) => {}
            Err(error) => {
                say(&chain(&error));
                return ExitCode::from(EXIT_UNAVAILABLE);
            }
        },
    }
    ExitCode::SUCCESS
}

fn serve(options: &Options) -> Result<(), listen::Error> {
    sys::child::forget_parent();
    let shared = Shared::new(raise_descriptors());
    let listener = Listener::bind(&options.listen, options.any_peer)?;
    if options.clock {
        background("clock", clock::watch);
    }
    if options.power_key {
        background("power-key", power_key::watch);
    }
    say(&format!("{} listens at {:?}", session::AGENT, options.listen));
    loop {
        match listener.accept() {
            Ok(Some(connection)) => begin(connection, &shared),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // One that went before it was accepted, or a kernel that is short of something.
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Serves a connection on a thread of its own.
fn begin(connection: connection::Connection, shared: &Arc<Shared>) {
    let Some(place) = shared.enter() else { return session::refuse_busy(connection) };
    let started =
        thread::Builder::new().name("operation".into()).stack_size(STACK).spawn(move || {
            if let Err(error) = session::serve(connection, &place) {
                // The client has seen the connection end.
                say(&format!("a connection failed: {error}"));
            }
        });
    if let Err(error) = started {
        say(&format!("a connection was not served, as there is no thread for it: {error}"));
    }
}

fn background(name: &str, act: fn() -> Result<(), String>) {
    let own = name.to_owned();
    let started = thread::Builder::new().name(name.into()).stack_size(STACK).spawn(move || {
        if let Err(message) = act() {
            say(&format!("{own}: {message}"));
        }
    });
    if let Err(error) = started {
        say(&format!("{name}: no thread: {error}"));
    }
}

/// As many descriptors as this process may have, for many operations; returns what it had.
fn raise_descriptors() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    // With fewer the agent serves fewer operations.
    let _ =
        setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    before
}

/// An error and its sources on one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(": ");
        line.push_str(&source.to_string());
        next = source.source();
    }
    line
}

fn print(text: &str) {
    // Nothing is left to report to if the reader has gone.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// A line for the journal.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "tessera-agent: {message}");
}
