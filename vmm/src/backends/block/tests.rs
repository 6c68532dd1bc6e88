#![allow(clippy::unwrap_used)]

mod events;

use std::fs;
use std::io::{Seek, Write};

use arch::layout::RAM_BASE;
use arch::units::Bytes;
use devices::virtio::block::{Extent, Operation};
use devices::virtio::{Buffer, Stream};
use tempfile::NamedTempFile;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::{Attributes, GuestRam};
use crate::spec::RateLimiterSpec;
use crate::testing::{Means, skip};

const SIZE: u64 = 1 << 20;

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    file
}

fn spec(path: &Path) -> DiskSpec {
    DiskSpec {
        id: "d".to_owned(),
        path: path.to_owned(),
        root: false,
        partuuid: None,
        read_only: false,
        direct: false,
        rate_limiter: RateLimiterSpec::default(),
    }
}

fn open(path: &Path) -> Result<DiskFile, Error> {
    DiskFile::open(&spec(path))
}

fn memory() -> GuestRam {
    GuestRam::new(Bytes::mib(2), Attributes::default()).unwrap()
}

/// Pieces of guest memory at these offsets.
fn stream(pieces: &[(u64, u32)], writable: bool) -> Stream {
    let buffers: Vec<_> = pieces
        .iter()
        .map(|&(at, length)| Buffer { address: GuestAddress(RAM_BASE.0 + at), length, writable })
        .collect();
    Stream::new(&buffers)
}

fn write(offset: u64, pieces: &[(u64, u32)]) -> Operation {
    Operation::Write { offset, from: stream(pieces, false), durable: false }
}

fn read(offset: u64, pieces: &[(u64, u32)]) -> Operation {
    Operation::Read { offset, into: stream(pieces, true) }
}

#[test]
fn what_was_written_is_in_the_file_and_read_back() {
    written_and_read_back(false);
}

#[test]
fn a_direct_disk_takes_what_is_aligned_and_what_is_not() {
    let image = image();
    let spec = DiskSpec { direct: true, ..spec(image.path()) };
    match DiskFile::open(&spec) {
        Err(Error::NotDirect { .. }) => {
            skip(Means::DirectIo, "temporary files take no O_DIRECT");
        }
        opened => {
            drop(opened.unwrap());
            written_and_read_back(true);
        }
    }
}

fn written_and_read_back(direct: bool) {
    let (image, memory) = (image(), memory());
    let file = DiskFile::open(&DiskSpec { direct, ..spec(image.path()) }).unwrap();
    let bytes: Vec<u8> = (0..8192u32).map(|at| (at / 7) as u8).collect();
    memory.write_slice(&bytes, RAM_BASE).unwrap();

    // One whole piece; and pieces of which none has the alignment of a disk.
    file.perform(&write(4096, &[(0, 8192)]), &memory).unwrap();
    file.perform(&write(16384, &[(1, 100), (101, 924)]), &memory).unwrap();
    file.perform(&Operation::Flush, &memory).unwrap();

    let text = fs::read(image.path()).unwrap();
    assert_eq!(text.len() as u64, SIZE);
    assert_eq!(text[4096..12288], bytes);
    assert_eq!(text[16384..17408], bytes[1..1025]);
    file.perform(&read(4096, &[(0x2_0000, 8), (0x3_0001, 8184)]), &memory).unwrap();
    let mut back = vec![0; 8184];
    memory.read_slice(&mut back, GuestAddress(RAM_BASE.0 + 0x3_0001)).unwrap();
    assert_eq!(back, bytes[8..]);
}

#[test]
fn a_file_that_was_cut_fails_beyond_its_end_and_does_not_grow() {
    let (image, memory) = (image(), memory());
    let file = open(image.path()).unwrap();
    image.as_file().set_len(4096).unwrap();

    for operation in [read(4096, &[(0, 512)]), read(3584, &[(0, 1024)]), write(4096, &[(0, 512)])] {
        let error = file.perform(&operation, &memory).unwrap_err();
        assert!(error.to_string().contains("cut"), "{error}");
    }

    file.perform(&write(3584, &[(0, 512)]), &memory).unwrap();
    assert_eq!(fs::metadata(image.path()).unwrap().len(), 4096);
}

#[test]
fn parts_are_given_up_and_zeroed() {
    let (mut image, memory) = (image(), memory());
    image.write_all(&vec![1; SIZE as usize]).unwrap();
    let file = open(image.path()).unwrap();
    assert!(file.disk.discards);
    let part = |offset, length, unmap| vec![Extent { offset, length, unmap }];

    file.perform(&Operation::Discard(part(0, 65536, false)), &memory).unwrap();
    file.perform(&Operation::WriteZeroes(part(131_072, 65536, true)), &memory).unwrap();
    file.perform(&Operation::WriteZeroes(part(262_144, 70_656, false)), &memory).unwrap();
    file.perform(&Operation::WriteZeroes(part(0, 0, false)), &memory).unwrap();

    let text = fs::read(image.path()).unwrap();
    assert_eq!(text.len() as u64, SIZE);
    for (at, byte) in text.iter().enumerate() {
        let zero =
            at < 65536 || (131_072..196_608).contains(&at) || (262_144..332_800).contains(&at);
        assert_eq!(*byte, u8::from(!zero), "{at}");
    }
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(image.path()).unwrap());
    assert!(blocks * 512 <= SIZE - 131_072);
}

#[test]
fn zeros_are_written_where_nothing_else_does_it() {
    let (mut image, memory) = (image(), memory());
    image.write_all(&vec![1; SIZE as usize]).unwrap();
    let file = open(image.path()).unwrap();

    file.write_zeros(&Extent { offset: 512, length: 200_192, unmap: false }).unwrap();

    let text = fs::read(image.path()).unwrap();
    assert!(text[512..200_704].iter().all(|byte| *byte == 0));
    assert_eq!((text[511], text[200_704]), (1, 1));
    drop(memory);
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let image = image();
    let read_only = DiskSpec { read_only: true, ..spec(image.path()) };
    let first = open(image.path()).unwrap();
    assert!(matches!(open(image.path()), Err(Error::Locked { .. })));
    assert!(matches!(DiskFile::open(&read_only), Err(Error::Locked { .. })));
    drop(first);

    let readers = [DiskFile::open(&read_only).unwrap(), DiskFile::open(&read_only).unwrap()];
    let error = open(image.path()).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    assert_eq!(error.status(), crate::exit_status::ExitStatus::Unavailable);
    drop(readers);
    open(image.path()).unwrap();
}

#[test]
fn a_disk_that_is_only_read_needs_no_right_to_write() {
    let (image, memory) = (image(), memory());
    let file = DiskFile::open(&DiskSpec { read_only: true, ..spec(image.path()) }).unwrap();

    assert!(file.disk.read_only);
    assert!(file.perform(&write(0, &[(0, 512)]), &memory).is_err());
}

#[test]
fn what_is_no_disk_is_refused() {
    let image = image();
    image.as_file().set_len(511).unwrap();
    let refused = |path: &Path| open(path).unwrap_err();

    assert!(matches!(refused(image.path()), Error::Empty { size: 511, .. }));
    assert!(matches!(refused(Path::new("/dev/null")), Error::Kind { .. }));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(refused(folder.path()), Error::Open { .. }));
    assert!(matches!(refused(&folder.path().join("none")), Error::Open { .. }));
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    assert!(matches!(refused(&pipe), Error::Kind { .. }));
}

#[test]
fn a_size_that_is_no_multiple_of_a_sector_is_cut() {
    let image = image();
    image.as_file().set_len(1535).unwrap();

    assert_eq!(open(image.path()).unwrap().disk.sectors, 2);
}

#[test]
fn a_buffer_outside_guest_memory_is_an_error() {
    let (mut image, memory) = (image(), memory());
    image.write_all(&[7; 512]).unwrap();
    image.rewind().unwrap();
    let file = open(image.path()).unwrap();

    assert!(file.perform(&read(0, &[((2 << 20) - 256, 512)]), &memory).is_err());
    assert!(file.perform(&write(0, &[(3 << 20, 512)]), &memory).is_err());
    assert_eq!(fs::read(image.path()).unwrap()[..512], [7; 512]);
}
