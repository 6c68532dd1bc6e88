//! A disk that is full, and one that takes little at a time.

use std::cell::Cell;
use std::io;

use vm_memory::VolatileSlice;

use super::*;

/// A file on a disk with so much room.
struct Disk {
    file: std::fs::File,
    room: Cell<u64>,
}

impl Disk {
    fn new(room: u64) -> Self {
        Self { file: tempfile::tempfile().unwrap(), room: Cell::new(room) }
    }

    fn take(&self, length: usize) -> io::Result<()> {
        let left = self.room.get().checked_sub(length as u64);
        self.room.set(left.ok_or(io::ErrorKind::StorageFull)?);
        Ok(())
    }
}

impl Output for Disk {
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.take(bytes.len())?;
        self.file.write(bytes, offset)
    }

    fn write_pages(&self, pieces: &mut [VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.take(pieces.iter().map(VolatileSlice::len).sum())?;
        self.file.write_pages(pieces, offset)
    }
}

#[test]
fn a_disk_that_is_full_at_any_tenth_ends_the_save() {
    let pages = vec![Page::Present(Filling::Random(7), Filling::Random(8)); 40];
    let memory = FakeMemory::with(&[pages.clone(), pages.clone(), pages], Bytes::kib(4), true);
    let about = About::of(&memory, SnapshotId([1; 16]), None);
    let save = |disk: &Disk| save_memory(&memory, &about, disk, &mut |_| {});
    let whole = Disk::new(u64::MAX);
    save(&whole).unwrap();
    let needed = u64::MAX - whole.room.get();

    for room in (0..10).map(|tenth| needed * tenth / 10).chain([needed - 1]) {
        let fault = save(&Disk::new(room)).unwrap_err();
        assert!(matches!(fault, Fault::NoSpace(_)), "{room}: {fault:?}");
    }
    save(&Disk::new(needed)).unwrap();
}

#[test]
fn tags_that_cannot_be_read_end_the_save() {
    struct Unreadable(FakeMemory);
    impl GuestPages for Unreadable {
        fn size(&self) -> Bytes {
            self.0.size()
        }
        fn page_size(&self) -> Bytes {
            self.0.page_size()
        }
        fn has_tags(&self) -> bool {
            true
        }
        fn pages(&self, offset: u64, length: usize) -> io::Result<VolatileSlice<'_>> {
            self.0.pages(offset, length)
        }
    }
    impl MemoryView for Unreadable {
        fn present(&self, chunk: u64) -> io::Result<PageSet> {
            self.0.present(chunk)
        }
        fn read_tags(&self, _offset: u64, _packed: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::Other.into())
        }
    }
    let memory = Unreadable(every_kind(Bytes::kib(4)));
    let about = About::of(&memory, SnapshotId([1; 16]), None);

    let fault = save_memory(&memory, &about, &Disk::new(u64::MAX), &mut |_| {}).unwrap_err();

    assert!(matches!(fault, Fault::GuestMemory(_)), "{fault:?}");
}
