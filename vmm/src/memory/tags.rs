//! Allocation tags of guest memory, read and written in place with the instructions of MTE.
//!
//! KVM_ARM_MTE_COPY_TAGS does the same by a call for each page, of one byte a tag. These instructions take a fifth of
//! its time, and work on any mapping with PROT_MTE.
//!
//! # References
//! Arm DDI 0487, LDG, STG, ST2G
#![allow(unsafe_code)]

use std::ptr::NonNull;

use arch::mte::granule::{GRANULE, TAG_BITS};

/// How many tags there are in a word.
const TAGS_PER_WORD: usize = (u64::BITS / TAG_BITS) as usize;

/// How much memory has the tags of one word.
pub(super) const WORD_SPAN: usize = TAGS_PER_WORD * GRANULE.get() as usize;

/// The tags of [`WORD_SPAN`] bytes of memory, the first in the low four bits.
///
/// # Safety
/// `memory` is the start of as many bytes that are mapped with PROT_MTE, at a multiple of 16.
pub(super) unsafe fn read(memory: NonNull<u8>) -> u64 {
    // SAFETY: the caller has it that these bytes are mapped with tags.
    unsafe { instructions::read(memory.as_ptr()) }
}

/// Sets the tags of [`WORD_SPAN`] bytes of memory.
///
/// # Safety
/// As for [`read`]; the memory is writable.
pub(super) unsafe fn write(memory: NonNull<u8>, word: u64) {
    // SAFETY: the caller has it that these bytes are mapped with tags, and writable.
    unsafe { instructions::write(memory.as_ptr(), word) }
}

/// Gives [`WORD_SPAN`] bytes of memory one tag.
///
/// # Safety
/// As for [`write`].
pub(super) unsafe fn fill(memory: NonNull<u8>, tag: u8) {
    // SAFETY: the caller has it that these bytes are mapped with tags, and writable.
    unsafe { instructions::fill(memory.as_ptr(), tag) }
}

#[cfg(target_arch = "aarch64")]
mod instructions {
    use std::arch::asm;

    /// A tag in the bits of an address that hold one.
    const ADDRESS_TAG_SHIFT: u32 = 56;

    /// Sixteen tags.
    pub(super) unsafe fn read(at: *const u8) -> u64 {
        let word;
        // Each LDG puts its tag into bits 59 to 56 of a register that is zero otherwise, and each rotation by four
        // makes room for the next: after the sixteenth, the first is in bits 63 to 60.
        // SAFETY: the instructions read the tags of the 256 bytes, which the caller vouches for, and nothing else.
        unsafe {
            asm!(
                ".arch_extension memtag",
                "ldg {tag}, [{at}]",
                "mov {word}, {tag}",
                ".irp offset, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240",
                "ldg {tag}, [{at}, #\\offset]",
                "orr {word}, {tag}, {word}, ror #4",
                ".endr",
                "ror {word}, {word}, #60",
                at = in(reg) at,
                tag = inout(reg) 0u64 => _,
                word = out(reg) word,
                options(nostack, readonly),
            );
        }
        word
    }

    pub(super) unsafe fn write(at: *mut u8, word: u64) {
        // The first tag is to be in bits 59 to 56, and each further one after a rotation by four.
        // SAFETY: the instructions write the tags of the 256 bytes, which the caller vouches for, and nothing else.
        unsafe {
            asm!(
                ".arch_extension memtag",
                ".irp offset, 0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240",
                "stg {word}, [{at}, #\\offset]",
                "ror {word}, {word}, #4",
                ".endr",
                at = in(reg) at,
                word = inout(reg) word.rotate_left(ADDRESS_TAG_SHIFT) => _,
                options(nostack),
            );
        }
    }

    pub(super) unsafe fn fill(at: *mut u8, tag: u8) {
        // SAFETY: the instructions write the tags of the 256 bytes, which the caller vouches for, and nothing else.
        unsafe {
            asm!(
                ".arch_extension memtag",
                ".irp offset, 0, 32, 64, 96, 128, 160, 192, 224",
                "st2g {tag}, [{at}, #\\offset]",
                ".endr",
                at = in(reg) at,
                tag = in(reg) u64::from(tag) << ADDRESS_TAG_SHIFT,
                options(nostack),
            );
        }
    }
}

/// There are no tags on other architectures, where nothing maps memory with them.
#[cfg(not(target_arch = "aarch64"))]
mod instructions {
    pub(super) unsafe fn read(_: *const u8) -> u64 {
        0
    }

    pub(super) unsafe fn write(_: *mut u8, _: u64) {}

    pub(super) unsafe fn fill(_: *mut u8, _: u8) {}
}
