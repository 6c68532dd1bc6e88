//! The line with which a process of the host asks for a connection: `CONNECT PORT`.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// The longest line, its end included. Firecracker takes no longer one.
const LONGEST: usize = 32;

/// As much of the line as has come.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    line: [u8; LONGEST],
    length: usize,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// More of it is to come.
    Unfinished,
    /// It asks for this port of the guest.
    Port(u32),
    /// It is none.
    Wrong,
}

impl Greeting {
    /// Reads what has come of the line, and nothing of what is behind it.
    pub(super) fn read(&mut self, stream: impl AsFd) -> Progress {
        match self.receive(stream.as_fd()) {
            Ok(progress) => progress,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Unfinished,
            Err(_) => Progress::Wrong,
        }
    }

    fn receive(&mut self, stream: impl AsFd) -> io::Result<Progress> {
        loop {
            let rest = &mut self.line[self.length..];
            if rest.is_empty() {
                return Ok(Progress::Wrong);
            }
            let seen = retry(|| recv(&stream, &mut *rest, RecvFlags::PEEK | RecvFlags::DONTWAIT))?;
            if seen == 0 {
                return Ok(Progress::Wrong);
            }
            let end = rest[..seen].iter().position(|byte| *byte == b'\n');
            let wanted = end.map_or(seen, |end| end + 1);
            let taken = retry(|| recv(&stream, &mut rest[..wanted], RecvFlags::DONTWAIT))?;
            self.length += taken;
            if end.is_some() && taken == wanted {
                return Ok(port(&self.line[..self.length]).map_or(Progress::Wrong, Progress::Port));
            }
        }
    }
}

fn retry(mut call: impl FnMut() -> Result<(usize, usize), Errno>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return Ok(other?.0),
        }
    }
}

/// The port that a line asks for.
fn port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let asks = words.next()?.eq_ignore_ascii_case("connect");
    let digits = words.next()?;
    let whole = asks && words.next().is_none() && digits.bytes().all(|byte| byte.is_ascii_digit());
    whole.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_line_names_a_port() {
        for (line, expected) in [
            ("CONNECT 52\n", Some(52)),
            ("connect 0\n", Some(0)),
            ("Connect 4294967295\r\n", Some(u32::MAX)),
            ("CONNECT   7 \n", Some(7)),
            ("CONNECT 4294967296\n", None),
            ("CONNECT -1\n", None),
            ("CONNECT +1\n", None),
            ("CONNECT\n", None),
            ("CONNECT 1 2\n", None),
            ("CONNECTED 1\n", None),
            ("GET / HTTP/1.1\n", None),
            ("\n", None),
            ("CONNECT \u{fc}\n", None),
        ] {
            assert_eq!(port(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn a_line_comes_in_any_pieces_and_what_is_behind_it_stays() {
        let text = b"CONNECT 1024\nfirst bytes";
        for cut in 0..text.len() {
            let (mut client, mut stream) = UnixStream::pair().unwrap();
            let mut greeting = Greeting::default();
            client.write_all(&text[..cut]).unwrap();
            let early = greeting.read(&stream);
            client.write_all(&text[cut..]).unwrap();
            let progress =
                if early == Progress::Unfinished { greeting.read(&stream) } else { early };

            assert_eq!(early == Progress::Unfinished, cut < 13, "{cut}");
            assert_eq!(progress, Progress::Port(1024), "{cut}");
            drop(client);
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "first bytes", "{cut}");
        }
    }

    #[test]
    fn a_line_byte_by_byte_is_a_line() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let mut greeting = Greeting::default();
        for byte in b"connect 9" {
            assert_eq!(greeting.read(&stream), Progress::Unfinished);
            client.write_all(&[*byte]).unwrap();
        }
        assert_eq!(greeting.read(&stream), Progress::Unfinished);
        client.write_all(b"\n").unwrap();

        assert_eq!(greeting.read(&stream), Progress::Port(9));
    }

    #[test]
    fn a_line_of_more_than_32_bytes_or_without_an_end_is_none() {
        for (text, expected) in [
            (format!("CONNECT {:>23}\n", 5), Progress::Port(5)),
            (format!("CONNECT {:>24}\n", 5), Progress::Wrong),
            ("x".repeat(100), Progress::Wrong),
        ] {
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(text.as_bytes()).unwrap();

            assert_eq!(Greeting::default().read(&stream), expected, "{text:?}");
        }
        let (mut client, stream) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT 1").unwrap();
        drop(client);
        assert_eq!(Greeting::default().read(&stream), Progress::Wrong);
    }
}
