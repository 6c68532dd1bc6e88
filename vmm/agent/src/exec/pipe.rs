//! Bytes between two non-blocking ends: bounded by its user, never waiting.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    /// Those before it are written.
    start: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.start)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends through `add`.
    pub(super) fn append(&mut self, add: impl FnOnce(&mut Vec<u8>)) {
        // Bytes move only when most of the buffer is done.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        add(&mut self.bytes);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Writes what the other end takes now; the count.
    ///
    /// # Errors
    /// The writer's.
    pub(super) fn write_to(
        &mut self,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(0);
        }
        match write(rest) {
            Ok(count) => {
                self.start = self.start.saturating_add(count);
                if self.is_empty() {
                    self.clear();
                }
                Ok(count)
            }
            Err(error) if is_retry(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// What a non-blocking read gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Got {
    Bytes(usize),
    Nothing,
    End,
}

/// Reads what is there. A terminal whose processes have gone ends with an error (EIO).
pub(super) fn read(fd: impl AsFd, buffer: &mut [u8]) -> Got {
    match rustix::io::read(fd, buffer) {
        Ok(0) => Got::End,
        Ok(count) => Got::Bytes(count),
        Err(error) if is_retry(&error.into()) => Got::Nothing,
        Err(_) => Got::End,
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bytes_leave_in_order_whatever_the_writer_takes() {
        let (mut queue, mut written) = (Queue::default(), Vec::new());
        for round in 0..200_u8 {
            queue.append(|bytes| bytes.extend_from_slice(&[round; 7]));
            queue
                .write_to(|bytes| {
                    let count = bytes.len().min(usize::from(round) % 13);
                    written.extend_from_slice(&bytes[..count]);
                    Ok(count)
                })
                .unwrap();
        }
        while !queue.is_empty() {
            queue.write_to(|bytes| written.write_some(bytes)).unwrap();
        }

        let expected: Vec<u8> = (0..200_u8).flat_map(|round| [round; 7]).collect();
        assert_eq!(written, expected);
        assert_eq!(queue.bytes.capacity(), 0);
    }

    trait WriteSome {
        fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize>;
    }

    impl WriteSome for Vec<u8> {
        fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.extend_from_slice(&bytes[..bytes.len().min(3)]);
            Ok(bytes.len().min(3))
        }
    }

    #[test]
    fn a_writer_that_would_wait_loses_nothing() {
        let mut queue = Queue::default();
        queue.append(|bytes| bytes.push(1));

        assert_eq!(queue.write_to(|_| Err(ErrorKind::WouldBlock.into())).unwrap(), 0);
        assert_eq!(queue.len(), 1);
        assert!(queue.write_to(|_| Err(ErrorKind::BrokenPipe.into())).is_err());
    }
}
