//! What no driver should send.

use super::*;
use crate::virtio::testing::RAM_END;

const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn requests_outside_the_disk_fail_and_are_counted() {
    let mut drive = Drive::new(disk());
    let sector = [Descriptor::writable(BUFFER, 512)];
    let cases = [SECTORS, u64::MAX, u64::MAX / 512, 1 << 55];
    for at in cases {
        assert_eq!(drive.request(0, at, &sector), (IO_ERROR, 0), "{at}");
    }
    let two = [Descriptor::writable(BUFFER, 1024)];
    assert_eq!(drive.request(0, SECTORS - 1, &two), (IO_ERROR, 0));
    let odd = [Descriptor::writable(BUFFER, 513)];
    assert_eq!(drive.request(0, 0, &odd), (IO_ERROR, 0));
    assert_eq!(drive.request(1, 0, &[Descriptor::readable(BUFFER, 1)]), (IO_ERROR, 0));

    let refused = drive.bench.transport.device().counters().refusals.load(Ordering::Relaxed);
    assert_eq!(refused, cases.len() as u64 + 3);
}

#[test]
fn types_that_are_unknown_or_not_offered_are_unsupported() {
    let mut drive = Drive::new(Disk { discards: false, ..disk() });
    drive.segment(0, 0, 1, 0);
    for kind in [2, 3, 5, 10, 11, 13, 14, u32::MAX] {
        let status = drive.request(kind, 0, &[Descriptor::readable(BUFFER, 16)]);
        assert_eq!(status, (UNSUPPORTED, 0), "{kind}");
    }
}

#[test]
fn a_read_only_disk_really_is() {
    let mut drive = Drive::new(Disk { read_only: true, ..disk() });
    drive.data.fill(1);
    drive.segment(0, 0, 1, 0);
    for kind in [1, 11, 13] {
        let status = drive.request(kind, 0, &[Descriptor::readable(BUFFER, 512)]);
        assert_eq!(status, (IO_ERROR, 0), "{kind}");
    }
    assert!(drive.data.iter().all(|byte| *byte == 1));
    assert_eq!(drive.request(0, 0, &[Descriptor::writable(BUFFER, 512)]), (0, 513));
    assert_eq!(drive.request(4, 0, &[]), (0, 1));
}

#[test]
fn segments_that_make_no_sense_fail() {
    let mut drive = Drive::new(disk());
    let send = |drive: &mut Drive, kind, length| {
        drive.request(kind, 0, &[Descriptor::readable(BUFFER, length)]).0
    };
    drive.segment(0, 0, 1, 0);
    for length in [0, 1, 15, 17, 16 * 33] {
        assert_eq!(send(&mut drive, 11, length), IO_ERROR, "{length}");
    }
    for (sector, sectors) in [(SECTORS, 1), (0, SECTORS as u32 + 1), (u64::MAX, u32::MAX)] {
        drive.segment(0, sector, sectors, 0);
        assert_eq!(send(&mut drive, 11, 16), IO_ERROR);
    }
    drive.segment(0, 0, 1, 1);
    assert_eq!(send(&mut drive, 11, 16), UNSUPPORTED);
    drive.segment(0, 0, 1, 2);
    assert_eq!(send(&mut drive, 13, 16), UNSUPPORTED);
}

/// A disk may take long to give up or zero what is longer than the configuration says.
#[test]
fn segments_that_are_longer_than_the_limits_fail() {
    let mut drive = Drive::over(Bench::started(device(Disk { sectors: 1 << 30, ..disk() })));
    for (kind, most) in [(11, 1 << 22), (13, 1 << 16)] {
        let chain = [
            Descriptor::readable(HEADER, 16),
            Descriptor::readable(BUFFER, 16),
            Descriptor::writable(STATUS, 1),
        ];
        drive.write_header(kind, 0);
        drive.segment(0, 0, most, 0);
        drive.bench.rings(0).offer(&chain);
        drive.bench.kick(0);
        assert_eq!(drive.bench.transport.device_mut().take().len(), 1, "{kind}");
        drive.bench.transport.device().in_flight().done(1);

        drive.segment(0, 0, most + 1, 0);
        assert_eq!(drive.send(&chain).0, IO_ERROR, "{kind}");
    }
}

#[test]
fn a_short_header_fails_and_a_missing_status_breaks_the_device() {
    let mut drive = Drive::new(disk());
    drive.write_header(0, 0);
    for length in [0, 1, 15] {
        let chain = [Descriptor::readable(HEADER, length), Descriptor::writable(STATUS, 1)];
        assert_eq!(drive.send(&chain), (IO_ERROR, 0));
    }
    assert_eq!(drive.send(&[Descriptor::writable(STATUS, 1)]), (IO_ERROR, 0));

    let broken: [&[Descriptor]; 4] = [
        &[Descriptor::readable(HEADER, 16)],
        &[Descriptor::readable(HEADER, 16), Descriptor::writable(STATUS, 0)],
        &[Descriptor::writable(STATUS, 1), Descriptor::readable(HEADER, 16)],
        &[Descriptor::readable(HEADER, 16), Descriptor::writable(RAM_END, 1)],
    ];
    for chain in broken {
        let mut drive = Drive::new(disk());
        drive.write_header(4, 0);
        drive.bench.rings(0).offer(chain);
        drive.bench.kick(0);
        drive.work();
        assert!(drive.bench.transport.broken().is_some(), "{chain:?}");
    }
}

#[test]
fn data_outside_guest_memory_is_not_touched() {
    let mut drive = Drive::new(disk());
    drive.write_header(0, 0);
    let chain = [
        Descriptor::readable(HEADER, 16),
        Descriptor::writable(RAM_END - 512, 1024),
        Descriptor::writable(STATUS, 1),
    ];
    drive.bench.rings(0).offer(&chain);
    drive.bench.kick(0);

    let taken = drive.bench.transport.device_mut().take();

    // The thread that serves the device finds out, as it asks for the slices.
    let [Request { operation: Operation::Read { into, .. }, .. }] = &taken[..] else { panic!() };
    assert!(into.slices(drive.memory()).is_err());
    drive.bench.transport.device().in_flight().done(1);
}
