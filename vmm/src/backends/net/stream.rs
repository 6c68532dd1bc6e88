//! Frames that come from and go to a peer on a Unix socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::OpenError;
use super::frames::{Incoming, PREFIX};
use super::peer::Peer;
use super::told::Told;
use crate::error::{chain, say};
use crate::sys::accept::is_short_of_memory;
use crate::sys::vectored;

/// A peer on a stream as a port. Nothing of it waits: what the peer does not take of a frame is kept, and no
/// further frame is taken until it is gone.
#[derive(Debug)]
pub(super) struct StreamPort {
    /// Closed before the peer is waited for: passt of root runs as another user, whom a VM without capabilities cannot
    /// end, and ends with its stream.
    stream: Option<UnixStream>,
    peer: Peer,
    /// The peer has gone, and the stream is to be closed.
    lost: bool,
    incoming: Incoming,
    /// What the peer has not taken of the last frame.
    outgoing: Vec<u8>,
    blocked: bool,
    /// Why the last attempt to connect failed; it is printed once.
    refused: Option<String>,
    told: Told,
}

impl StreamPort {
    /// Connects to a peer.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn open(mut peer: Peer) -> Result<Self, OpenError> {
        let stream = peer.connect()?;
        Ok(Self {
            peer,
            stream: Some(stream),
            lost: false,
            incoming: Incoming::default(),
            outgoing: Vec::new(),
            blocked: false,
            refused: None,
            told: Told::new(Instant::now()),
        })
    }

    /// Connects again after [`close`](Self::close). Whether that succeeded.
    pub(super) fn reconnect(&mut self) -> bool {
        if self.stream.is_some() {
            return true;
        }
        match self.peer.connect() {
            Ok(stream) => {
                self.stream = Some(stream);
                self.refused = None;
                self.told.say(&format!("{} is back: the guest's link is up", self.peer));
                true
            }
            Err(error) => {
                let refused = chain(&error);
                if self.refused.as_ref() != Some(&refused) {
                    say(&format!("{} is not back: {refused}", self.peer));
                    self.refused = Some(refused);
                }
                false
            }
        }
    }

    /// Closes the stream of a peer that has gone, once it is watched no more.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.lost = false;
        self.blocked = false;
        self.incoming.clear();
        self.outgoing.clear();
    }

    /// The peer has closed the stream, or what it sends is none.
    pub(super) fn lose(&mut self, why: &str) {
        if !self.lost && self.stream.is_some() {
            self.lost = true;
            self.told.say(&format!("{} is gone, as {why}: the guest's link is down", self.peer));
        }
    }

    pub(super) fn receive<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            let Some(mut stream) = self.stream.as_ref().filter(|_| !self.lost) else {
                return Err(ErrorKind::WouldBlock.into());
            };
            match self.incoming.next() {
                Ok(Some(frame)) => return Ok(scatter(frame, pieces, rest)),
                Ok(None) => {}
                Err(error) => {
                    self.lose(&error.to_string());
                    continue;
                }
            }
            match stream.read(self.incoming.room()) {
                Ok(0) => self.lose("it has closed the connection"),
                Ok(count) => self.incoming.add(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                Err(error) => self.lose(&error.to_string()),
            }
        }
    }

    pub(super) fn send<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
    ) -> io::Result<()> {
        self.flush();
        let Some(stream) = self.stream.as_ref().filter(|_| !self.lost) else {
            return Err(ErrorKind::NotConnected.into());
        };
        if !self.outgoing.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length: usize = pieces.iter().map(VolatileSlice::len).sum();
        let length = u32::try_from(length).map_err(|_| ErrorKind::InvalidInput)?;
        let prefix = length.to_be_bytes();
        match vectored::writev_after(stream, &prefix, pieces) {
            Ok(written) => {
                self.blocked = false;
                self.keep(written, &prefix, pieces);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.blocked = true;
                Err(error)
            }
            // Nothing of the frame has been written: it is lost, and the next one is in its place.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Err(error),
            Err(error) => {
                self.lose(&error.to_string());
                Err(ErrorKind::NotConnected.into())
            }
        }
    }

    /// Keeps what is left of a frame after so many bytes.
    fn keep<B: BitmapSlice>(
        &mut self,
        written: usize,
        prefix: &[u8; PREFIX],
        pieces: &[VolatileSlice<'_, B>],
    ) {
        self.outgoing.extend(prefix.iter().skip(written));
        let mut skipped = written.saturating_sub(PREFIX);
        for piece in pieces {
            let here = skipped.min(piece.len());
            skipped -= here;
            if let Ok(left) = piece.offset(here) {
                let start = self.outgoing.len();
                self.outgoing.resize(start + left.len(), 0);
                left.copy_to(&mut self.outgoing[start..]);
            }
        }
    }

    /// Sends what is left of the last frame, as far as the peer takes it.
    pub(super) fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            let Some(mut stream) = self.stream.as_ref().filter(|_| !self.lost) else { return };
            match stream.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count.min(self.outgoing.len()))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_passing(&error) => return,
                Err(error) => self.lose(&error.to_string()),
            }
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.stream.is_some() && !self.lost
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked || !self.outgoing.is_empty()
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.stream.as_ref().filter(|_| !self.lost).map(AsRawFd::as_raw_fd)
    }
}

/// Copies a frame into the pieces in turn, and then into `rest`. Returns its length.
fn scatter<B: BitmapSlice>(
    frame: &[u8],
    pieces: &[VolatileSlice<'_, B>],
    rest: &mut [u8],
) -> usize {
    let mut left = frame;
    for piece in pieces {
        let (here, after) = left.split_at(piece.len().min(left.len()));
        piece.copy_from(here);
        left = after;
    }
    let over = left.len().min(rest.len());
    rest[..over].copy_from_slice(&left[..over]);
    frame.len()
}
/// Whether the same bytes may be taken later: there is no room, or the kernel is short of memory.
fn is_passing(error: &io::Error) -> bool {
    is_short_of_memory(error) || error.kind() == ErrorKind::WouldBlock
}
