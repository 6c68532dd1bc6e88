#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use arch::layout::CHUNK;
use arch::units::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::net::SocketType;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

use super::answer::HolderError;
use super::client::{Error, Template, connect_at};
use super::fill::fill;
use super::holder::{End, Holder};
use super::identity::Identity;
use crate::memory::{Attributes, GuestRam, MOST_EXTENTS, TemplateError};
use crate::snapshot::memory_file::GuestPages;
use crate::snapshot::testing::{FakeMemory, state};
use crate::snapshot::{MemoryReader, NewPair, PageSet};
use crate::sys::seqpacket;
use crate::sys::unix_socket::{Kind, Socket};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const CHUNKS: u64 = 5;
/// Those with something in them.
const USED: [usize; 3] = [0, 1, 3];

/// A snapshot of memory whose first page of each used chunk is filled with the chunk's number and 1.
fn snapshot() -> (TempDir, MemoryReader) {
    let folder = tempfile::tempdir().unwrap();
    let (state_file, memory_file) = (folder.path().join("state"), folder.path().join("memory"));
    let page = Bytes::new(rustix::param::page_size() as u64);
    let mut memory = FakeMemory::new(CHUNKS, page, false);
    for chunk in USED {
        memory.present[chunk] = PageSet::of(0..1);
        memory.write(memory.offset(chunk, 0), &vec![chunk as u8 + 1; page.get() as usize]);
    }
    let mut pair = NewPair::create(&state_file, &memory_file).unwrap();
    pair.save_memory(&memory, None, &mut |_| {}).unwrap();
    let state = state(pair.id(), &memory);
    pair.commit(&state).unwrap();
    let reader = MemoryReader::open(&memory_file).unwrap();
    (folder, reader)
}

fn extents(reader: &MemoryReader) -> Vec<std::ops::Range<u64>> {
    super::extents::extents(reader.chunks(), MOST_EXTENTS)
}

/// Its template.
fn filled(reader: &MemoryReader) -> OwnedFd {
    fill(reader, &extents(reader), &|| false).unwrap().unwrap()
}

/// Waits until something is so.
fn until(mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "it takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A holder in a thread, until it is stopped or has nothing to do.
struct Running {
    thread: Option<JoinHandle<End>>,
    stop: OwnedFd,
}

impl Running {
    fn start(path: &Path, reader: &MemoryReader, places: usize, linger: Duration) -> Self {
        Self::of(Holder::with_places(path, places).unwrap(), reader, linger)
    }

    fn of(mut holder: Holder, reader: &MemoryReader, linger: Duration) -> Self {
        let (identity, template) = (Identity::of(reader), filled(reader));
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let own = stop.try_clone().unwrap();
        let serve = move || holder.serve_until(own, &identity.encode(), &template, linger).unwrap();
        let thread = std::thread::spawn(serve);
        Self { thread: Some(thread), stop }
    }

    fn end(&mut self) -> End {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

fn socket(folder: &TempDir) -> PathBuf {
    folder.path().join("socket")
}

fn held(folder: &TempDir, reader: &MemoryReader) -> Running {
    Running::start(&socket(folder), reader, 8, LONG)
}

fn come(folder: &TempDir, reader: &MemoryReader) -> Result<Template, Error> {
    connect_at(&socket(folder), reader, LONG)
}

/// A clone's memory and its connection.
fn clone(folder: &TempDir, reader: &MemoryReader) -> (GuestRam, super::Connection) {
    let ram = GuestRam::new(reader.about().size, Attributes::default()).unwrap();
    let connection = come(folder, reader).unwrap().map(&ram).unwrap();
    (ram, connection)
}

/// The first bytes of all chunks.
fn firsts(ram: &GuestRam) -> Vec<u8> {
    let at = |chunk: u64| GuestAddress(ram.range().base.0 + chunk * CHUNK.get());
    (0..CHUNKS).map(|chunk| ram.read_obj(at(chunk)).unwrap()).collect()
}

#[test]
fn clones_have_the_memory_of_the_snapshot_and_each_its_own() {
    let (folder, reader) = snapshot();
    let _holder = held(&folder, &reader);
    let (one, _one) = clone(&folder, &reader);
    let (other, _other) = clone(&folder, &reader);
    assert_eq!([firsts(&one), firsts(&other)], [[1, 2, 0, 4, 0]; 2].map(Vec::from));
    assert_eq!(one.of_the_template(), Some(Bytes::mib(6)));

    let base = one.range().base;
    one.write_slice(&[9; 8192], base).unwrap();
    one.write_obj(9u8, GuestAddress(base.0 + 2 * CHUNK.get())).unwrap();

    assert_eq!(firsts(&one), [9, 2, 9, 4, 0]);
    assert_eq!(firsts(&other), [1, 2, 0, 4, 0]);
    let (third, _third) = clone(&folder, &reader);
    assert_eq!(firsts(&third), [1, 2, 0, 4, 0]);
}

#[test]
fn what_a_clone_gives_back_reads_zero_and_its_template_stays() {
    use arch::range::MemoryRange;

    let (folder, reader) = snapshot();
    let _holder = held(&folder, &reader);
    let (one, _one) = clone(&folder, &reader);
    let (other, _other) = clone(&folder, &reader);
    let base = one.range().base;
    let page = rustix::param::page_size() as u64;
    one.write_obj(9u8, base).unwrap();

    // A page, a whole chunk, and more than one with a part.
    let part = |offset, size| MemoryRange::new(GuestAddress(base.0 + offset), Bytes::new(size));
    for range in
        [part(0, page), part(CHUNK.get(), CHUNK.get()), part(2 * CHUNK.get(), CHUNK.get() + page)]
    {
        assert_eq!(one.discard(range).unwrap(), range.size);
    }

    assert_eq!(firsts(&one), [0; 5]);
    assert_eq!(firsts(&other), [1, 2, 0, 4, 0]);
    one.write_obj(7u8, base).unwrap();
    assert_eq!(firsts(&one)[0], 7);
    assert_eq!(one.of_the_template(), Some(Bytes::new(2 * (CHUNK.get() - page))));
}

/// A clone that is saved has pages that it never touched.
#[test]
fn all_pages_of_the_template_are_in_the_memory_of_a_clone() {
    use crate::machine::PausedMemory;
    use crate::snapshot::{MemoryView, SnapshotId, load_memory, save_memory};

    let (folder, reader) = snapshot();
    let _holder = held(&folder, &reader);
    let (one, _one) = clone(&folder, &reader);
    let contents = PausedMemory::new(&one).unwrap();
    let all = (CHUNK.get() / contents.page_size().get()) as usize;
    let present = |chunk| contents.present(chunk).unwrap().len();
    assert_eq!((0..CHUNKS).map(present).collect::<Vec<_>>(), [all, all, 0, all, 0]);

    let saved = folder.path().join("second");
    let file = std::fs::File::create(&saved).unwrap();
    let about =
        crate::snapshot::memory_file::About::of(&contents, SnapshotId::random().unwrap(), None);
    save_memory(&contents, &about, &file, &mut |_| {}).unwrap();
    let again = FakeMemory::new(CHUNKS, contents.page_size(), false);
    load_memory(&again, &MemoryReader::open(&saved).unwrap(), &mut |_| {}).unwrap();

    let first = |chunk: u64| again.data()[(chunk * CHUNK.get()) as usize];
    assert_eq!((0..CHUNKS).map(first).collect::<Vec<_>>(), [1, 2, 0, 4, 0]);
    // Zeroes are not saved.
    assert!(std::fs::metadata(&saved).unwrap().len() < 64 << 10);
}

#[test]
fn the_descriptor_is_for_reading_a_file_that_cannot_change() {
    let (folder, reader) = snapshot();
    let _holder = held(&folder, &reader);
    let raw = seqpacket::connect(&socket(&folder), LONG).unwrap();
    let mut buffer = [0; 128];
    let (message, fd) = seqpacket::receive_fd(&raw, &mut buffer).unwrap().unwrap();
    let fd = fd.unwrap();

    assert_eq!(Identity::decode(message), Some(Identity::of(&reader)));
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    assert_eq!(flags & OFlags::ACCMODE, OFlags::RDONLY);
    let file = std::fs::File::from(fd);
    assert!(file.write_at(&[1], 0).is_err() && file.set_len(0).is_err());
    // As root it can be opened for writing, and is sealed.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    if let Ok(writable) = std::fs::File::options().write(true).open(path) {
        assert!(writable.write_at(&[1], 0).is_err() && writable.set_len(0).is_err());
    }
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
    assert!(
        seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
    );
    // All pages that a clone may touch are there.
    use std::os::unix::fs::MetadataExt;
    let allocated = || file.metadata().unwrap().blocks() * 512;
    assert_eq!(allocated(), USED.len() as u64 * CHUNK.get());
    let (one, _one) = clone(&folder, &reader);
    let mut all = vec![0; one.range().size.get() as usize];
    one.read_slice(&mut all, one.range().base).unwrap();
    assert_eq!(allocated(), USED.len() as u64 * CHUNK.get());
}

#[test]
fn only_its_user_can_connect() {
    let (folder, reader) = snapshot();
    let _holder = held(&folder, &reader);

    let mode = std::fs::metadata(socket(&folder)).unwrap().permissions().mode();

    assert_eq!(mode & 0o777 & !0o600, 0);
}

#[test]
fn clients_that_mean_harm_are_let_go_and_hold_up_no_other() {
    let (folder, reader) = snapshot();
    let _holder = Running::start(&socket(&folder), &reader, 4, LONG);
    let silent: Vec<_> =
        (0..3).map(|_| seqpacket::connect(&socket(&folder), LONG).unwrap()).collect();
    let (one, _connection) = clone(&folder, &reader);
    // There is no place for a fifth.
    assert!(matches!(
        come(&folder, &reader),
        Err(Error::Holder { source: HolderError::Refused, .. })
    ));

    for message in [&b"x"[..], &[0xff; 64], &[7; 60_000]] {
        let talker = silent.first().unwrap();
        // The connection has gone once the first has been seen.
        let _ = seqpacket::send(talker, message);
    }

    // Its place is free, sooner or later.
    until(|| come(&folder, &reader).is_ok());
    assert_eq!(firsts(&one), [1, 2, 0, 4, 0]);
}

#[test]
fn a_holder_ends_when_the_last_client_has_gone() {
    let (folder, reader) = snapshot();
    let mut holder = Running::start(&socket(&folder), &reader, 8, Duration::from_millis(20));
    // None came.
    assert_eq!(holder.thread.take().unwrap().join().unwrap(), End::Unused);

    let bound = Holder::with_places(&socket(&folder), 8).unwrap();
    let (one, mut holder) = std::thread::scope(|scope| {
        // It waits for the template before the holder has one.
        let client = scope.spawn(|| clone(&folder, &reader));
        let mut listener = [PollFd::new(&bound, PollFlags::IN)];
        poll(&mut listener, None).unwrap();
        let holder = Running::of(bound, &reader, Duration::from_millis(20));
        let (one, connection) = client.join().unwrap();
        drop(connection);
        (one, holder)
    });
    assert_eq!(holder.thread.take().unwrap().join().unwrap(), End::Unused);
    // What it has mapped stays.
    assert_eq!(firsts(&one), [1, 2, 0, 4, 0]);
    assert!(matches!(come(&folder, &reader), Err(Error::Absent { .. })));
}

#[test]
fn a_clone_outlives_its_holder_and_its_files() {
    let (folder, reader) = snapshot();
    let mut holder = held(&folder, &reader);
    let (one, _connection) = clone(&folder, &reader);
    std::fs::write(folder.path().join("memory"), b"gone").unwrap();

    assert_eq!(holder.end(), End::Asked);

    assert_eq!(firsts(&one), [1, 2, 0, 4, 0]);
    one.write_slice(&[3; 4096], one.range().base).unwrap();
    assert_eq!(firsts(&one), [3, 2, 0, 4, 0]);
}

/// What a holder answers that is none.
#[derive(Clone, Copy)]
struct Hostile<'a> {
    message: &'a [u8],
    file: Option<&'a OwnedFd>,
}

/// Has a client come to it.
fn meets(reader: &MemoryReader, hostile: Hostile<'_>) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let kind = Kind { socket_type: SocketType::SEQPACKET, ..Kind::PRIVATE_STREAM };
    let listener = Socket::bind_as(&socket(&folder), kind).unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| connect_at(&socket(&folder), reader, LONG).unwrap_err());
        let mut accepted = None;
        until(|| {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let connection = accepted.unwrap();
        match hostile.file {
            Some(file) => seqpacket::send_fd(&connection, hostile.message, file.as_fd()).unwrap(),
            None if hostile.message.is_empty() => {}
            None => seqpacket::send(&connection, hostile.message).unwrap(),
        }
        drop(connection);
        client.join().unwrap()
    })
}

fn memfd(size: u64, seals: SealFlags, writable: bool) -> OwnedFd {
    let file = rustix::fs::memfd_create("hostile", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, size).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    if writable {
        return file;
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    std::fs::File::open(path).unwrap().into()
}

#[test]
fn a_holder_that_lies_is_refused_by_name() {
    let (_folder, reader) = snapshot();
    let (size, seals) =
        (reader.about().size.get(), SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK);
    let all = seals | SealFlags::SEAL;
    let good = memfd(size, all, false);
    let identity = Identity::of(&reader);
    let message = identity.encode();
    let lies = |message: &[u8], file: Option<&OwnedFd>| meets(&reader, Hostile { message, file });

    assert!(
        matches!(lies(&[], None), Error::Holder { source: HolderError::Refused, .. }),
        "it dies in the middle"
    );
    for malformed in [&message[..63], &[0; 64], &[&message[..], &[0]].concat(), &[9; 4000]] {
        assert!(matches!(
            lies(malformed, Some(&good)),
            Error::Holder { source: HolderError::Malformed, .. }
        ));
    }
    assert!(matches!(lies(&message, None), Error::Holder { source: HolderError::Malformed, .. }));
    for other in [
        Identity { table: !identity.table, ..identity },
        Identity { tagged: !identity.tagged, ..identity },
        Identity { size: Bytes::new(size + CHUNK.get()), ..identity },
        Identity { page_size: Bytes::kib(32), ..identity },
        Identity { id: crate::snapshot::SnapshotId::random().unwrap(), ..identity },
    ] {
        assert!(matches!(lies(&other.encode(), Some(&good)), Error::Other { .. }));
    }
    let file = |file: OwnedFd| match lies(&message, Some(&file)) {
        Error::Holder { source: HolderError::File(error), .. } => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(file(memfd(size, all, true)), TemplateError::Writable));
    assert!(matches!(file(memfd(size, seals, false)), TemplateError::Unsealed));
    assert!(matches!(file(memfd(size, SealFlags::empty(), false)), TemplateError::Unsealed));
    for wrong in [0, size - CHUNK.get(), size + CHUNK.get()] {
        assert!(matches!(file(memfd(wrong, all, false)), TemplateError::Length { .. }));
    }
    let null = std::fs::File::open("/dev/null").unwrap().into();
    assert!(matches!(file(null), TemplateError::Kind));
}

#[test]
fn a_snapshot_that_cannot_be_read_makes_no_template() {
    let (folder, reader) = snapshot();
    let file = std::fs::File::options().write(true).open(folder.path().join("memory")).unwrap();
    let data = rustix::param::page_size() as u64;
    file.write_all_at(&[0xaa; 64], data).unwrap();

    let refused = fill(&reader, &extents(&reader), &|| false);
    assert!(matches!(refused, Err(super::fill::Error::Snapshot(_))));
}

#[test]
fn a_template_that_is_not_wanted_any_more_is_filled_by_no_further_chunk() {
    let (_folder, reader) = snapshot();
    let extents = extents(&reader);
    let chunks: u64 = extents.iter().map(|extent| (extent.end - extent.start) / CHUNK.get()).sum();

    for wanted in 0..USED.len() as u64 + chunks {
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) == wanted;
        assert!(fill(&reader, &extents, &stop).unwrap().is_none(), "{wanted}");
        assert_eq!(asked.get(), wanted + 1);
    }
}

/// What the clone never touched is in neither, but in the snapshot that its template is of.
#[test]
fn a_diff_of_a_clone_is_merged_with_the_snapshot_of_its_template() {
    use arch::range::MemoryRange;

    use crate::machine::PausedMemory;
    use crate::snapshot::{Kind, Pair, load_memory, merge};

    let (folder, reader) = snapshot();
    let _holder = held(&folder, &reader);
    let (one, _one) = clone(&folder, &reader);
    let (base, page) = (one.range().base, rustix::param::page_size() as u64);
    let at = |offset| GuestAddress(base.0 + offset);
    one.track_changes();
    one.write_obj(9u8, at(page)).unwrap();
    one.discard(MemoryRange::new(at(CHUNK.get()), CHUNK)).unwrap();
    one.write_obj(8u8, at(CHUNK.get() + 3 * page)).unwrap();
    one.write_obj(7u8, at(2 * CHUNK.get())).unwrap();

    let changes = one.take_changes().unwrap();
    let contents = PausedMemory::new(&one).unwrap().since(Some(&changes));
    let files =
        |name: &str| ["state", "memory"].map(|file| folder.path().join(format!("{name}{file}")));
    let [state_file, memory_file] = files("diff-");
    let mut pair = NewPair::create(&state_file, &memory_file).unwrap();
    pair.save_memory(&contents, Some(reader.about().id), &mut |_| {}).unwrap();
    let mut state = state(pair.id(), &contents);
    state.manifest.kind = Kind::Diff { base: reader.about().id };
    pair.commit(&state).unwrap();

    let [whole, diff, into] = [files(""), files("diff-"), files("merged-")];
    let diff = Pair::open_any(&diff[0], &diff[1]).unwrap();
    assert_eq!(diff.memory.chunks().collect::<Vec<_>>(), [0, 1, 2]);
    merge(&Pair::open(&whole[0], &whole[1]).unwrap(), &[diff], &into[0], &into[1], &mut |_| {})
        .unwrap();
    let merged = FakeMemory::new(CHUNKS, Bytes::new(page), false);
    load_memory(&merged, &MemoryReader::open(&into[1]).unwrap(), &mut |_| {}).unwrap();
    let mut data = vec![0; one.range().size.get() as usize];
    one.read_slice(&mut data, base).unwrap();
    assert!(data == merged.data());
    assert_eq!(firsts(&one), [1, 0, 7, 4, 0]);
}
