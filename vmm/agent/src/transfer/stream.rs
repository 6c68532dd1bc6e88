//! A stream of bytes as frames, with its digest at the end.

use std::fmt::Write as _;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::{Error, Observer};
use crate::protocol;
use crate::protocol::frame::{self, HEADER, Kind};
use crate::protocol::limits::{MAX_NOTICES, MAX_PADDING, MAX_PAYLOAD};
use crate::protocol::message::{Notice, Summary};

/// How many entries were sent or received.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Files, folders and links.
    pub entries: u64,
    /// Those that were left out as they are neither.
    pub skipped: u64,
    /// Those that could not be read.
    pub failed: u64,
}

/// Sends a stream.
pub struct Sender<W, O> {
    connection: W,
    observer: O,
    /// A frame: room for its header, then what has been written.
    frame: Vec<u8>,
    digest: Sha256,
    bytes: u64,
    notices: u64,
}

impl<W: Write, O: Observer> Sender<W, O> {
    /// A stream over this connection.
    pub fn new(connection: W, observer: O) -> Self {
        let mut frame = Vec::with_capacity(HEADER + MAX_PAYLOAD);
        frame.resize(HEADER, 0);
        Self { connection, observer, frame, digest: Sha256::new(), bytes: 0, notices: 0 }
    }

    /// A message about an entry, at once.
    pub(super) fn notice(&mut self, message: String) -> Result<(), Error> {
        self.notices = self.notices.saturating_add(1);
        if self.notices > MAX_NOTICES {
            return Ok(());
        }
        self.observer.notice(&message);
        // Its length is that of a path and a few words.
        let bytes =
            frame::json(Kind::Notice, &Notice { message }).map_err(protocol::Error::Transport)?;
        self.connection.write_all(&bytes).map_err(|error| protocol::Error::Transport(error).into())
    }

    fn send(&mut self) -> Result<(), Error> {
        let length = self.frame.len().saturating_sub(HEADER);
        if length == 0 {
            return Ok(());
        }
        self.observer.check()?;
        let (head, payload) = self.frame.split_at_mut(HEADER);
        head.copy_from_slice(&frame::header(Kind::Data, length));
        self.digest.update(payload);
        self.connection.write_all(&self.frame).map_err(protocol::Error::Transport)?;
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
        self.observer.moved(length);
        self.frame.truncate(HEADER);
        Ok(())
    }

    /// Ends the stream: what was sent.
    ///
    /// # Errors
    /// The connection's.
    pub fn finish(mut self, counts: Counts) -> Result<Summary, Error> {
        self.send()?;
        let summary = summary(self.digest, self.bytes, counts);
        let bytes = frame::json(Kind::DataEnd, &summary).map_err(protocol::Error::Transport)?;
        self.connection.write_all(&bytes).map_err(protocol::Error::Transport)?;
        Ok(summary)
    }
}

impl<W: Write, O: Observer> Write for Sender<W, O> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (HEADER + MAX_PAYLOAD).saturating_sub(self.frame.len());
        let now = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.frame.extend_from_slice(now);
        if self.frame.len() >= HEADER + MAX_PAYLOAD {
            self.send()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives a stream.
pub struct Receiver<R, O> {
    connection: R,
    observer: O,
    payload: Vec<u8>,
    /// How much of it has been read.
    start: usize,
    digest: Sha256,
    bytes: u64,
    notices: u64,
    /// What the sender says that it has sent, once it has.
    end: Option<Summary>,
}

impl<R: Read, O: Observer> Receiver<R, O> {
    /// The stream of this connection.
    pub fn new(connection: R, observer: O) -> Self {
        Self {
            connection,
            observer,
            payload: Vec::new(),
            start: 0,
            digest: Sha256::new(),
            bytes: 0,
            notices: 0,
            end: None,
        }
    }

    /// The next payload; false at the end.
    fn receive(&mut self) -> Result<bool, Error> {
        while self.end.is_none() {
            let frame = frame::read(&mut self.connection)?.ok_or(protocol::Error::Ended)?;
            match frame.kind {
                // A hostile sender of empty frames gets nowhere, and costs no memory.
                Kind::Data if frame.payload.is_empty() => {}
                Kind::Data => {
                    self.digest.update(&frame.payload);
                    let length = u64::try_from(frame.payload.len()).unwrap_or(u64::MAX);
                    self.bytes = self.bytes.saturating_add(length);
                    self.observer.moved(length);
                    (self.payload, self.start) = (frame.payload, 0);
                    return Ok(true);
                }
                Kind::Notice => {
                    self.notices = self.notices.saturating_add(1);
                    if self.notices <= MAX_NOTICES {
                        self.observer.notice(&frame.json::<Notice>()?.message);
                    }
                }
                Kind::DataEnd => self.end = Some(frame.json()?),
                Kind::Failed => return Err(Error::Remote(frame.json()?)),
                other => return Err(protocol::Error::Unexpected(other).into()),
            }
        }
        Ok(false)
    }

    /// Reads to the end, which has to be near, and checks that all has arrived as it was sent; what was
    /// received. `entries` is `None` for a stream that is no archive.
    ///
    /// # Errors
    /// [`Error::Mismatch`], or the stream's.
    pub fn finish(mut self, entries: Option<u64>) -> Result<Summary, Error> {
        let limit = self.bytes.saturating_add(MAX_PADDING);
        while self.receive()? {
            if self.bytes > limit {
                return Err(Error::Archive("its stream does not end where it does"));
            }
        }
        let sent = self.end.take().ok_or(protocol::Error::Ended)?;
        let counts = Counts {
            entries: entries.unwrap_or(sent.entries),
            skipped: sent.skipped,
            failed: sent.failed,
        };
        let received = summary(self.digest, self.bytes, counts);
        if received == sent { Ok(received) } else { Err(Error::Mismatch) }
    }
}

impl<R: Read, O: Observer> Read for Receiver<R, O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start >= self.payload.len() && !self.receive()? {
            return Ok(0);
        }
        let rest = self.payload.get(self.start..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(target), Some(bytes)) = (buffer.get_mut(..count), rest.get(..count)) {
            target.copy_from_slice(bytes);
        }
        self.start = self.start.saturating_add(count);
        Ok(count)
    }
}

fn summary(digest: Sha256, bytes: u64, counts: Counts) -> Summary {
    let mut sha256 = String::new();
    for byte in digest.finalize() {
        // Writing to a string does not fail.
        let _ = write!(sha256, "{byte:02x}");
    }
    let Counts { entries, skipped, failed } = counts;
    Summary { sha256, bytes, entries, skipped, failed }
}
