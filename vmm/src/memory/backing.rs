//! What guest memory is made of, and the file behind it where it has one.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use arch::units::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use super::error::Error;
use super::template;

/// The file's name: smaps shows it as `/memfd:tessera-ram`.
const NAME: &str = "tessera-ram";
/// Where the flags of memfd_create hold the logarithm of a huge page's size (MFD_HUGE_SHIFT).
const HUGE_SHIFT: u32 = 26;

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Backing {
    /// Memory of this process alone.
    #[default]
    Anonymous,
    /// A file in memory, which other processes can be given.
    Memfd,
    /// Such a file of huge pages, which the host keeps in a pool. All of the guest's are promised to it
    /// when it is made; those that it gives back later go to the pool, where another may take them, and
    /// then the guest fails on its next touch.
    Hugetlbfs {
        /// The size of one: a power of two. Every arm64 kernel knows 2 MiB, whatever its own pages.
        page: Bytes,
    },
}

impl Backing {
    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Memfd => "memfd",
            Self::Hugetlbfs { .. } => "hugetlbfs",
        }
    }

    /// The size of the pages in which it can be given back.
    pub fn page_size(self) -> Bytes {
        match self {
            Self::Anonymous | Self::Memfd => Bytes::new(rustix::param::page_size() as u64),
            Self::Hugetlbfs { page } => page,
        }
    }

    /// The first Linux whose KVM takes it for a guest with MTE (`kvm_arch_prepare_memory_region` in
    /// arch/arm64/kvm/mmu.c, `arch_calc_vm_flag_bits` in arch/arm64/include/asm/mman.h).
    pub fn mte_since(self) -> &'static str {
        match self {
            Self::Anonymous => "5.14",
            Self::Memfd => "6.2",
            Self::Hugetlbfs { .. } => "6.13",
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What guest memory is like.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attributes {
    /// Mapped with PROT_MTE, so that it shows as such in smaps and a kernel that manages tag storage can
    /// act on it. KVM wants it possible, not set, for a guest with MTE.
    pub tags: bool,
    /// Backed by transparent huge pages wherever the host can. Of a memfd it is only asked: the host's
    /// /sys/kernel/mm/transparent_hugepage/shmem_enabled must say `advise` or more. Nothing to hugetlbfs.
    pub huge_pages: bool,
    /// What it is made of.
    pub backing: Backing,
}

/// The file that holds guest memory.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: OwnedFd,
    /// Whether the file can tell holes from data: hugetlbfs cannot, as it keeps no huge page in part.
    knows_holes: bool,
}

impl MemoryFile {
    /// The file of a backing that has one, of `size` bytes for good.
    ///
    /// # Errors
    /// When the host has no such files, or no pages of that size.
    pub(super) fn new(backing: Backing, size: Bytes) -> Result<Option<Self>, Error> {
        // Its length is memory that this process touches: no process that is given it may truncate it.
        Self::with(backing, size, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
    }

    /// The file of a template, of `size` bytes. It is sealed when it has its contents.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(super) fn of_template(size: Bytes) -> Result<Option<Self>, Error> {
        Self::with(Backing::Memfd, size, SealFlags::SHRINK | SealFlags::GROW)
    }

    fn with(backing: Backing, size: Bytes, seals: SealFlags) -> Result<Option<Self>, Error> {
        let (huge, knows_holes) = match backing {
            Backing::Anonymous => return Ok(None),
            Backing::Memfd => (MemfdFlags::empty(), true),
            Backing::Hugetlbfs { page } => (huge_flags(page, size)?, false),
        };
        let file = create(huge).map_err(|errno| match (backing, errno) {
            // hugetlb_file_setup in fs/hugetlbfs/inode.c: no such size, or no mount of it.
            (Backing::Hugetlbfs { page }, Errno::NODEV | Errno::NOENT) => {
                Error::NoSuchHugePages { page, source: errno.into() }
            }
            _ => Error::File { size, backing: backing.name(), source: errno.into() },
        })?;
        rustix::fs::ftruncate(&file, size.get())
            .and_then(|()| rustix::fs::fcntl_add_seals(&file, seals))
            .map_err(|errno| Error::File { size, backing: backing.name(), source: errno.into() })?;
        Ok(Some(Self { file, knows_holes }))
    }

    /// Seals the file, which nothing maps any more, and returns a descriptor that nothing can be written to through.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn seal(self) -> Result<OwnedFd, Errno> {
        rustix::fs::fcntl_add_seals(&self.file, template::SEALS)?;
        read_only(&self.file)
    }

    /// Another descriptor of the same file.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn try_clone(&self) -> Result<Self, Errno> {
        let file = rustix::io::fcntl_dupfd_cloexec(&self.file, 0)?;
        Ok(Self { file, knows_holes: self.knows_holes })
    }

    /// Gives a range pages of zeros where it has none.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn allocate(&self, offset: u64, length: u64) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length)
    }

    /// The file, for mapping it.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Gives the pages of a range back; they read zero from now on, in every mapping.
    ///
    /// # Errors
    /// What the host answers, or EBUSY when pages are left: part of a huge page that the kernel could not
    /// split is only zeroed, and keeps its tags (`truncate_inode_partial_folio` in mm/truncate.c).
    pub(super) fn punch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, mode, offset, length)?;
        match self.is_hole(offset, length)? {
            Some(false) => Err(Errno::BUSY),
            Some(true) | None => Ok(()),
        }
    }

    /// Whether a range has no page, neither in memory nor swapped out; `None` where the file cannot tell.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn is_hole(&self, offset: u64, length: u64) -> Result<Option<bool>, Errno> {
        if !self.knows_holes {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            // ENXIO: nothing but a hole up to the end.
            Err(Errno::NXIO) => Ok(Some(true)),
            Ok(data) => Ok(Some(data >= offset.saturating_add(length))),
            Err(errno) => Err(errno),
        }
    }
}

impl MemoryFile {
    /// Where the next data begins at or after an offset and before an end, and where it ends.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn next_data(&self, offset: u64, end: u64) -> Result<Option<Range<u64>>, Errno> {
        if offset >= end {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => Ok(None),
            Ok(data) if data >= end => Ok(None),
            Ok(data) => {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data))?;
                Ok(Some(data..hole.min(end)))
            }
            Err(errno) => Err(errno),
        }
    }
}

/// A descriptor of its own for the same file, for reading.
pub(super) fn read_only(file: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn create(huge: MemfdFlags) -> Result<OwnedFd, Errno> {
    let flags = huge | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 there was no such seal; since then hosts can insist on it (vm.memfd_noexec).
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        done => done,
    }
}

fn huge_flags(page: Bytes, size: Bytes) -> Result<MemfdFlags, Error> {
    if !page.get().is_power_of_two() || !size.is_multiple_of(page) {
        return Err(Error::NotWholePages { size, page });
    }
    let logarithm = page.get().trailing_zeros();
    Ok(MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(logarithm << HUGE_SHIFT))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::ErrorKind;
    use std::os::unix::fs::FileExt;

    use super::*;

    const SIZE: Bytes = Bytes::mib(4);

    fn memfd() -> MemoryFile {
        MemoryFile::new(Backing::Memfd, SIZE).unwrap().unwrap()
    }

    #[test]
    fn anonymous_memory_has_no_file() {
        assert!(MemoryFile::new(Backing::Anonymous, SIZE).unwrap().is_none());
    }

    #[test]
    fn the_file_has_its_length_for_good() {
        let memory = memfd();

        for length in [0, SIZE.get() - 4096, SIZE.get() + 4096] {
            let changed = rustix::fs::ftruncate(memory.file(), length);
            assert_eq!(changed, Err(Errno::PERM), "{length}");
        }

        let unsealed = rustix::fs::fcntl_add_seals(memory.file(), SealFlags::WRITE);
        assert_eq!(unsealed, Err(Errno::PERM));
        let descriptor = rustix::io::fcntl_getfd(memory.file()).unwrap();
        assert!(descriptor.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_punched_range_reads_zero_and_its_neighbours_stay() {
        let memory = memfd();
        let file = std::fs::File::from(memory.file().try_clone().unwrap());
        file.write_all_at(&vec![7; SIZE.get() as usize], 0).unwrap();
        let page = Backing::Memfd.page_size().get();

        memory.punch(page, 3 * page).unwrap();
        memory.punch(SIZE.get() - page, page).unwrap();

        let mut bytes = vec![1; SIZE.get() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        for (at, bytes) in bytes.chunks_exact(page as usize).enumerate() {
            let hole = (1..4).contains(&at) || at as u64 == SIZE.get() / page - 1;
            let expected = if hole { 0 } else { 7 };
            assert!(bytes.iter().all(|byte| *byte == expected), "page {at}");
        }
    }

    #[test]
    fn pages_that_stay_are_reported() {
        let memory = memfd();
        let file = std::fs::File::from(memory.file().try_clone().unwrap());
        let page = Backing::Memfd.page_size().get();
        file.write_all_at(&[7], 2 * page).unwrap();

        // Nothing but part of a page: the kernel zeroes it, and keeps the page.
        let kept = memory.punch(2 * page, page / 2);

        assert_eq!(kept, Err(Errno::BUSY));
    }

    #[test]
    fn huge_pages_that_do_not_exist_are_named() {
        // 8 KiB: no architecture has huge pages of two or three pages.
        let page = Bytes::kib(8);
        let error = MemoryFile::new(Backing::Hugetlbfs { page }, SIZE).unwrap_err();

        match error {
            Error::NoSuchHugePages { .. } => assert!(error.to_string().contains("8 KiB")),
            // A kernel without hugetlbfs.
            Error::File { source, .. } => assert_eq!(source.kind(), ErrorKind::InvalidInput),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn memory_that_is_no_whole_number_of_huge_pages_is_refused() {
        for page in [Bytes::mib(8), Bytes::ZERO, Bytes::new(3 << 20)] {
            let error = MemoryFile::new(Backing::Hugetlbfs { page }, SIZE).unwrap_err();
            assert!(matches!(error, Error::NotWholePages { .. }), "{page}: {error:?}");
        }
    }

    #[test]
    fn a_backing_is_called_as_on_the_command_line() {
        let names = [Backing::Anonymous, Backing::Memfd, Backing::Hugetlbfs { page: SIZE }];

        assert_eq!(names.map(|backing| backing.to_string()), ["anonymous", "memfd", "hugetlbfs"]);
    }
}
