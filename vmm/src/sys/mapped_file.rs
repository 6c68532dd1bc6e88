//! A file that is mapped to be copied: for large files that costs less than to read them.
//!
//! A file that is cut short meanwhile has no page where the copy comes to, and the kernel answers with SIGBUS. There is
//! no way on from there: the handler of faults ends the process and names the file.
//!
//! # References
//! mmap(2), "SIGBUS"
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::VolatileSlice;

use super::fatal::CopiedFile;

/// The first bytes of a file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile {
    start: *mut u8,
    length: usize,
    /// What the handler of faults knows of it.
    _copied: Option<CopiedFile>,
}

impl MappedFile {
    /// Maps so many bytes of a file, which it has. The path is for the message if it has them no longer.
    ///
    /// # Errors
    /// When the kernel does not map it, as of some file systems.
    pub(crate) fn new(file: impl AsFd, length: usize, path: &Path) -> io::Result<Self> {
        if length == 0 {
            return Err(Errno::INVAL.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start =
            unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
        let addresses = start as u64..start as u64 + length as u64;
        let copied = CopiedFile::note(&addresses, path);
        Ok(Self { start: start.cast(), length, _copied: copied })
    }

    /// Its bytes, which another process may change meanwhile. They are only read.
    pub(crate) fn bytes(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping has this length and lives as long as the slice, which borrows it.
        unsafe { VolatileSlice::new(self.start, self.length) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no slice of it is left.
        let unmapped = unsafe { munmap(self.start.cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of an owned mapping: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_mapped_as_it_is() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
        file.write_all(&bytes).unwrap();

        let mapped = MappedFile::new(file.as_file(), 9_999, file.path()).unwrap();

        let mut found = vec![0; 10_000];
        assert_eq!(mapped.bytes().copy_to(&mut found[..]), 9_999);
        assert_eq!(found[..9_999], bytes[..9_999]);
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert!(MappedFile::new(&pipe, 4096, Path::new("pipe")).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(MappedFile::new(&file, 0, Path::new("empty")).is_err());
    }
}
