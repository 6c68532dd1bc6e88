//! What a lab that runs a program on a shared host and the lab that keeps the host say to each other.

use std::io::{self, Read, Write};

/// The longest message: more than any command line or piece of output.
const MAX_LENGTH: usize = 1 << 20;

/// What is asked of a host, a message each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run this line of shell, for so many seconds at most.
    Run(u32, String),
    /// Make room for another host.
    End,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The program starts; so many have run on this host before it.
    Started(u32),
    /// Its output.
    Output(Vec<u8>),
    /// A line of the lab's own.
    Note(String),
    /// The exit status; nothing follows.
    End(u8),
}

impl Request {
    /// # Errors
    /// As [`Write::write_all`].
    pub(crate) fn write(&self, target: impl Write) -> io::Result<()> {
        match self {
            Self::Run(seconds, line) => {
                frame(target, b'R', &[&seconds.to_le_bytes(), line.as_bytes()].concat())
            }
            Self::End => frame(target, b'X', &[]),
        }
    }

    /// # Errors
    /// At the end of the stream, and when a message is none.
    pub(crate) fn read(source: impl Read) -> io::Result<Self> {
        match parts(source)? {
            (b'R', body) => {
                let (seconds, line) = number(&body)?;
                Ok(Self::Run(seconds, text(line)?))
            }
            (b'X', _) => Ok(Self::End),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Reply {
    /// # Errors
    /// As [`Write::write_all`].
    pub(crate) fn write(&self, target: impl Write) -> io::Result<()> {
        match self {
            Self::Started(before) => frame(target, b'S', &before.to_le_bytes()),
            Self::Output(bytes) => frame(target, b'O', bytes),
            Self::Note(line) => frame(target, b'N', line.as_bytes()),
            Self::End(status) => frame(target, b'E', &[*status]),
        }
    }

    /// # Errors
    /// At the end of the stream, and when a message is none.
    pub(crate) fn read(source: impl Read) -> io::Result<Self> {
        match parts(source)? {
            (b'S', body) => Ok(Self::Started(number(&body)?.0)),
            (b'O', body) => Ok(Self::Output(body)),
            (b'N', body) => Ok(Self::Note(text(&body)?)),
            (b'E', body) => match body[..] {
                [status] => Ok(Self::End(status)),
                _ => Err(io::ErrorKind::InvalidData.into()),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A kind, a length, a body.
fn frame(mut target: impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let head = [&[kind], &length.to_le_bytes()[..], body].concat();
    target.write_all(&head)
}

fn parts(mut source: impl Read) -> io::Result<(u8, Vec<u8>)> {
    let (mut kind, mut length) = ([0; 1], [0; 4]);
    source.read_exact(&mut kind)?;
    source.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_LENGTH {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    source.read_exact(&mut body)?;
    Ok((kind[0], body))
}

fn number(body: &[u8]) -> io::Result<(u32, &[u8])> {
    let (number, rest) = body.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    Ok((u32::from_le_bytes(*number), rest))
}

fn text(body: &[u8]) -> io::Result<String> {
    String::from_utf8(body.to_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for request in [Request::Run(300, "exec 'x'".to_owned()), Request::End] {
            let mut bytes = Vec::new();
            request.write(&mut bytes).unwrap();
            assert_eq!(Request::read(bytes.as_slice()).unwrap(), request);
        }
        let replies = [
            Reply::Started(4),
            Reply::Output(vec![0, 255]),
            Reply::Note("é".to_owned()),
            Reply::End(7),
        ];
        for reply in replies {
            let mut bytes = Vec::new();
            reply.write(&mut bytes).unwrap();
            assert_eq!(Reply::read(bytes.as_slice()).unwrap(), reply);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Request::read(bytes.as_slice());
            let _ = Reply::read(bytes.as_slice());
        }
    }
}
