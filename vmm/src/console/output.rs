//! The guest's output: written on the vCPU's thread, byte by byte as the UART gives it. A reader that is
//! slow holds up the guest, but neither the event loop nor a pause.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::fs::{Mode, OFlags};
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use super::socket::Client;
use crate::sys::nonblocking::NonBlocking;
use crate::vcpu::OutputThrottle;

/// How often a vCPU that waits for a slow reader looks whether it must give way. Only a pause or the end
/// of the VM waits for it, and only if the signal that comes with them was missed by a hair.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How long it waits where the output can be written to and takes nothing: a terminal that has room for one
/// byte has none for a newline, which becomes two.
const PAUSE: Duration = Duration::from_millis(10);

/// Bytes kept for a reader that is behind. A vCPU that has left one here does not go on before it is
/// gone, so there is at most one a vCPU, and another for each pause; what is over is dropped and counted.
const MAX_KEPT: usize = 4096;

/// Tells vCPUs that wait for a slow reader to give way: the VM is being paused or ended.
#[derive(Clone, Debug, Default)]
pub struct Quiesce(Arc<AtomicBool>);

impl Quiesce {
    /// From now on no write waits (`true`), or writes wait again.
    pub fn set(&self, give_way: bool) {
        self.0.store(give_way, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The first error of an output that ended it: shared with the event loop, which ends the VM.
#[derive(Clone)]
pub struct Lost {
    error: Arc<Mutex<Option<io::Error>>>,
    event: Arc<EventFd>,
}

impl Lost {
    /// Nothing lost yet.
    ///
    /// # Errors
    /// When the host gives no event.
    pub fn new() -> Result<Self, Error> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::Event)?;
        Ok(Self { error: Arc::default(), event: Arc::new(event) })
    }

    /// Raised when the output is lost.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Why the output was lost, if it was; reported once.
    pub fn take(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn report(&self, error: io::Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        // Full only if it is raised already.
        let _ = self.event.write(1);
    }
}

/// The guest's output as the serial device writes it. A `write` that fails has dropped its bytes, which
/// the device counts; an output that is gone for good is the event loop's business besides.
pub struct Output(Target);

enum Target {
    Nowhere,
    Stream(Arc<Stream>),
    Client(Client),
}

impl Output {
    /// Output that is dropped.
    pub fn nowhere() -> Self {
        Self(Target::Nowhere)
    }

    /// Output to the client of the console's socket.
    pub fn client(client: Client) -> Self {
        Self(Target::Client(client))
    }

    /// What keeps a vCPU from running ahead of this output's reader, if anything does.
    pub fn throttle(&self) -> Option<Arc<dyn OutputThrottle>> {
        match &self.0 {
            Target::Stream(stream) => Some(Arc::clone(stream) as Arc<dyn OutputThrottle>),
            Target::Nowhere | Target::Client(_) => None,
        }
    }

    /// Output to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn stdout(quiesce: Quiesce, lost: Lost) -> Result<Self, Error> {
        let fd = io::stdout().as_fd().try_clone_to_owned().map_err(Error::Stdio)?;
        let stream = Stream::new(NonBlocking::shared(fd), quiesce, lost);
        Ok(Self(Target::Stream(Arc::new(stream))))
    }

    /// Output to a file, which is created or emptied; readable by its owner only.
    ///
    /// # Errors
    /// When the file cannot be opened for writing.
    pub fn file(path: &Path, quiesce: Quiesce, lost: Lost) -> Result<Self, Error> {
        // Not blocking: a named pipe without a reader is an error here, not a VM that never starts.
        // Appending: after a truncation (log rotation) the next write is at the file's new end, not
        // behind a hole.
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::APPEND
            | OFlags::CLOEXEC
            | OFlags::NOCTTY
            | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| {
            let hint = match errno {
                rustix::io::Errno::NOENT => "create its directory first",
                rustix::io::Errno::NXIO => "it is a pipe or socket without a reader",
                rustix::io::Errno::ISDIR => "it is a directory",
                rustix::io::Errno::NOSPC => "the disk is full",
                _ => "choose a place you may write to",
            };
            Error::Open { path: path.to_owned(), hint, source: errno.into() }
        })?;
        let stream = Stream::new(NonBlocking::own(fd), quiesce, lost);
        Ok(Self(Target::Stream(Arc::new(stream))))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match &mut self.0 {
            Target::Nowhere => 0,
            Target::Stream(stream) => stream.take(bytes),
            Target::Client(client) => client.send(bytes),
        };
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file, pipe or terminal.
///
/// The serial port writes with its lock held, and the event loop needs that lock too, so a write never
/// waits. The vCPU waits for the reader afterwards, as its [`OutputThrottle`].
struct Stream {
    pending: Mutex<Pending>,
    /// Whether bytes are kept: what every vCPU asks after every store, without a lock.
    behind: AtomicBool,
    quiesce: Quiesce,
    lost: Lost,
}

struct Pending {
    output: Arc<NonBlocking>,
    kept: VecDeque<u8>,
    broken: bool,
}

impl Stream {
    fn new(output: NonBlocking, quiesce: Quiesce, lost: Lost) -> Self {
        let output = Arc::new(output);
        let pending = Mutex::new(Pending { output, kept: VecDeque::new(), broken: false });
        Self { pending, behind: AtomicBool::new(false), quiesce, lost }
    }

    /// Takes bytes without waiting, and says how many were not dropped.
    fn take(&self, bytes: &[u8]) -> usize {
        let mut pending = self.lock();
        if pending.broken {
            return 0;
        }
        let fits = bytes.len().min(MAX_KEPT.saturating_sub(pending.kept.len()));
        pending.kept.extend(&bytes[..fits]);
        self.write_out(&mut pending);
        if pending.broken { 0 } else { fits }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is kept as far as the reader takes it now, and says whether it took any.
    fn write_out(&self, pending: &mut Pending) -> bool {
        let before = pending.kept.len();
        if let Err(error) = pending.write_out() {
            pending.broken = true;
            pending.kept = VecDeque::new();
            self.lost.report(error);
        }
        self.behind.store(!pending.kept.is_empty(), Ordering::SeqCst);
        pending.kept.len() < before
    }
}

impl OutputThrottle for Stream {
    fn wait(&self) {
        while self.behind.load(Ordering::SeqCst) && !self.quiesce.is_set() {
            let output = Arc::clone(&self.lock().output);
            // What cannot be waited for fails when it is written to, and says so there.
            let ready = output.wait(&LOOK_EVERY).unwrap_or(true);
            let taken = self.write_out(&mut self.lock());
            if ready && !taken {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl Pending {
    fn write_out(&mut self) -> io::Result<()> {
        while !self.kept.is_empty() {
            let (front, _) = self.kept.as_slices();
            match self.output.write(front) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.kept.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
