//! A boot image: kernel and initrd as they are loaded, in a file that VMs map privately.
//!
//! The kernel is at the start of the file, and the initrd where [`Parts`] says. A VM places them by itself, as it does
//! what it reads from disk, and maps whole pages of the host there: what follows in the last page of each is zero, as
//! in memory that was not touched.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use arch::image::{HEAD_LEN, Header};
use arch::layout::{self, CHUNK, Placement};
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::GuestAddress;

use super::backing::Attributes;
use super::kernel::{self, Kernel};
use super::load::{Error, Loaded, RamSink, copy, guest_page};
use super::ram::GuestRam;
use super::template::{TemplateError, TemplateFile, TemplatePart};
use crate::error::say;

/// What is in the file of a boot image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Parts {
    /// How long the file is.
    pub(crate) size: Bytes,
    /// How long the kernel's Image is, which is at the start.
    pub(crate) kernel: Bytes,
    /// Where the initrd begins, at a multiple of [`CHUNK`].
    pub(crate) initrd_at: Bytes,
    /// How long the initrd is, if there is one.
    pub(crate) initrd: Option<Bytes>,
}

impl Parts {
    /// Whether they lie in the file, one after the other.
    fn are_inside(&self) -> bool {
        let end = self.initrd_at.checked_add(self.initrd.unwrap_or(Bytes::ZERO));
        !self.kernel.is_zero()
            && self.kernel <= self.initrd_at
            && self.initrd_at.is_multiple_of(CHUNK)
            && end.is_some_and(|end| end <= self.size)
    }
}

/// Loads kernel and initrd into a file, which nothing can change then; returns a descriptor for reading it.
///
/// # Errors
/// When a file cannot be used, or the host does not have the memory.
pub(crate) fn make_boot_image(
    kernel_path: &Path,
    initrd_path: Option<&Path>,
) -> Result<(OwnedFd, Parts), Error> {
    let kernel = Kernel::open(kernel_path)?;
    if let Some(doubt) = kernel.doubt() {
        say(&format!("{}: {doubt}", kernel_path.display()));
    }
    let initrd = initrd_path.map(|path| kernel::open(path).map(|file| (file, path))).transpose()?;
    let initrd_length = initrd.as_ref().map(|((_, length), _)| *length);
    // Of a compressed kernel this is the most that it can have.
    let room = kernel.length()?;
    let too_large = || Error::ImageSize(kernel_path.to_owned());
    let initrd_at = room.align_up(CHUNK).ok_or_else(too_large)?;
    let end = initrd_at.checked_add(initrd_length.unwrap_or(Bytes::ZERO));
    let size = end.and_then(|end| end.align_up(CHUNK)).ok_or_else(too_large)?;
    let ram = GuestRam::of_template(
        size,
        Attributes { tags: false, huge_pages: true, ..Attributes::default() },
    )?;
    let base = ram.range().base;
    let mut sink = RamSink::new(&ram, kernel_path, MemoryRange::new(base, room));
    kernel.read_into(&mut sink)?;
    let kernel = sink.taken();
    if let Some(((mut file, length), path)) = initrd {
        copy(&ram, &mut file, length, GuestAddress(base.0 + initrd_at.get()), path)?;
    }
    let file = ram.into_template().map_err(Error::Seal)?;
    Ok((file, Parts { size, kernel, initrd_at, initrd: initrd_length }))
}

/// A boot image that another process has made.
#[derive(Debug)]
pub(crate) struct BootImage {
    file: TemplateFile,
    parts: Parts,
}

impl BootImage {
    /// The boot image in a file that another process has sent.
    ///
    /// # Errors
    /// When it is not one of these parts, or this process or another could change it.
    pub(crate) fn new(file: OwnedFd, parts: Parts) -> Result<Self, TemplateError> {
        match parts.are_inside() {
            true => Ok(Self { file: TemplateFile::new(file, parts.size)?, parts }),
            false => Err(TemplateError::Parts),
        }
    }

    /// Maps kernel and initrd into memory that was not touched. `fdt` bytes are set aside for the device tree.
    ///
    /// # Errors
    /// When they do not fit, or the host does not map them.
    pub(crate) fn load(
        &self,
        ram: &GuestRam,
        kernel_path: &Path,
        fdt: Bytes,
    ) -> Result<Loaded, Error> {
        let header = self.header(kernel_path)?;
        let Parts { kernel: length, initrd_at, initrd: initrd_length, .. } = self.parts;
        let Placement { entry, kernel, initrd, fdt } =
            layout::place(&header, length, initrd_length, fdt, ram.range())
                .map_err(|source| Error::Place { path: kernel_path.to_owned(), source })?;
        let kernel_file = MemoryRange::new(kernel.base, length);
        let parts = [Some((kernel_file, Bytes::ZERO)), initrd.map(|initrd| (initrd, initrd_at))];
        let parts = parts.into_iter().flatten().map(|(range, offset)| {
            pages(ram, range, offset)
                .ok_or_else(|| Error::OffsetOfText { path: kernel_path.to_owned() })
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        ram.share(&self.file, &parts)?;
        Ok(Loaded { entry, kernel, initrd, fdt, guest_page: guest_page(&header) })
    }

    fn header(&self, kernel_path: &Path) -> Result<Header, Error> {
        let mut head = [0; HEAD_LEN];
        let wanted = HEAD_LEN.min(usize::try_from(self.parts.kernel.get()).unwrap_or(HEAD_LEN));
        let read = rustix::io::pread(self.file.as_fd(), &mut head[..wanted], 0);
        let path = || kernel_path.to_owned();
        let length =
            read.map_err(|errno| kernel::Error::Read { path: path(), source: errno.into() })?;
        let header = Header::parse(head.get(..length).unwrap_or_default());
        header.map_err(|source| kernel::Error::Image { path: path(), source }.into())
    }
}

/// The whole pages of the host that a range of guest memory begins at the first of, with what is at an offset of the
/// file; `None` if it begins within one.
fn pages(ram: &GuestRam, range: MemoryRange, offset: Bytes) -> Option<TemplatePart> {
    let page = Bytes::new(rustix::param::page_size() as u64);
    let start = range.base.0.checked_sub(ram.range().base.0)?;
    let end = start.checked_add(range.size.align_up(page)?.get())?;
    let is_whole = start.is_multiple_of(page.get());
    is_whole.then_some(TemplatePart { at: start..end, offset: offset.get() })
}

#[cfg(test)]
mod tests;
