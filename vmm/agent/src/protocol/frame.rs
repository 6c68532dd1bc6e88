//! Frames: kind, length, payload.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;
use super::limits::MAX_PAYLOAD;

/// Kind and length in front of a payload.
pub const HEADER: usize = 5;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame carries.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn new(number: u8) -> Result<Self, Error> {
                match number {
                    $($number => Ok(Self::$name),)*
                    other => Err(Error::Kind(other)),
                }
            }
        }
    };
}

kinds! {
    /// The client's first: [`super::message::Hello`].
    Hello = 1,
    /// The agent does it: [`super::message::Accepted`].
    Accepted = 2,
    /// The agent does not, or cannot: [`super::message::Refusal`].
    Refused = 3,
    /// Bytes for the command's standard input.
    Input = 4,
    /// Its end.
    InputEnd = 5,
    /// The command has closed its input.
    InputClosed = 6,
    /// How many bytes of input more the client may send: a number of four bytes, little-endian.
    Credit = 7,
    /// Bytes of the command's standard output, or of its terminal.
    Output = 8,
    /// Bytes of its standard error.
    Errors = 9,
    /// The client's reader of standard output has gone.
    OutputClosed = 10,
    /// The client's reader of standard error has gone.
    ErrorsClosed = 11,
    /// A signal for the command's process group: its number, one byte.
    Signal = 12,
    /// The terminal's size: rows and columns, two bytes each, little-endian.
    Resize = 13,
    /// How the command ended: [`super::message::Exit`]. The last one.
    Exit = 14,
    /// Bytes of a file, or of an archive.
    Data = 15,
    /// Their end: [`super::message::Summary`].
    DataEnd = 16,
    /// A message about one file of a tree: [`super::message::Notice`].
    Notice = 17,
    /// All was received and checked: [`super::message::Summary`].
    Done = 18,
    /// The operation failed after it began: [`super::message::Refusal`].
    Failed = 19,
}

/// A frame that was received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The payload as JSON.
    ///
    /// # Errors
    /// [`Error::Payload`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.payload).map_err(|error| Error::Payload(self.kind, error))
    }

    /// A payload that is a number.
    ///
    /// # Errors
    /// [`Error::Size`].
    pub fn number(&self) -> Result<u32, Error> {
        let bytes = self.payload.as_slice().try_into().map_err(|_| Error::Size(self.kind))?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A payload that is a size of a terminal: rows and columns.
    ///
    /// # Errors
    /// [`Error::Size`].
    pub fn size(&self) -> Result<(u16, u16), Error> {
        let [r0, r1, c0, c1] = self.payload[..] else { return Err(Error::Size(self.kind)) };
        Ok((u16::from_le_bytes([r0, r1]), u16::from_le_bytes([c0, c1])))
    }
}

/// Appends a frame to `buffer`. What exceeds [`MAX_PAYLOAD`] is for the caller to split.
///
/// # Panics
/// In tests, when the payload is too long; else the frame is one that the other side refuses.
pub fn push(buffer: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    buffer.reserve(HEADER + payload.len());
    buffer.extend_from_slice(&header(kind, payload.len()));
    buffer.extend_from_slice(payload);
}

/// What stands before a payload of this length.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// A frame as one block of bytes: one packet of virtio-vsock if it is short.
pub fn bytes(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::new();
    push(&mut buffer, kind, payload);
    buffer
}

/// A frame with a payload of JSON.
///
/// # Errors
/// `InvalidInput` if it is longer than a frame may be.
pub fn json<T: Serialize>(kind: Kind, value: &T) -> io::Result<Vec<u8>> {
    let payload = serde_json::to_vec(value)?;
    match payload.len() <= MAX_PAYLOAD {
        true => Ok(bytes(kind, &payload)),
        false => Err(ErrorKind::InvalidInput.into()),
    }
}

/// Writes one frame.
///
/// # Errors
/// The writer's.
pub fn write(mut writer: impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    writer.write_all(&bytes(kind, payload))
}

/// Reads one frame; `None` where the stream ends between two frames.
///
/// # Errors
/// [`Error`], for anything that is no frame.
pub fn read(mut reader: impl Read) -> Result<Option<Frame>, Error> {
    let mut head = [0; HEADER];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(Error::Ended),
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Transport(error)),
        }
    }
    let (kind, length) = parse(head)?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::Ended,
        _ => Error::Transport(error),
    })?;
    Ok(Some(Frame { kind, payload }))
}

fn parse(head: [u8; HEADER]) -> Result<(Kind, usize), Error> {
    let [kind, a, b, c, d] = head;
    let kind = Kind::new(kind)?;
    let length = u32::from_le_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(bytes) if bytes <= MAX_PAYLOAD => Ok((kind, bytes)),
        _ => Err(Error::Length(length)),
    }
}

/// Frames out of bytes that arrive in pieces of any size.
///
/// It holds what was pushed and not yet taken: push at most a frame's length before taking all frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
}

impl Decoder {
    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame that is complete.
    ///
    /// # Errors
    /// [`Error`], for anything that is no frame; after that the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let Some((head, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let (kind, length) = parse(*head)?;
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let payload = payload.to_vec();
        self.start = self.start.saturating_add(HEADER + length);
        Ok(Some(Frame { kind, payload }))
    }
}
