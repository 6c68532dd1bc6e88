//! Save and restore.

use vm_memory::{Bytes, GuestAddress};

use super::driver::*;
use super::*;
use crate::state::{RestoreError, Stateful};
use crate::virtio::mmio::Served;
use crate::virtio::testing::{Bench, DATA, Descriptor};

/// Where the buffer for events is.
const EVENTS: u64 = DATA + (6 << 20);

fn restored(guest: Guest) -> Guest {
    let host = FakePeers::default();
    let bench = guest.bench.migrate(Vsock::new(CID, host.clone())).unwrap();
    Guest { bench, host, ..guest }
}

/// The driver takes the event, ends its connections, and gives the buffer back.
fn hear(guest: &mut Guest) {
    for _ in 0..2 {
        guest.bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 8)]);
        guest.bench.kick(EVENT as u32);
    }
}

/// A process of the host wants a connection.
fn connect(guest: &mut Guest) {
    let peer = guest.host.new_peer();
    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.serve();
}

#[test]
fn a_restored_guest_learns_that_its_connections_are_gone_before_it_gets_packets() {
    let mut guest = restored(Guest::connected());
    connect(&mut guest);
    assert!(guest.receive().is_empty());
    assert!(!guest.bench.transport.device().has_packets());

    hear(&mut guest);
    guest.serve();

    assert_eq!(guest.bench.rings(EVENT).used(), [(0, 4)]);
    assert_eq!(guest.bench.memory.read_obj::<u32>(GuestAddress(EVENTS)).unwrap(), 0);
    assert_eq!(operations(&guest.receive()), [Operation::Request]);
    // It is said once.
    guest.bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 8)]);
    guest.bench.kick(EVENT as u32);
    assert!(guest.bench.rings(EVENT).used().is_empty());
}

/// Linux ends every connection that it has when it handles the event, those that came after the restore as well.
#[test]
fn a_new_connection_waits_until_the_driver_has_ended_the_old_ones() {
    let mut guest = restored(Guest::connected());
    for _ in 0..8 {
        guest.bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 8)]);
    }
    guest.bench.kick(EVENT as u32);
    connect(&mut guest);
    assert!(guest.bench.transport.device().awaits_driver());
    assert_eq!(guest.bench.transport.device().next_deadline(), Some(RESET_LOOK));

    guest.host.pass(RESET_LOOK);
    guest.bench.transport.device_mut().expire();
    assert_eq!(guest.bench.transport.serve(EVENT), Served::Done);
    guest.serve();
    assert!(guest.receive().is_empty());
    assert_eq!(guest.bench.transport.device().next_deadline(), Some(2 * RESET_LOOK));

    guest.bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 8)]);
    assert_eq!(guest.bench.transport.serve(EVENT), Served::Done);
    guest.serve();
    assert!(!guest.bench.transport.device().awaits_driver());
    assert_eq!(operations(&guest.receive()), [Operation::Request]);
}

#[test]
fn a_driver_that_never_gives_the_event_back_gets_packets_all_the_same() {
    let mut guest = restored(Guest::connected());
    guest.bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 8)]);
    guest.bench.kick(EVENT as u32);
    connect(&mut guest);

    guest.host.pass(RESET_TIMEOUT);
    guest.bench.transport.device_mut().expire();
    guest.serve();

    assert_eq!(operations(&guest.receive()), [Operation::Request]);
    assert!(!guest.bench.transport.device().awaits_driver());
}

#[test]
fn a_packet_of_a_connection_before_the_restore_is_refused() {
    let mut guest = restored(Guest::connected());
    hear(&mut guest);

    guest.send(packet(Operation::Data), b"old");

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
}

/// A notification that came just before the snapshot is not in it (Firecracker #5958).
#[test]
fn a_packet_that_was_not_taken_before_the_snapshot_is_taken_after_it() {
    let mut guest = Guest::started();
    guest.queue(packet(Operation::Request), b"", &[]);
    let mut guest = restored(guest);
    hear(&mut guest);
    guest.bench.answer();
    guest.serve();

    assert_eq!(operations(&guest.receive()), [Operation::Reset]);
    // The next one is notified of.
    assert_eq!(guest.bench.rings(TX).available_event(), 1);
}

#[test]
fn ports_of_the_host_go_on_where_they_were() {
    let mut guest = Guest::started();
    for _ in 0..3 {
        let peer = guest.host.new_peer();
        guest.bench.transport.device_mut().connect(peer, 1024);
    }
    let mut guest = restored(guest);
    hear(&mut guest);
    let peer = guest.host.new_peer();
    guest.bench.transport.device_mut().connect(peer, 1024);
    guest.serve();

    assert_eq!(guest.receive()[0].0.source_port, (1 << 30) + 3);
}

#[test]
fn a_buffer_without_room_for_an_event_breaks_the_device() {
    let mut guest = restored(Guest::connected());
    guest.bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 3)]);

    guest.bench.kick(EVENT as u32);

    assert!(matches!(guest.bench.transport.broken(), Some(Broken::Form(_))));
}

#[test]
fn a_device_that_no_driver_uses_has_nothing_to_say() {
    let host = FakePeers::default();
    let bench = Bench::new(Vsock::new(CID, host.clone()));
    let mut bench = bench.migrate(Vsock::new(CID, host.clone())).unwrap();
    let offered = bench.offered();
    bench.initialise(offered);

    bench.rings(EVENT).offer(&[Descriptor::writable(EVENTS, 4)]);
    bench.kick(EVENT as u32);

    assert!(bench.rings(EVENT).used().is_empty());
}

#[test]
fn a_port_that_is_none_is_damage() {
    for port in [0, (1 << 30) - 1, 1 << 31, u32::MAX] {
        let mut device = Vsock::new(CID, FakePeers::default());
        let state = postcard::from_bytes(&postcard::to_allocvec(&port).unwrap()).unwrap();

        assert!(matches!(device.restore(state), Err(RestoreError::Damaged { .. })), "{port}");
    }
}
