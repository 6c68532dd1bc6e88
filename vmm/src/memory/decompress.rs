//! Compressed data as one stream of bytes: all of its gzip members, or all of its zstd frames.
//!
//! # References
//! RFC 1952, 2.2 "File format"; RFC 8878, 3.1 "Frames"; gzip(1) and zstd(1) on concatenated files

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use arch::image::{self, MAX_ZSTD_WINDOW, zstd};
use flate2::bufread::GzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The magic number of a skippable frame; the low four bits of the first byte are the user's.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// Magic number and length of a skippable frame.
const SKIPPABLE_HEADER: usize = 8;

/// A part of a file, read at its own position: the offset of the file itself may be shared.
pub(super) struct Stored {
    file: File,
    at: u64,
    left: u64,
}

impl Stored {
    /// These bytes of a file.
    pub(super) fn new(file: File, place: Range<u64>) -> Self {
        Self { file, at: place.start, left: place.end.saturating_sub(place.start) }
    }

    /// The next bytes, which stay unread; fewer than asked for only at the end.
    pub(super) fn peek<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut done = 0;
        while done < want {
            match self.file.read_at(&mut buffer[done..want], self.at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&buffer[..done])
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.at += length;
        Ok(())
    }
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// What comes after a member or a frame.
enum Next {
    /// Another one.
    Part,
    /// The end, or padding with zeroes, as on tapes.
    End,
    /// Something else, which gzip(1) ignores, too.
    Other,
}

/// Tells what `rest` begins with, where `rest` has at least as many bytes as `magic` unless the file ends.
///
/// # Errors
/// When it is the magic number of a part, cut off.
fn next(rest: &[u8], magic: &[u8]) -> io::Result<Next> {
    match rest {
        [] | [0, ..] => Ok(Next::End),
        _ if rest.starts_with(magic) => Ok(Next::Part),
        _ if magic.starts_with(rest) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(Next::Other),
    }
}

/// A decompressor.
pub(super) enum Decompressor {
    Gzip(Box<Gzip>),
    Zstd(Box<Zstd>),
}

impl Decompressor {
    /// Whether something behind the compressed data has been ignored that is no padding.
    pub(super) fn has_ignored(&self) -> bool {
        match self {
            Self::Gzip(gzip) => gzip.ignored,
            Self::Zstd(zstd) => zstd.ignored,
        }
    }
}

impl Read for Decompressor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(gzip) => gzip.read(buffer),
            Self::Zstd(zstd) => zstd.read(buffer),
        }
    }
}

/// Gzip members, one after another.
pub(super) struct Gzip {
    member: Option<GzDecoder<BufReader<Stored>>>,
    ignored: bool,
}

impl Gzip {
    pub(super) fn new(stored: Stored) -> Self {
        Self { member: Some(GzDecoder::new(BufReader::new(stored))), ignored: false }
    }

    /// The member that begins here, if one does.
    fn following(
        &mut self,
        mut rest: BufReader<Stored>,
    ) -> io::Result<Option<GzDecoder<BufReader<Stored>>>> {
        let unread = rest.buffer().len();
        if unread < GZIP_MAGIC.len() {
            // The magic number may be in the buffer in part: read it anew.
            let mut stored = rest.into_inner();
            stored.at -= unread as u64;
            stored.left += unread as u64;
            rest = BufReader::new(stored);
            rest.fill_buf()?;
        }
        match next(rest.buffer(), &GZIP_MAGIC)? {
            Next::Part => Ok(Some(GzDecoder::new(rest))),
            other => {
                self.ignored = matches!(other, Next::Other);
                Ok(None)
            }
        }
    }
}

impl Read for Gzip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            if let Some(member) = self.member.take() {
                self.member = self.following(member.into_inner())?;
            }
        }
        Ok(0)
    }
}

/// Zstd frames, one after another. Their checksums are compared here, as the decoder leaves that to its
/// caller; a frame that has none is taken as it is.
pub(super) struct Zstd {
    frame: Option<StreamingDecoder<Stored, FrameDecoder>>,
    ignored: bool,
}

impl Zstd {
    /// The frames that are stored here.
    ///
    /// # Errors
    /// When the first frame cannot be read.
    pub(super) fn new(stored: Stored) -> io::Result<Self> {
        let mut frames = Self { frame: None, ignored: false };
        frames.frame = frames.following(stored, FrameDecoder::new())?;
        if frames.ignored || frames.frame.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no zstd frame"));
        }
        Ok(frames)
    }

    /// The next frame with content, if there is one.
    fn following(
        &mut self,
        mut stored: Stored,
        decoder: FrameDecoder,
    ) -> io::Result<Option<StreamingDecoder<Stored, FrameDecoder>>> {
        let mut header = [0; zstd::HEADER_LEN];
        loop {
            let header = stored.peek(&mut header)?;
            if let Some(length) = skippable(header)? {
                stored.skip(length)?;
                continue;
            }
            return match next(header, &ZSTD_MAGIC)? {
                Next::Part => {
                    check_window(header).map_err(io::Error::other)?;
                    let frame = StreamingDecoder::new_with_decoder(stored, decoder);
                    frame.map(Some).map_err(io::Error::other)
                }
                other => {
                    self.ignored = matches!(other, Next::Other);
                    Ok(None)
                }
            };
        }
    }
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(frame) = &mut self.frame {
            let n = frame.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            let stored = frame.decoder.get_checksum_from_data();
            if stored.is_some() && stored != frame.decoder.get_calculated_checksum() {
                let error = "the checksum does not match";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if let Some(frame) = self.frame.take() {
                let (stored, decoder) = frame.into_parts();
                self.frame = self.following(stored, decoder)?;
            }
        }
        Ok(0)
    }
}

/// The whole length of a skippable frame that begins with these bytes; `None` if it is none.
fn skippable(header: &[u8]) -> io::Result<Option<u64>> {
    let mut magic = SKIPPABLE_MAGIC;
    magic[0] |= header.first().map_or(0, |byte| byte & 0xf);
    match next(header, &magic)? {
        Next::Part => {}
        Next::End | Next::Other => return Ok(None),
    }
    let Some(length) = header[magic.len()..].first_chunk() else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    Ok(Some(SKIPPABLE_HEADER as u64 + u64::from(u32::from_le_bytes(*length))))
}

/// Refuses a frame that takes more memory to decompress than a kernel's compressor uses.
pub(super) fn check_window(header: &[u8]) -> Result<(), image::Error> {
    match zstd::window(header).filter(|window| *window > MAX_ZSTD_WINDOW) {
        Some(window) => Err(image::Error::ZstdWindow { window }),
        None => Ok(()),
    }
}
