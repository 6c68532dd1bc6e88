//! Kernel files: which form a file has, and what the header of an arm64 `Image` says.
//!
//! The bytes come from a file that anyone may have written, so nothing here trusts them: every
//! field is read with bounds, every number is checked before it is used, and each way to be wrong
//! has an [`enum@Error`] of its own. Nothing is decompressed here.
//!
//! # References
//! - Linux `Documentation/arch/arm64/booting.rst`, "4. Call the kernel image" (the header)
//! - Linux `drivers/firmware/efi/libstub/zboot-header.S` and `Makefile.zboot` (EFI zboot)
//! - Microsoft, *PE Format* (the section table behind the EFI stub)

use std::fmt;
use std::ops::Range;

use thiserror::Error;

use crate::units::Bytes;

mod foreign;
mod pe;

pub mod zstd;

pub use foreign::Foreign;
use pe::Extent;

/// How many bytes of a file [`Form::detect`] and [`Header::parse`] can make use of. With fewer they
/// still work, but notice less.
pub const HEAD_LEN: usize = 4096;

/// The largest `image_size` that is believed. Kernels with every option on stay below 300 MiB; a
/// header that asks for more than this is damaged or hostile, and the size decides how much of the
/// guest's memory is set aside.
pub const MAX_IMAGE_SIZE: Bytes = Bytes::gib(1);

/// The largest zstd window that is decompressed. Kernel builds use `zstd -22 --ultra`, whose window is
/// 128 MiB (scripts/Makefile.lib); the decoder holds a whole window in memory.
pub const MAX_ZSTD_WINDOW: Bytes = Bytes::mib(128);

/// `text_offset` of kernels before 3.17, whose header has no `image_size` (booting.rst).
const LEGACY_TEXT_OFFSET: Bytes = Bytes::kib(512);
/// Linux kept TEXT_OFFSET below 2 MiB (arch/arm64/kernel/head.S, "#error TEXT_OFFSET must be ...").
const TEXT_OFFSET_LIMIT: Bytes = Bytes::mib(2);
/// ... and a multiple of 4 KiB.
const TEXT_OFFSET_UNIT: Bytes = Bytes::kib(4);

const HEADER_LEN: usize = 64;
const MAGIC: &[u8] = b"ARM\x64";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZBOOT_MAGIC: &[u8] = b"zimg";

/// Why a file is not a kernel that can be booted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The file ends before its header does.
    #[error(
        "the kernel file has only {length}, too short for a header: it is empty or was cut off; \
         copy or download it again"
    )]
    TooShort {
        /// How many bytes there were.
        length: Bytes,
    },
    /// The file is of another known kind.
    #[error("the kernel file is {0}, not an arm64 Image: {advice}", advice = .0.advice())]
    Foreign(Foreign),
    /// Nothing identifies the file.
    #[error(
        "the kernel file is no arm64 Image (the magic number \"ARM\\x64\" at offset 56 is missing) \
         and no other known form: use arch/arm64/boot/Image, Image.gz or vmlinuz.efi of an arm64 \
         build"
    )]
    NotAnImage,
    /// The file is compressed where an uncompressed kernel was expected.
    #[error("the kernel is compressed with {compression}{layer}: decompress it and use the result")]
    Compressed {
        /// The name of the compression.
        compression: &'static str,
        /// Where, as the end of a phrase; empty for the file itself.
        layer: &'static str,
    },
    /// An EFI zboot image with a payload in an unsupported compression.
    #[error(
        "the EFI zboot kernel is compressed with {compression:?}: only gzip and zstd are \
         supported; rebuild it with CONFIG_KERNEL_GZIP or CONFIG_KERNEL_ZSTD, or use its Image"
    )]
    ZbootCompression {
        /// The compression type as the header states it, control characters escaped.
        compression: String,
    },
    /// The payload of a zboot image is not where the header says.
    #[error(
        "the EFI zboot header places {size} of payload at offset {offset}, but the file has \
         {file}: it was cut off or is damaged; copy or download it again"
    )]
    ZbootPayload {
        /// Offset of the payload in the file, in bytes.
        offset: u32,
        /// Length of the payload.
        size: Bytes,
        /// Length of the file.
        file: Bytes,
    },
    /// A zstd frame that takes more memory to read than any kernel's does.
    #[error(
        "the kernel's zstd data needs {window} to decompress, more than the {MAX_ZSTD_WINDOW} that \
         kernel builds use: the file is damaged or made to harm; build it again"
    )]
    ZstdWindow {
        /// What the frame asks for.
        window: Bytes,
    },
    /// The kernel runs big-endian.
    #[error(
        "the kernel is big-endian, which is not supported: build it without CONFIG_CPU_BIG_ENDIAN"
    )]
    BigEndian,
    /// `text_offset` is not one that Linux ever had.
    #[error(
        "the kernel header asks for a text offset of {offset:#x}: a multiple of 4 KiB below 2 MiB \
         is expected, so the file is damaged; copy or build it again"
    )]
    TextOffset {
        /// The offset in bytes.
        offset: u64,
    },
    /// `image_size` is larger than [`MAX_IMAGE_SIZE`].
    #[error(
        "the kernel header claims {size} of memory, more than the {MAX_IMAGE_SIZE} any kernel \
         needs: the file is damaged; copy or build it again"
    )]
    ImageSizeTooLarge {
        /// What the header claims.
        size: Bytes,
    },
    /// `image_size` does not even cover the file.
    #[error(
        "the kernel header claims {size} of memory, but the kernel itself has {file}: the file is \
         damaged or something was appended to it; copy or build it again"
    )]
    ImageSizeTooSmall {
        /// What the header claims.
        size: Bytes,
        /// Length of the (decompressed) kernel.
        file: Bytes,
    },
    /// The file ends before its PE headers, or before the last section that they list.
    #[error(
        "the kernel has {file}, but by its section table it has {expected} or more: it was cut off; \
         copy or download it again"
    )]
    Truncated {
        /// Where headers and sections end, as far as it is known.
        expected: Bytes,
        /// Length of the (decompressed) kernel.
        file: Bytes,
    },
}

/// The form of a kernel file, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Not compressed: [`Header::parse`] says whether it is a kernel at all.
    Raw,
    /// One gzip stream (`Image.gz`).
    Gzip,
    /// An EFI zboot image (`vmlinuz.efi`), whose payload is a compressed `Image`.
    Zboot(Zboot),
}

impl Form {
    /// Tells the form from the first bytes of a file, ideally [`HEAD_LEN`] of them.
    ///
    /// # Errors
    /// [`Error::TooShort`] for a file without room for any header, [`Error::Compressed`] and
    /// [`Error::ZbootCompression`] for compressions that are not supported, [`Error::Foreign`] for
    /// a zboot image of another architecture.
    pub fn detect(first_bytes: &[u8]) -> Result<Form, Error> {
        if first_bytes.starts_with(GZIP_MAGIC) {
            return Ok(Form::Gzip);
        }
        if let Some(compression) = foreign::compression(first_bytes) {
            return Err(Error::Compressed { compression, layer: "" });
        }
        if is_zboot(first_bytes) {
            return Zboot::parse(first_bytes).map(Form::Zboot);
        }
        if first_bytes.len() < HEADER_LEN {
            return Err(too_short(first_bytes));
        }
        Ok(Form::Raw)
    }
}

/// How the payload of an EFI zboot image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

/// The header of an EFI zboot image.
///
/// The payload is a compressed `Image`, padded with zeros to its `image_size` (`Makefile.zboot`,
/// `copy_and_pad`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zboot {
    /// Offset of the payload in the file, in bytes, as the header states it.
    pub payload_offset: u32,
    /// Length of the payload in bytes, as the header states it.
    pub payload_size: u32,
    /// How the payload is compressed.
    pub compression: Compression,
}

impl Zboot {
    fn parse(bytes: &[u8]) -> Result<Zboot, Error> {
        let (Some(payload_offset), Some(payload_size), Some(name)) =
            (u32_at(bytes, 8), u32_at(bytes, 12), bytes.get(24..56))
        else {
            return Err(too_short(bytes));
        };
        if let Some(machine) = pe::machine(bytes)
            && machine != pe::MACHINE_ARM64
        {
            return Err(Error::Foreign(Foreign::from_pe_machine(machine)));
        }
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let compression = match name {
            b"gzip" => Compression::Gzip,
            // "zstd22" until the name lost its compression level: both are in the field.
            b"zstd" | b"zstd22" => Compression::Zstd,
            other => {
                return Err(Error::ZbootCompression {
                    compression: other.escape_ascii().to_string(),
                });
            }
        };
        Ok(Zboot { payload_offset, payload_size, compression })
    }

    /// Where the payload lies in a file of `file_len`.
    ///
    /// # Errors
    /// [`Error::ZbootPayload`] when it is empty, overlaps the header or passes the end of the file.
    pub fn payload(&self, file_len: Bytes) -> Result<Range<u64>, Error> {
        let start = u64::from(self.payload_offset);
        let end = start + u64::from(self.payload_size);
        if start < HEADER_LEN as u64 || start == end || end > file_len.get() {
            return Err(Error::ZbootPayload {
                offset: self.payload_offset,
                size: Bytes::new(self.payload_size.into()),
                file: file_len,
            });
        }
        Ok(start..end)
    }
}

/// The page size that a kernel was built for (`flags`, bits 1 and 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// The header does not say.
    Unspecified,
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl PageSize {
    /// The size, where the header says it.
    pub fn bytes(self) -> Option<Bytes> {
        match self {
            PageSize::Unspecified => None,
            PageSize::Size4K => Some(Bytes::kib(4)),
            PageSize::Size16K => Some(Bytes::kib(16)),
            PageSize::Size64K => Some(Bytes::kib(64)),
        }
    }
}

/// What a header leaves open about its file, although it is one that can be booted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Doubt {
    /// There is no section table, as in kernels without an EFI stub: only the kernel could tell where its
    /// data end and its BSS begins.
    #[error(
        "the kernel has no section table that says how long the file is, so it is not known whether \
         it is whole: if it does not start, copy it again"
    )]
    Length,
}

/// The header of an arm64 `Image`, checked.
///
/// The entry point is the first byte of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    text_offset: Bytes,
    image_size: Option<Bytes>,
    page_size: PageSize,
    extent: Extent,
}

impl Header {
    /// Reads the header from the first bytes of an uncompressed kernel, ideally [`HEAD_LEN`].
    ///
    /// # Errors
    /// One [`enum@Error`] for each way not to be a kernel that can be booted.
    pub fn parse(bytes: &[u8]) -> Result<Header, Error> {
        if let Some(error) = refuse(bytes) {
            return Err(error);
        }
        let (Some(offset), Some(size), Some(flags)) =
            (u64_at(bytes, 8), u64_at(bytes, 16), u64_at(bytes, 24))
        else {
            return Err(too_short(bytes));
        };
        let image_size = (size != 0).then_some(Bytes::new(size));
        // Without image_size, text_offset is in an unknown byte order and flags do not exist.
        let (text_offset, flags) = match image_size {
            Some(_) => (Bytes::new(offset), flags),
            None => (LEGACY_TEXT_OFFSET, 0),
        };
        if flags & 1 != 0 {
            return Err(Error::BigEndian);
        }
        if text_offset >= TEXT_OFFSET_LIMIT || !text_offset.is_multiple_of(TEXT_OFFSET_UNIT) {
            return Err(Error::TextOffset { offset });
        }
        if image_size.is_some_and(|size| size > MAX_IMAGE_SIZE) {
            return Err(Error::ImageSizeTooLarge { size: Bytes::new(size) });
        }
        Ok(Header {
            text_offset,
            image_size,
            page_size: page_size(flags),
            extent: pe::extent(bytes),
        })
    }

    /// Distance of the image from a 2 MiB boundary: a multiple of 4 KiB below 2 MiB.
    pub fn text_offset(&self) -> Bytes {
        self.text_offset
    }

    /// The memory that the kernel needs from its first byte on, BSS included: 1 B to
    /// [`MAX_IMAGE_SIZE`]. `None` for kernels before 3.17, whose need is unknown.
    pub fn image_size(&self) -> Option<Bytes> {
        self.image_size
    }

    /// The page size that the kernel was built for.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// What the header leaves open. With fewer than [`HEAD_LEN`] bytes of a longer file it may be more.
    pub fn doubt(&self) -> Option<Doubt> {
        match self.extent {
            Extent::Sections(_) => None,
            Extent::Unknown | Extent::Headers(_) => Some(Doubt::Length),
        }
    }

    /// Compares the header with the length of the (decompressed) kernel, and returns the memory to
    /// set aside: `image_size`, or the length for kernels before 3.17.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::ImageSizeTooSmall`] when they contradict each other,
    /// [`Error::ImageSizeTooLarge`] for a kernel without `image_size` longer than
    /// [`MAX_IMAGE_SIZE`].
    pub fn footprint(&self, file_len: Bytes) -> Result<Bytes, Error> {
        if file_len < Bytes::new(HEADER_LEN as u64) {
            return Err(Error::TooShort { length: file_len });
        }
        if let Extent::Headers(end) | Extent::Sections(end) = self.extent
            && end > file_len.get()
        {
            return Err(Error::Truncated { expected: Bytes::new(end), file: file_len });
        }
        match self.image_size {
            Some(size) if size < file_len => Err(Error::ImageSizeTooSmall { size, file: file_len }),
            Some(size) => Ok(size),
            None if file_len > MAX_IMAGE_SIZE => Err(Error::ImageSizeTooLarge { size: file_len }),
            None => Ok(file_len),
        }
    }
}

/// The error for bytes that are no arm64 `Image`, from what they look like instead.
fn refuse(bytes: &[u8]) -> Option<Error> {
    if bytes.get(56..60) == Some(MAGIC) {
        return (bytes.len() < HEADER_LEN).then(|| too_short(bytes));
    }
    if bytes.starts_with(GZIP_MAGIC) {
        return Some(Error::Compressed { compression: "gzip", layer: " once more inside" });
    }
    if let Some(compression) = foreign::compression(bytes) {
        return Some(Error::Compressed { compression, layer: " inside" });
    }
    if is_zboot(bytes) {
        return Some(Error::Compressed { compression: "EFI zboot", layer: " inside" });
    }
    if let Some(foreign) = Foreign::detect(bytes) {
        return Some(Error::Foreign(foreign));
    }
    Some(if bytes.len() < HEADER_LEN { too_short(bytes) } else { Error::NotAnImage })
}

fn is_zboot(bytes: &[u8]) -> bool {
    bytes.starts_with(pe::MZ) && bytes.get(4..8) == Some(ZBOOT_MAGIC)
}

fn page_size(flags: u64) -> PageSize {
    match (flags >> 1) & 3 {
        1 => PageSize::Size4K,
        2 => PageSize::Size16K,
        3 => PageSize::Size64K,
        _ => PageSize::Unspecified,
    }
}

fn too_short(bytes: &[u8]) -> Error {
    Error::TooShort { length: Bytes::new(bytes.len() as u64) }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests;
