#![allow(clippy::unwrap_used)]

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use self::guest::*;
use super::*;
use crate::backends::gate::QueueGate;

const PORT: u32 = 1024;

fn client(guest: &TestGuest) -> UnixStream {
    let stream = UnixStream::connect(guest.path()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// A process of the host with a connection to [`PORT`] of the guest, and the port that the guest sees.
fn connected(guest: &mut TestGuest) -> (UnixStream, u32) {
    let mut client = client(guest);
    client.write_all(b"CONNECT 1024\n").unwrap();
    let request = guest.next();
    assert_eq!((request.operation, request.guest_port), (REQUEST, PORT));
    guest.send(&Packet::new(PORT, request.host_port, RESPONSE));
    let expected = format!("OK {}\n", request.host_port);
    let mut line = vec![0; expected.len()];
    client.read_exact(&mut line).unwrap();
    assert_eq!(line, expected.as_bytes());
    (client, request.host_port)
}

/// What is there now.
fn read_now(stream: &mut UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        Ok(_) => bytes.extend(b"<end>"),
    }
    stream.set_nonblocking(false).unwrap();
    bytes
}

fn data(packets: &[Packet]) -> Vec<u8> {
    packets.iter().flat_map(|packet| packet.data.clone()).collect()
}

#[test]
fn a_process_of_the_host_talks_to_the_guest() {
    let mut guest = TestGuest::started();
    let (mut client, host_port) = connected(&mut guest);

    client.write_all(b"question").unwrap();
    assert_eq!(guest.next().data, b"question");
    let answer = Packet { data: b"answer".into(), ..Packet::new(PORT, host_port, DATA) };
    guest.send(&answer);
    assert_eq!(read_now(&mut client), b"answer");

    client.shutdown(Shutdown::Write).unwrap();
    let end = guest.next();
    assert_eq!((end.operation, end.flags), (SHUTDOWN, 2));
    guest.send(&answer);
    guest.send(&Packet { flags: 3, ..Packet::new(PORT, host_port, SHUTDOWN) });
    assert_eq!(read_now(&mut client), b"answer<end>");
    assert_eq!(guest.next().operation, RESET);
    assert_eq!(guest.open_streams(), (0, 0));
}

#[test]
fn the_socket_is_its_owners_only_and_goes_with_the_device() {
    let guest = TestGuest::new();
    let path = guest.path();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = HostPeers::listen(&path, QueueGate::default()).err().unwrap();
    assert!(error.to_string().contains("another process listens"), "{error}");

    drop(guest);

    assert!(!path.exists());
}

#[test]
fn a_line_in_pieces_is_a_line_and_what_follows_is_for_the_guest() {
    let mut guest = TestGuest::started();
    let mut client = client(&guest);
    for piece in ["con", "NECT 1", "024"] {
        client.write_all(piece.as_bytes()).unwrap();
        guest.until("it is accepted", |guest| guest.open_streams() == (1, 1));
        assert!(guest.receive().is_empty());
    }
    client.write_all(b"\nearly").unwrap();
    let request = guest.next();
    guest.send(&Packet::new(PORT, request.host_port, RESPONSE));

    assert_eq!(guest.next().data, b"early");
}

#[test]
fn what_is_no_line_is_closed() {
    let mut guest = TestGuest::started();
    for text in ["GET / HTTP/1.1\r\n", "CONNECT x\n", &"x".repeat(33)] {
        let mut client = client(&guest);
        client.write_all(text.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        guest.until("it is accepted and closed", |guest| {
            guest.settle();
            client.set_nonblocking(true).unwrap();
            match client.read_to_end(&mut bytes) {
                Ok(_) => true,
                // What was not read of it resets the stream.
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            }
        });
        assert!(bytes.is_empty());
        assert_eq!(guest.open_streams(), (0, 0));
    }
}

/// Clients need not try again until the guest is up.
#[test]
fn a_connection_before_the_driver_is_up_waits() {
    let mut guest = TestGuest::new();
    let mut client = client(&guest);
    client.write_all(b"CONNECT 1024\n").unwrap();
    guest.until("it has said what it wants", |guest| guest.open_streams() == (1, 0));
    guest.settle();

    guest.start();

    let request = guest.next();
    guest.send(&Packet::new(PORT, request.host_port, RESPONSE));
    assert_eq!(read_now(&mut client), format!("OK {}\n", request.host_port).as_bytes());
}

#[test]
fn what_the_guest_refuses_is_closed_without_an_answer() {
    let mut guest = TestGuest::started();
    let mut client = client(&guest);
    client.write_all(b"CONNECT 1024\n").unwrap();
    let request = guest.next();

    guest.send(&Packet::new(PORT, request.host_port, RESET));

    assert_eq!(read_now(&mut client), b"<end>");
}

#[test]
fn the_guest_talks_to_what_listens_for_its_port() {
    let mut guest = TestGuest::started();
    let listener = UnixListener::bind(guest.port_path(52)).unwrap();

    guest.send(&Packet::new(7, 52, REQUEST));
    assert_eq!(guest.next().operation, RESPONSE);
    let (mut server, _) = listener.accept().unwrap();
    guest.send(&Packet { data: b"hello".into(), ..Packet::new(7, 52, DATA) });
    assert_eq!(read_now(&mut server), b"hello");
    server.write_all(b"world").unwrap();
    assert_eq!(guest.next().data, b"world");

    drop(server);
    let end = guest.next();
    assert_eq!((end.operation, end.flags), (SHUTDOWN, 3));
}

/// Firecracker waited 3 s for a listener with a full backlog, and all devices with it.
#[test]
fn a_listener_that_does_not_accept_refuses_and_delays_nothing() {
    let mut guest = TestGuest::started();
    guest.send(&Packet::new(7, 51, REQUEST));
    assert_eq!(guest.next().operation, RESET, "nothing listens");

    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let address = SocketAddrUnix::new(guest.port_path(52)).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let answers: Vec<u16> = (0..4)
        .map(|port| {
            guest.send(&Packet::new(port, 52, REQUEST));
            guest.next().operation
        })
        .collect();

    assert_eq!(answers, [RESPONSE, RESET, RESET, RESET]);
}

#[test]
fn a_stream_longer_than_all_buffers_arrives_in_both_directions() {
    let mut guest = TestGuest::started();
    let (client, host_port) = connected(&mut guest);
    let text: Vec<u8> = (0..4_000_000_u32).map(|at| (at ^ at >> 9) as u8).collect();

    let writer = {
        let (mut client, text) = (client.try_clone().unwrap(), text.clone());
        std::thread::spawn(move || client.write_all(&text))
    };
    let mut received = Vec::new();
    guest.until("all is there", |guest| {
        received.extend(data(&guest.receive()));
        guest.send(&Packet::new(PORT, host_port, CREDIT_UPDATE));
        received.len() >= text.len()
    });
    assert!(received == text);
    writer.join().unwrap().unwrap();

    let reader = {
        let (mut client, length) = (client.try_clone().unwrap(), text.len());
        std::thread::spawn(move || {
            let mut bytes = vec![0; length];
            client.read_exact(&mut bytes).map(|()| bytes)
        })
    };
    // As a guest's driver does, by what the device says of its credit.
    let mut credit = 0;
    let mut left = &text[..];
    guest.until("all is sent", |guest| {
        for packet in guest.receive() {
            credit = packet.forwarded;
        }
        let sent = text.len() - left.len();
        let (chunk, rest) = left.split_at(left.len().min((64 << 10) - (sent - credit as usize)));
        if !chunk.is_empty() {
            guest.send(&Packet { data: chunk.into(), ..Packet::new(PORT, host_port, DATA) });
        }
        left = rest;
        left.is_empty()
    });
    guest.until("all is read", |_| reader.is_finished());
    assert!(reader.join().unwrap().unwrap() == text);
    client.shutdown(Shutdown::Both).unwrap();
}

#[test]
fn peers_that_die_in_mid_stream_leave_nothing_open_and_nothing_spinning() {
    let mut guest = TestGuest::started();
    for _ in 0..100 {
        let (mut client, host_port) = connected(&mut guest);
        client.write_all(&[1; 5000]).unwrap();
        guest.send(&Packet { data: vec![2; 1000], ..Packet::new(PORT, host_port, DATA) });
        drop(client);
        let mut flags = 0;
        guest.until("the guest knows", |guest| {
            let packets = guest.receive();
            packets.iter().for_each(|packet| flags |= packet.flags);
            flags == 3
        });
        guest.send(&Packet::new(PORT, host_port, RESET));
        assert_eq!(guest.open_streams(), (0, 0));
    }
}

/// Its peer is gone, and the guest does not take what is left: nothing happens until it does.
#[test]
fn a_dead_peer_of_a_guest_without_room_costs_no_turns() {
    let mut guest = TestGuest::started();
    let listener = UnixListener::bind(guest.port_path(52)).unwrap();
    guest.send_with_room(&Packet::new(7, 52, REQUEST), 0);
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"left").unwrap();
    drop(server);
    guest.until("the guest knows", |guest| {
        guest.receive().iter().any(|packet| packet.operation == SHUTDOWN)
    });
    guest.receive();
    let turns = guest.turns();
    for _ in 0..10 {
        guest.settle();
    }
    assert_eq!(guest.turns(), turns);

    guest.send(&Packet::new(7, 52, CREDIT_UPDATE));

    assert_eq!(data(&guest.receive()), b"left");
}

#[test]
fn a_flood_of_processes_that_leave_at_once_keeps_others_out_for_a_moment_only() {
    let mut guest = TestGuest::started();
    for round in 0..1000 {
        let mut client = client(&guest);
        match round % 3 {
            0 => {}
            1 => client.write_all(b"CONN").unwrap(),
            _ => client.write_all(b"CONNECT 9\n").unwrap(),
        }
        drop(client);
        if round % 50 == 0 {
            guest.settle();
            // Those that the guest knows of are reset.
            guest.receive();
        }
    }
    guest.until("all are forgotten", |guest| {
        guest.receive();
        guest.open_streams() == (0, 0)
    });

    connected(&mut guest);
}

#[test]
fn processes_that_say_nothing_are_bounded_and_closed_in_time() {
    let mut guest = TestGuest::started();
    let mut silent: Vec<UnixStream> = (0..100).map(|_| client(&guest)).collect();
    guest.until("some are accepted", |guest| guest.open_streams().1 == 64);
    guest.settle();
    assert_eq!(guest.open_streams(), (64, 64));

    let transport = guest.transport.clone();
    transport.lock().unwrap().device_mut().peers_mut().pass(GREETING_TIMEOUT);
    transport.lock().unwrap().device_mut().peers_mut().expire();
    guest.until("the others are accepted", |guest| guest.open_streams() == (36, 36));

    assert_eq!(read_now(&mut silent[0]), b"<end>");
    drop(silent);
    guest.until("they are forgotten", |guest| guest.open_streams() == (0, 0));
    connected(&mut guest);
}

/// A guest that connects without end leaves descriptors to the rest of the VM.
#[test]
fn a_process_without_descriptors_to_spare_takes_no_more_streams() {
    let mut guest = TestGuest::started();
    guest.transport.lock().unwrap().device_mut().peers_mut().limit(3);
    let _listener = UnixListener::bind(guest.port_path(52)).unwrap();
    let answers: Vec<u16> = (0..4)
        .map(|port| {
            guest.send(&Packet::new(port, 52, REQUEST));
            guest.next().operation
        })
        .collect();
    assert_eq!(answers, [RESPONSE, RESPONSE, RESPONSE, RESET]);

    let mut client = client(&guest);
    client.write_all(b"CONNECT 1024\n").unwrap();
    guest.settle();
    assert_eq!(guest.open_streams(), (3, 0));
    guest.send(&Packet { flags: 3, ..Packet::new(0, 52, SHUTDOWN) });

    let mut operations = Vec::new();
    guest.until("its place is taken", |guest| {
        operations.extend(guest.receive().iter().map(|packet| packet.operation));
        operations.len() == 2
    });
    assert_eq!(operations, [RESET, REQUEST]);
}

#[test]
fn nothing_moves_while_the_vm_is_paused_and_all_of_it_after() {
    let start = Instant::now();
    let mut guest = TestGuest::started();
    let (mut client, host_port) = connected(&mut guest);
    guest.gate.close();
    let open = start.elapsed();
    let turns = guest.turns();
    client.write_all(b"meanwhile").unwrap();
    let mut other = self::client(&guest);
    other.write_all(b"CONNECT 1024\n").unwrap();

    // The loop comes to rest although there is something to read.
    for _ in 0..10 {
        guest.settle();
    }
    assert_eq!(guest.turns(), turns);
    assert_eq!(guest.open_streams(), (1, 0));

    // Nor does any time pass.
    while start.elapsed() < open + Duration::from_millis(5) {}
    assert!(guest.transport.lock().unwrap().device().peers().now() <= open);

    guest.gate.open();
    let mut packets = Vec::new();
    guest.until("both are there", |guest| {
        packets.extend(guest.receive());
        packets.len() == 2
    });
    assert_eq!(data(&packets), b"meanwhile");
    guest.send(&Packet { data: b"answer".into(), ..Packet::new(PORT, host_port, DATA) });
    assert_eq!(read_now(&mut client), b"answer");
}

#[test]
fn a_driver_that_starts_again_has_no_connections() {
    let mut guest = TestGuest::started();
    let (mut client, _) = connected(&mut guest);

    guest.start();

    assert_eq!(read_now(&mut client), b"<end>");
    assert_eq!(guest.open_streams(), (0, 0));
    connected(&mut guest);
}
