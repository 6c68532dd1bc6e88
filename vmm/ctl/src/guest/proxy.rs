//! Standard input and output as a connection to a port of the guest: what ssh calls a ProxyCommand.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::Error;
use super::connect::Vsock;
use super::stdio::{read_input, write_all};

/// What one read takes.
const CHUNK: usize = 64 << 10;

/// Carries bytes both ways until both have ended, or the guest has closed. The end of one direction is passed
/// on and does not end the other.
///
/// # Errors
/// When the guest cannot be reached, or standard output not be written.
pub fn run(vsock: &Vsock, port: u32, timeout: Duration) -> Result<(), Error> {
    let mut stream = vsock.connect(port, timeout)?;
    let sender =
        stream.try_clone().map_err(|error| Error::System("share the connection", error))?;
    let input = thread::spawn(move || send_input(sender));
    let received = receive(&mut stream);
    // The reader of standard output sees the end, while standard input may still be sent.
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
    if received.is_err() {
        // There is no reader: the guest need not send, nor is input of use.
        let _ = stream.shutdown(Shutdown::Both);
    }
    let _ = input.join();
    match received {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Output("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Writes what the guest sends to standard output; an error is one of standard output.
fn receive(stream: &mut UnixStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                write_all(rustix::stdio::stdout(), chunk.get(..count).unwrap_or_default())?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // As the end: the guest has closed in its way.
            Err(_) => return Ok(()),
        }
    }
}

/// Sends standard input, and its end.
fn send_input(stream: UnixStream) {
    let mut chunk = vec![0; CHUNK];
    while is_wanted(&stream) {
        match read_input(&mut chunk) {
            0 => {
                let _ = stream.shutdown(Shutdown::Write);
                return;
            }
            count => {
                let bytes = chunk.get(..count).unwrap_or_default();
                if io::Write::write_all(&mut &stream, bytes).is_err() {
                    return;
                }
            }
        }
    }
}

/// Waits for input; false if the guest has closed both directions before there is any.
fn is_wanted(stream: &UnixStream) -> bool {
    let stdin = rustix::stdio::stdin();
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(stream, PollFlags::empty())];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            // The read that follows says what is wrong.
            Err(_) => return true,
            Ok(_) => {
                let [input, peer] = fds.map(|fd| fd.revents());
                return !peer.intersects(PollFlags::HUP | PollFlags::ERR) || !input.is_empty();
            }
        }
    }
}
