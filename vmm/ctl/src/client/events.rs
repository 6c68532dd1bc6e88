//! What happens to a VM, as it happens: `GET /events`, one JSON object a line in a chunked body.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Client, Deadline, Error, Head, is_hang_up};

/// The longest event: its texts are messages of the VMM, of a few hundred letters.
const MAX_EVENT: usize = 64 << 10;
/// The longest line with the length of a chunk; the server sends a few digits.
const MAX_CHUNK_LINE: usize = 256;
/// The largest chunk.
const MAX_CHUNK: u64 = 1 << 20;

/// One event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// Counts from the start of the VM; one that is missing was lost, as the client read too slowly.
    pub seq: u64,
    /// When, in UTC (RFC 3339).
    pub time: String,
    /// What.
    pub event: String,
    /// More about it, by event.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// The events of a VM: those that it still has, then each as it happens.
#[derive(Debug)]
pub struct Events {
    stream: UnixStream,
    /// Received, and not yet taken apart.
    raw: Vec<u8>,
    body: Body,
    /// Taken apart: whole lines, and the beginning of the next one.
    lines: Vec<u8>,
}

/// Where in the body the next byte is.
#[derive(Debug, Eq, PartialEq)]
enum Body {
    /// Before the length of a chunk.
    Length,
    /// In a chunk, with so much of it left.
    Chunk(u64),
    /// At the end of a line after a chunk.
    AfterChunk,
    /// After the last chunk.
    Ended,
    /// A body without chunks: up to the end of the connection.
    Plain,
}

impl Client {
    /// `GET /events`. The connection is that of the events from then on.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn events(mut self) -> Result<Events, Error> {
        let deadline = Deadline::after(self.timeout);
        self.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n", &deadline)?;
        let (head, raw) = self.read_head(&deadline)?;
        let Head { status, is_chunked, .. } = head;
        if status != 200 {
            return Err(self.refusal(&head, raw, &deadline)?);
        }
        let body = if is_chunked { Body::Length } else { Body::Plain };
        self.stream.set_read_timeout(None).map_err(Error::Transport)?;
        Ok(Events { stream: self.stream, raw, body, lines: Vec::new() })
    }
}

impl Events {
    /// The next event; `None` after the last one.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if none comes within `timeout`, [`Error::Closed`] if the connection ends before the body
    /// does, and what is no event.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, Error> {
        let deadline = timeout.map(Deadline::after);
        loop {
            if let Some(event) = self.take_line()? {
                return Ok(Some(event));
            }
            if self.body == Body::Ended {
                return Ok(None);
            }
            if !self.take_apart()? {
                self.receive(deadline.as_ref())?;
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') else {
                return match self.lines.len() {
                    0..=MAX_EVENT => Ok(None),
                    _ => Err(malformed("an event does not end")),
                };
            };
            let line: Vec<u8> = self.lines.drain(..=end).collect();
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event = serde_json::from_slice(&line);
            return event.map(Some).map_err(|error| malformed(&error.to_string()));
        }
    }

    /// Moves what was received to the lines; false if more must be received first.
    fn take_apart(&mut self) -> Result<bool, Error> {
        match self.body {
            Body::Ended => Ok(true),
            Body::Plain => {
                self.lines.append(&mut self.raw);
                Ok(false)
            }
            Body::Chunk(left) => {
                let count = self.raw.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.lines.extend(self.raw.drain(..count));
                let left = left.saturating_sub(count as u64);
                self.body = if left == 0 { Body::AfterChunk } else { Body::Chunk(left) };
                Ok(count > 0)
            }
            Body::Length | Body::AfterChunk => {
                let Some(end) = self.raw.windows(2).position(|two| two == b"\r\n") else {
                    return match self.raw.len() {
                        0..=MAX_CHUNK_LINE => Ok(false),
                        _ => Err(malformed("the length of a chunk does not end")),
                    };
                };
                let line: Vec<u8> = self.raw.drain(..end + 2).collect();
                self.body = match self.body {
                    Body::AfterChunk if end == 0 => Body::Length,
                    Body::AfterChunk => return Err(malformed("a chunk is longer than it says")),
                    _ => match chunk_length(&line)? {
                        0 => Body::Ended,
                        length => Body::Chunk(length),
                    },
                };
                Ok(true)
            }
        }
    }

    fn receive(&mut self, deadline: Option<&Deadline>) -> Result<(), Error> {
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(deadline) = deadline {
                let left = Some(deadline.left()?);
                self.stream.set_read_timeout(left).map_err(Error::Transport)?;
            }
            let count = match self.stream.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if is_hang_up(&error) => 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => match deadline {
                    Some(deadline) => {
                        deadline.allow(error)?;
                        continue;
                    }
                    None => return Err(Error::Transport(error)),
                },
            };
            if count > 0 {
                self.raw.extend_from_slice(&chunk[..count]);
                return Ok(());
            }
            return match self.body {
                Body::Plain => {
                    self.body = Body::Ended;
                    Ok(())
                }
                _ => Err(Error::Closed),
            };
        }
    }
}

/// The length of a chunk in hexadecimal digits; what follows a semicolon is an extension (RFC 9112, section 7.1).
fn chunk_length(line: &[u8]) -> Result<u64, Error> {
    let text = std::str::from_utf8(line).ok();
    let digits = text.and_then(|text| text.split(';').next()).map(str::trim);
    let length = digits
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    length.filter(|length| *length <= MAX_CHUNK).ok_or_else(|| malformed("a chunk has no length"))
}

fn malformed(what: &str) -> Error {
    Error::Malformed(what.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

    /// The events that a server with this answer sends, piece by piece, and how they end.
    fn events(pieces: &[&str]) -> (Vec<Event>, Result<(), Error>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request).unwrap();
            for piece in pieces {
                // A client that has understood enough may have gone.
                let _ = stream.write_all(piece.as_bytes());
            }
        });
        let client = Client::connect(&path, Duration::from_secs(60)).unwrap();
        let mut found = Vec::new();
        let end = client.events().and_then(|mut events| {
            while let Some(event) = events.next(None)? {
                found.push(event);
            }
            Ok(())
        });
        server.join().unwrap();
        (found, end)
    }

    fn line(seq: u64, rest: &str) -> String {
        format!("{{\"seq\":{seq},\"time\":\"t\",\"event\":\"paused\"{rest}}}\n")
    }

    fn chunk(text: &str) -> String {
        format!("{:x}\r\n{text}\r\n", text.len())
    }

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = line(1, "") + &line(2, ",\"reason\":\"request\"") + "\n" + &line(3, "");
        let (one, two) = text.split_at(50);
        let body = format!("{HEAD}{CHUNKED}{}{}0\r\n\r\n", chunk(one), chunk(two));
        let letters: Vec<String> = body.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();

        for pieces in [&[&body[..]][..], &letters] {
            let (found, end) = events(pieces);

            assert!(end.is_ok(), "{end:?}");
            assert_eq!(found.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(found[1].fields["reason"], "request");
        }
    }

    #[test]
    fn a_body_without_chunks_ends_with_its_connection() {
        let (found, end) = events(&[HEAD, "\r\n", &line(7, "")]);

        assert!(end.is_ok() && found.len() == 1, "{end:?} {found:?}");
    }

    #[test]
    fn a_connection_that_ends_early_is_no_end() {
        for body in ["", "5", "5\r\n{", &chunk(&line(1, "")), "0"] {
            let (_, end) = events(&[HEAD, CHUNKED, body]);

            assert!(matches!(end, Err(Error::Closed)), "{body}: {end:?}");
        }
    }

    #[test]
    fn what_is_no_stream_of_events_is_an_error_within_bounds() {
        let endless = chunk(&"x".repeat(60_000)).repeat(2);
        for body in [
            "x\r\n",
            "-1\r\n",
            "\r\n",
            "7fffffffffffffff\r\n",
            "1\r\nab\r\n",
            "3\r\n[]\n\r\n",
            &endless,
            &"1".repeat(300),
        ] {
            let (_, end) = events(&[HEAD, CHUNKED, body]);

            assert!(matches!(end, Err(Error::Malformed(_))), "{:.20}: {end:?}", body);
        }
    }

    #[test]
    fn a_refusal_has_its_message() {
        let body = "{\"fault_message\":\"no such path\"}";
        let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n", body.len());

        let (_, end) = events(&[&head, body]);

        let Err(Error::Refused { status: 404, message }) = end else { panic!("{end:?}") };
        assert_eq!(message, "no such path");
    }
}
