//! Standard input and output as descriptors: without the buffers of the standard library, and whatever mode
//! another process has given them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};

/// The next input; 0 at its end, and if it cannot be read.
pub(crate) fn read_input(buffer: &mut [u8]) -> usize {
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(count) => return count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait(rustix::stdio::stdin(), PollFlags::IN),
            Err(_) => return 0,
        }
    }
}

/// Writes all, also to a descriptor that another process has made non-blocking.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait(fd, PollFlags::OUT),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(fd: impl AsFd, events: PollFlags) {
    // If it fails the call that follows says why.
    let _ = poll(&mut [PollFd::new(&fd, events)], None);
}
