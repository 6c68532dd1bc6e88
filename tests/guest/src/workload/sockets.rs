//! `sockets`: services at ports of the guest that processes of the host reach.
//!
//! | port | |
//! |---|---|
//! | 7 | writes what it reads |
//! | 9 | reads to the end, and says in a line how many bytes were right |
//! | 19 | reads a line with a number, and writes so many bytes |
//! | 20 | reads a line with a port and a number, connects to that port of the host, writes so many bytes and the end, reads to the end, and says in a line how many were right |
//!
//! Bytes are right if each is what [`byte`] says for its place.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread;

use serde_json::json;

use super::After;
use crate::{modules, report, sockets, system};

pub(super) const NAME: &str = "sockets";

/// The last of the modules. What listens before has its connections from the device's first moment on.
const DRIVER: &str = "vmw_vsock_virtio_transport.ko";

type Service = fn(File) -> io::Result<()>;
const SERVICES: [(u32, Service); 4] = [(7, echo), (9, discard), (19, generate), (20, call)];

/// Bytes that are read or written at once.
const PIECE: usize = 64 << 10;

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    let mut failed = Vec::new();
    let failures = modules::load_all_with(modules::AGENT, |path| {
        if path.ends_with(DRIVER) {
            failed
                .extend(SERVICES.iter().filter_map(|(port, service)| serve(*port, *service).err()));
        }
    });
    for failure in failures {
        report::send(NAME, "module_failed", json!({ "message": failure }));
    }
    if let Some(error) = failed.first() {
        return Err(format!("vsock: {error}"));
    }
    report::send(NAME, "ready", json!({}));
    system::sleep_forever()
}

fn serve(port: u32, service: Service) -> io::Result<()> {
    let listener = sockets::listen(port)?;
    thread::spawn(move || {
        while let Ok(connection) = sockets::accept(&listener) {
            // A peer that goes away is no failure.
            thread::spawn(move || drop(service(connection)));
        }
    });
    Ok(())
}

fn echo(mut socket: File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = socket.read(&mut piece)?;
        let Some(bytes) = piece.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        socket.write_all(bytes)?;
    }
}

fn discard(mut socket: File) -> io::Result<()> {
    let right = read_all(&mut socket)?;
    writeln!(socket, "{right}")
}

fn generate(socket: File) -> io::Result<()> {
    let [length] = numbers(&socket)?;
    write(&socket, length)
}

fn call(mut socket: File) -> io::Result<()> {
    let [port, length] = numbers(&socket)?;
    let called = u32::try_from(port).map_err(io::Error::other).and_then(sockets::connect);
    let said = called.and_then(|mut host| {
        write(&host, length)?;
        sockets::end_writes(&host)?;
        read_all(&mut host)
    });
    match said {
        Ok(right) => writeln!(socket, "{right}"),
        Err(error) => writeln!(socket, "{:?}", error.kind()),
    }
}

/// The numbers of the first line.
fn numbers<const N: usize>(socket: &File) -> io::Result<[u64; N]> {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The byte at a place of a stream.
fn byte(at: u64) -> u8 {
    // Multiples of no power of two: a piece that is lost or comes twice shows.
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1]
}

fn write(mut socket: &File, length: u64) -> io::Result<()> {
    let mut at: u64 = 0;
    while at < length {
        let end = length.min(at.saturating_add(PIECE as u64));
        let piece: Vec<u8> = (at..end).map(byte).collect();
        socket.write_all(&piece)?;
        at = end;
    }
    Ok(())
}

/// Reads to the end; how many bytes came, all of which were right.
fn read_all(socket: &mut File) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut at: u64 = 0;
    loop {
        let length = socket.read(&mut piece)?;
        let Some(bytes) = piece.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return Ok(at);
        };
        for found in bytes {
            if *found != byte(at) {
                return Err(io::Error::other(format!("the byte at {at} is wrong")));
            }
            at = at.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_say_where_they_are() {
        let start: Vec<u8> = (0..1000).map(byte).collect();
        for shift in 1..100_u64 {
            let shifted: Vec<u8> = (shift..1000_u64.saturating_add(shift)).map(byte).collect();
            assert!(shifted != start, "{shift}");
        }
    }
}
