//! Carries a command's streams between it and its client, until it has ended.
//!
//! One thread, one poll(2), no end that waits: input that the command does not read is bounded by the
//! client's credit, output that the client does not read by [`OUTPUT_BUFFER`]. Frames of the client are
//! read at all times, so that a signal gets through whatever else waits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use agent::protocol::frame::{self, Decoder, Frame, Kind};
use agent::protocol::limits::{INPUT_WINDOW, OUTPUT_BUFFER};
use agent::protocol::message::{Exit, Size};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};
use rustix::termios::tcsetwinsize;

use super::pipe::{Got, Queue, read};
use super::spawn::{Spawned, winsize};
use crate::connection::Connection;

/// What one read takes.
const CHUNK: usize = 32 << 10;
/// Credit is given in pieces of at least this much while there is more input to write.
const CREDIT: u32 = INPUT_WINDOW / 4;
/// What a terminal may still hold when its command has ended: more than the kernel buffers for one
/// (`TTYB_DEFAULT_MEM_LIMIT` in drivers/tty/tty_buffer.c).
const TERMINAL_REST: usize = 256 << 10;
/// End of input on a terminal (VEOF): Ctrl-D.
const END_OF_INPUT: u8 = 4;

/// What a descriptor of the poll is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Client,
    Process,
    Input,
    Output(usize),
}

/// A command and its client.
#[derive(Debug)]
pub(crate) struct Relay {
    /// `None` when the client has gone.
    client: Option<Connection>,
    decoder: Decoder,
    /// Frames for the client.
    frames: Queue,
    pid: Pid,
    pidfd: OwnedFd,
    is_terminal: bool,
    die_with_client: bool,
    /// Standard output, or the terminal, and standard error; `None` when it is closed.
    outputs: [Option<Rc<OwnedFd>>; 2],
    /// `None` when it is closed.
    input: Option<Rc<OwnedFd>>,
    /// Input that the command has not taken.
    pending: Queue,
    /// What the client may still send.
    window: u32,
    /// Input that was taken, and for which no credit has been given.
    owed: u32,
    input_ended: bool,
    /// The last byte of a terminal's input, which decides what its end needs.
    last_byte: u8,
    /// How it ended.
    exit: Option<Exit>,
    /// After that, how much of each output is still to be carried.
    rest: [usize; 2],
    exit_is_sent: bool,
}

impl Relay {
    /// A command that has just been started for this client.
    pub(crate) fn new(client: Connection, command: Spawned, die_with_client: bool) -> Self {
        Self {
            client: Some(client),
            decoder: Decoder::default(),
            frames: Queue::default(),
            pid: command.pid,
            pidfd: command.pidfd,
            is_terminal: command.is_terminal,
            die_with_client,
            outputs: command.outputs,
            input: Some(command.input),
            pending: Queue::default(),
            window: INPUT_WINDOW,
            owed: 0,
            input_ended: false,
            last_byte: b'\n',
            exit: None,
            rest: [0; 2],
            exit_is_sent: false,
        }
    }

    /// Serves both until the command has ended and the client has all its output, or has gone.
    ///
    /// # Errors
    /// When the client cannot be served; the command runs on.
    pub(crate) fn run(mut self) -> io::Result<()> {
        if let Some(client) = &self.client {
            client.set_nonblocking(true)?;
        }
        loop {
            self.settle();
            let is_served = self.client.is_none() || (self.exit_is_sent && self.frames.is_empty());
            if self.exit.is_some() && is_served {
                break;
            }
            for (source, events) in self.wait()? {
                self.serve(source, events);
            }
        }
        if let Some(client) = self.client {
            client.finish();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = Vec::with_capacity(5);
        let mut fds = Vec::with_capacity(5);
        if let Some(client) = &self.client {
            let out = if self.frames.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            sources.push(Source::Client);
            fds.push(PollFd::new(client, PollFlags::IN | out));
        }
        if self.exit.is_none() {
            sources.push(Source::Process);
            fds.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        if let Some(input) = &self.input
            && (!self.pending.is_empty() || !self.is_terminal)
        {
            // With no event asked for, a pipe says when its reader has gone.
            let out = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            sources.push(Source::Input);
            fds.push(PollFd::new(&**input, out));
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output
                && self.takes_output()
            {
                sources.push(Source::Output(index));
                fds.push(PollFd::new(&**output, PollFlags::IN));
            }
        }
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        }?;
        let events = fds.iter().map(PollFd::revents);
        Ok(sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    fn takes_output(&self) -> bool {
        self.client.is_none() || self.frames.len() < OUTPUT_BUFFER
    }

    fn serve(&mut self, source: Source, events: PollFlags) {
        match source {
            Source::Client => self.serve_client(events),
            Source::Process => self.reap(),
            Source::Input => self.write_input(events),
            Source::Output(index) => {
                self.read_output(index, CHUNK);
            }
        }
    }

    /// What needs no event.
    fn settle(&mut self) {
        if self.input_ended && self.pending.is_empty() && !self.is_terminal {
            self.input = None;
        }
        self.give_credit();
        if let Some(exit) = self.exit {
            self.carry_rest(exit);
        }
    }

    fn serve_client(&mut self, events: PollFlags) {
        if events.contains(PollFlags::OUT)
            && let Some(client) = &mut self.client
            && self.frames.write_to(|bytes| io::Write::write(client, bytes)).is_err()
        {
            return self.lose_client();
        }
        if !events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        let mut chunk = [0; CHUNK];
        let got = self.client.as_ref().map(|client| read(client, &mut chunk));
        match got {
            Some(Got::Bytes(count)) => self.decoder.push(chunk.get(..count).unwrap_or_default()),
            Some(Got::End) => return self.lose_client(),
            Some(Got::Nothing) | None => return,
        }
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) if self.take(&frame).is_ok() => {}
                Ok(None) => break,
                // It does not keep to the protocol.
                Ok(Some(_)) | Err(_) => return self.lose_client(),
            }
        }
    }

    /// One frame of the client.
    fn take(&mut self, frame: &Frame) -> Result<(), agent::protocol::Error> {
        use agent::protocol::Error::{Size as WrongSize, Unexpected};
        match frame.kind {
            Kind::Input => {
                let length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
                self.window = self.window.checked_sub(length).ok_or(Unexpected(Kind::Input))?;
                if self.input_ended {
                    return Err(Unexpected(Kind::Input));
                }
                self.queue_input(&frame.payload);
            }
            Kind::InputEnd => self.end_input(),
            Kind::Signal => {
                let [number] = frame.payload[..] else { return Err(WrongSize(frame.kind)) };
                let signal = Signal::from_named_raw(i32::from(number));
                self.kill(signal.ok_or(WrongSize(frame.kind))?);
            }
            Kind::Resize => {
                let (rows, columns) = frame.size()?;
                if let Some(terminal) = &self.input
                    && self.is_terminal
                {
                    // A terminal whose command has gone needs no size.
                    let _ = tcsetwinsize(terminal, winsize(Size { rows, columns }));
                }
            }
            // The command gets SIGPIPE, as with a pipe to the reader itself.
            Kind::OutputClosed => self.outputs[0] = None,
            Kind::ErrorsClosed => self.outputs[1] = None,
            other => return Err(Unexpected(other)),
        }
        Ok(())
    }

    fn queue_input(&mut self, bytes: &[u8]) {
        if self.input.is_some() {
            self.last_byte = bytes.last().copied().unwrap_or(self.last_byte);
            self.pending.append(|pending| pending.extend_from_slice(bytes));
        }
    }

    fn end_input(&mut self) {
        if self.is_terminal && !self.input_ended {
            // In the middle of a line the first one only sends what is there of it (termios(3)).
            let count = if self.last_byte == b'\n' { 1 } else { 2 };
            self.queue_input(&[END_OF_INPUT; 2][..count]);
        }
        self.input_ended = true;
    }

    /// Sends a signal to the command's process group.
    fn kill(&self, signal: Signal) {
        // Once it has been waited for, the number may be another's.
        if self.exit.is_none() {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Without a client, a command with a terminal gets SIGHUP as the terminal goes; any other one runs on:
    /// its input ends and its output is dropped.
    fn lose_client(&mut self) {
        self.client = None;
        self.frames.clear();
        self.input_ended = true;
        if self.is_terminal {
            self.pending.clear();
            self.input = None;
            self.outputs = [None, None];
        }
        if self.die_with_client {
            self.kill(Signal::KILL);
        }
    }

    fn write_input(&mut self, events: PollFlags) {
        let Some(input) = &self.input else { return };
        let closed =
            !events.contains(PollFlags::OUT) && events.intersects(PollFlags::ERR | PollFlags::HUP);
        let written = match closed {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => self.pending.write_to(|bytes| Ok(rustix::io::write(input, bytes)?)),
        };
        match written {
            Ok(count) => self.owed = self.owed.saturating_add(u32::try_from(count).unwrap_or(0)),
            Err(_) => {
                self.input = None;
                self.pending.clear();
                self.send(Kind::InputClosed, &[]);
            }
        }
    }

    fn give_credit(&mut self) {
        let due = self.owed >= CREDIT || (self.owed > 0 && self.pending.is_empty());
        // What a terminal's end of input took was not the client's.
        let owed = self.owed.min(INPUT_WINDOW.saturating_sub(self.window));
        if due && self.client.is_some() && self.frames.len() < OUTPUT_BUFFER {
            self.owed = 0;
            self.window = self.window.saturating_add(owed);
            self.send(Kind::Credit, &owed.to_le_bytes());
        }
    }

    fn read_output(&mut self, index: usize, most: usize) -> Got {
        let mut chunk = [0; CHUNK];
        let buffer = chunk.get_mut(..most.min(CHUNK)).unwrap_or_default();
        let Some(output) = self.outputs.get(index).and_then(Option::as_ref) else {
            return Got::End;
        };
        let got = read(output, buffer);
        match got {
            Got::Bytes(count) => {
                let kind = if index == 0 { Kind::Output } else { Kind::Errors };
                let bytes = chunk.get(..count).unwrap_or_default();
                if self.client.is_some() {
                    self.frames.append(|frames| frame::push(frames, kind, bytes));
                }
            }
            Got::Nothing => {}
            Got::End => self.close_output(index),
        }
        got
    }

    fn close_output(&mut self, index: usize) {
        if let Some(output) = self.outputs.get_mut(index) {
            *output = None;
        }
    }

    /// Waits for the command, which has ended.
    fn reap(&mut self) {
        let status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => exit(&status),
            Ok(None) => return,
            // Nothing is known of its end then.
            Err(_) => Exit::Code(u8::MAX),
        };
        // A process that the command has left behind may write for ever: only what is there now is carried.
        let rest = self.outputs.each_ref().map(|output| match output {
            None => 0,
            Some(_) if self.is_terminal => TERMINAL_REST,
            Some(output) => {
                ioctl_fionread(output).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
            }
        });
        (self.exit, self.rest) = (Some(status), rest);
        self.input = None;
        self.pending.clear();
        if self.client.is_none() {
            self.outputs = [None, None];
        }
    }

    /// The rest of the output of a command that has ended, and then its exit.
    fn carry_rest(&mut self, exit: Exit) {
        for index in 0..self.rest.len() {
            while self.takes_output() && self.outputs[index].is_some() {
                match self.read_output(index, self.rest[index]) {
                    Got::Bytes(count) if count < self.rest[index] => self.rest[index] -= count,
                    _ => self.close_output(index),
                }
            }
        }
        if !self.exit_is_sent && self.outputs.iter().all(Option::is_none) {
            self.exit_is_sent = true;
            // Its form is a few bytes: it always fits.
            let exit = serde_json::to_vec(&exit).unwrap_or_default();
            self.send(Kind::Exit, &exit);
        }
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        if self.client.is_some() {
            self.frames.append(|frames| frame::push(frames, kind, payload));
        }
    }
}

fn exit(status: &WaitIdStatus) -> Exit {
    let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(byte(code)),
        (None, Some(signal)) => Exit::Signal(byte(signal)),
        (None, None) => Exit::Code(u8::MAX),
    }
}
