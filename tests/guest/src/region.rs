//! Memory with tags, and the instructions that set and read them (Arm ARM, "Memory Tagging Extension").
#![allow(unsafe_code)]

use std::io;

/// Bytes that share a tag.
pub(crate) const GRANULE: usize = 16;
/// `PROT_MTE` (arch/arm64/include/uapi/asm/mman.h); the C library of this target lacks it.
const PROT_MTE: libc::c_int = 0x20;
/// Bits of a pointer below its tag.
const TAG_SHIFT: u32 = 56;

/// Private anonymous memory of this process, with tags where the machine has them.
#[derive(Debug)]
pub(crate) struct Region {
    base: usize,
    size: usize,
    tagged: bool,
}

impl Region {
    /// `size` bytes, rounded up to whole pages. With `tagged` the machine must have MTE.
    ///
    /// # Errors
    /// The kernel's reason, such as too little memory.
    pub(crate) fn new(size: usize, tagged: bool) -> io::Result<Self> {
        let page = crate::system::page_size();
        let size = size.max(1).checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE | if tagged { PROT_MTE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.expose_provenance(), size, tagged })
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The address of a byte, without a tag.
    pub(crate) fn address(&self, offset: usize) -> usize {
        assert!(offset < self.size, "offset {offset} beyond {}", self.size);
        self.base.wrapping_add(offset)
    }

    /// Writes one byte through a pointer that carries `tag`. Where checking is on and the memory has another
    /// tag, the process gets SIGSEGV.
    pub(crate) fn write(&self, offset: usize, tag: u8, value: u8) {
        let pointer = with_tag(self.address(offset), tag);
        // SAFETY: the byte lies in this mapping, which nothing else refers to; the processor ignores the top
        // byte of an address but for the check, which ends in a signal and not in a write.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(pointer).write_volatile(value) };
    }

    /// Asks for huge pages (madvise(2), `MADV_HUGEPAGE`).
    ///
    /// # Errors
    /// When the kernel has none.
    pub(crate) fn want_huge_pages(&self) -> io::Result<()> {
        let base = std::ptr::with_exposed_provenance_mut(self.base);
        // SAFETY: the mapping is ours, of this size; the advice leaves its contents as they are.
        let status = unsafe { libc::madvise(base, self.size, libc::MADV_HUGEPAGE) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Writes the word at `offset`, a multiple of its size, through an untagged pointer.
    pub(crate) fn write_word(&self, offset: usize, value: u64) {
        let pointer = std::ptr::with_exposed_provenance_mut::<u64>(self.word(offset));
        // SAFETY: an aligned word of this mapping, which nothing else refers to.
        unsafe { pointer.write_volatile(value) };
    }

    /// The word at `offset`, a multiple of its size, read through an untagged pointer.
    pub(crate) fn read_word(&self, offset: usize) -> u64 {
        let pointer = std::ptr::with_exposed_provenance::<u64>(self.word(offset));
        // SAFETY: an aligned word of this mapping; anonymous memory always has a value.
        unsafe { pointer.read_volatile() }
    }

    fn word(&self, offset: usize) -> usize {
        assert!(offset.is_multiple_of(size_of::<u64>()), "offset {offset} is within a word");
        self.address(offset)
    }

    /// A tag that `offset` could get: the processor's choice, other than those in the bits of `exclude`.
    pub(crate) fn choose_tag(&self, offset: usize, exclude: u16) -> u8 {
        imp::choose(self.address(offset), exclude)
    }

    /// Tags the granules of `length` bytes from `offset`, both multiples of [`GRANULE`].
    pub(crate) fn tag(&self, offset: usize, length: usize, tag: u8) {
        assert!(self.tagged && offset.is_multiple_of(GRANULE) && length.is_multiple_of(GRANULE));
        for offset in (offset..offset.saturating_add(length)).step_by(GRANULE) {
            let pointer = with_tag(self.address(offset), tag);
            // SAFETY: the granule lies in this mapping, which has PROT_MTE.
            unsafe { imp::store(pointer) };
        }
    }

    /// The tag of the granule at `offset`.
    pub(crate) fn tag_at(&self, offset: usize) -> u8 {
        assert!(self.tagged);
        // SAFETY: the granule lies in this mapping, which has PROT_MTE.
        unsafe { imp::load(self.address(offset)) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let base = std::ptr::with_exposed_provenance_mut(self.base);
        // SAFETY: the mapping is ours, of this size, and no reference into it is ever given out.
        unsafe { libc::munmap(base, self.size) };
    }
}

fn with_tag(address: usize, tag: u8) -> usize {
    address | (usize::from(tag & 0xf) << TAG_SHIFT)
}

#[cfg(target_arch = "aarch64")]
mod imp {
    use std::arch::asm;

    /// IRG: a random tag, not one of `exclude`.
    pub(super) fn choose(address: usize, exclude: u16) -> u8 {
        let tagged: usize;
        // SAFETY: the instruction works on registers only.
        unsafe {
            asm!(".arch_extension memtag", "irg {out}, {address}, {exclude}", out = out(reg) tagged,
                address = in(reg) address, exclude = in(reg) usize::from(exclude), options(nomem, nostack));
        }
        (tagged >> super::TAG_SHIFT & 0xf) as u8
    }

    /// STG: the granule at `pointer` gets its tag.
    ///
    /// # Safety
    /// The granule is mapped, writable, with PROT_MTE, and the processor has MTE.
    pub(super) unsafe fn store(pointer: usize) {
        // SAFETY: as the caller warrants; data is left as it is.
        unsafe {
            asm!(".arch_extension memtag", "stg {0}, [{0}]", in(reg) pointer, options(nostack))
        };
    }

    /// LDG: the tag of the granule at `address`.
    ///
    /// # Safety
    /// The granule is mapped, readable, and the processor has MTE.
    pub(super) unsafe fn load(address: usize) -> u8 {
        let mut tagged = address;
        // SAFETY: as the caller warrants.
        unsafe {
            asm!(".arch_extension memtag", "ldg {0}, [{1}]", inout(reg) tagged, in(reg) address, options(nostack))
        };
        (tagged >> super::TAG_SHIFT & 0xf) as u8
    }
}

/// Other machines have no tags; nothing here is ever called there, for no Region is tagged.
#[cfg(not(target_arch = "aarch64"))]
mod imp {
    pub(super) fn choose(_address: usize, _exclude: u16) -> u8 {
        0
    }

    /// # Safety
    /// None is needed: it does nothing.
    pub(super) unsafe fn store(_pointer: usize) {}

    /// # Safety
    /// None is needed: it does nothing.
    pub(super) unsafe fn load(_address: usize) -> u8 {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_tag_goes_to_the_top_byte() {
        assert_eq!(with_tag(0x1000, 0xa), 0x0a00_0000_0000_1000);
        assert_eq!(with_tag(0x1000, 0x1a), 0x0a00_0000_0000_1000);
    }

    #[test]
    fn words_are_kept_and_fresh_memory_is_zero() {
        let region = Region::new(8192, false).unwrap();

        region.write_word(8184, u64::MAX - 1);

        assert_eq!(region.read_word(8184), u64::MAX - 1);
        assert_eq!(region.read_word(8176), 0);
    }

    #[test]
    fn sizes_are_whole_pages() {
        let region = Region::new(1, false).unwrap();

        assert_eq!(region.size(), crate::system::page_size());
        region.write(region.size() - 1, 0, 1);
        assert!(Region::new(usize::MAX, false).is_err());
    }
}
