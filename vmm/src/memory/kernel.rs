//! A kernel file: opened, recognised, and read as the stream of bytes that is its Image.

use std::fs::File;
use std::io::{self, Chain, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arch::image::{self, Compression, Doubt, Form, HEAD_LEN, Header, zstd};
use arch::units::Bytes;
use rustix::fs::OFlags;
use thiserror::Error;

use super::decompress::{Decompressor, Gzip, Stored, Zstd, check_window};
use crate::error::say;

/// Why a file cannot be used as a kernel or an initrd.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The path names a directory, a device, a pipe.
    #[error("{} is not a regular file: name a file on disk", .0.display())]
    NotAFile(PathBuf),
    /// The file has no bytes.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
    /// The file cannot be read, or has changed while it was read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Compressed data that ends early or is damaged.
    #[error("{} is damaged or cut off: its {form} data cannot be decompressed", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// The compression.
        form: Compression,
        /// What the decompressor says.
        #[source]
        source: io::Error,
    },
    /// A compressed kernel that does not say how much memory it needs.
    #[error("{} is a compressed kernel older than Linux 3.17: decompress it and use the result", .0.display())]
    NoImageSize(PathBuf),
    /// The file is not an arm64 kernel.
    #[error("{} is not a kernel that can be booted", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: image::Error,
    },
}

/// Opens a regular file for reading and says how long it is. A pipe or device in its place could block,
/// or never end.
///
/// # Errors
/// When the file cannot be opened, is no regular file, or is empty.
pub(super) fn open(path: &Path) -> Result<(File, Bytes), Error> {
    let unreadable = |source| Error::Open { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(|errno| unreadable(errno.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile(path.to_owned()));
    }
    if metadata.len() == 0 {
        return Err(Error::Empty(path.to_owned()));
    }
    Ok((file, Bytes::new(metadata.len())))
}

/// A kernel whose header is known and whose bytes have not been read yet.
pub(super) struct Kernel {
    path: PathBuf,
    header: Header,
    body: Body,
}

enum Body {
    /// The file is the Image, this long.
    Raw(File, Bytes),
    /// The Image comes out of a decompressor: its first bytes, which are read, and the rest.
    Compressed(Box<Chain<Cursor<Vec<u8>>, Decompressor>>, Compression),
}

impl Kernel {
    /// Opens and recognises a kernel: a raw Image, Image.gz, or an EFI zboot image (gzip or zstd).
    ///
    /// # Errors
    /// When the file is none of these, or is damaged where it has been read.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let (file, length) = open(path)?;
        let read_error = |source| Error::Read { path: path.to_owned(), source };
        let image_error = |source| Error::Image { path: path.to_owned(), source };
        let mut head = Vec::with_capacity(HEAD_LEN);
        file.try_clone()
            .and_then(|file| file.take(HEAD_LEN as u64).read_to_end(&mut head))
            .map_err(read_error)?;
        let (place, compression) = match Form::detect(&head).map_err(image_error)? {
            Form::Raw => {
                let header = Header::parse(&head).map_err(image_error)?;
                return Ok(Self { path: path.to_owned(), header, body: Body::Raw(file, length) });
            }
            Form::Gzip => (0..length.get(), Compression::Gzip),
            Form::Zboot(zboot) => (zboot.payload(length).map_err(image_error)?, zboot.compression),
        };
        Self::compressed(path, file, place, compression)
    }

    fn compressed(
        path: &Path,
        file: File,
        place: Range<u64>,
        compression: Compression,
    ) -> Result<Self, Error> {
        let damaged =
            |source| Error::Decompress { path: path.to_owned(), form: compression, source };
        let image_error = |source| Error::Image { path: path.to_owned(), source };
        let mut stream = match compression {
            Compression::Gzip => Decompressor::Gzip(Box::new(Gzip::new(Stored::new(file, place)))),
            Compression::Zstd => {
                let stored = Stored::new(file, place);
                let mut header = [0; zstd::HEADER_LEN];
                check_window(stored.peek(&mut header).map_err(damaged)?).map_err(image_error)?;
                let frames = Zstd::new(stored).map_err(damaged)?;
                Decompressor::Zstd(Box::new(frames))
            }
        };
        let mut head = Vec::with_capacity(HEAD_LEN);
        stream.by_ref().take(HEAD_LEN as u64).read_to_end(&mut head).map_err(damaged)?;
        let header = Header::parse(&head).map_err(image_error)?;
        let whole = Box::new(Cursor::new(head).chain(stream));
        Ok(Self { path: path.to_owned(), header, body: Body::Compressed(whole, compression) })
    }

    /// The Image's length: the file's, or, while it is compressed, the most that its header allows.
    ///
    /// # Errors
    /// When a compressed kernel's header does not tell: such kernels are older than MTE by years.
    pub(super) fn length(&self) -> Result<Bytes, Error> {
        match &self.body {
            Body::Raw(_, length) => Ok(*length),
            Body::Compressed(..) => {
                self.header.image_size().ok_or_else(|| Error::NoImageSize(self.path.clone()))
            }
        }
    }

    /// What may be wrong with the Image unnoticed. Compressed data say themselves where they end.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        match self.body {
            Body::Raw(..) => self.header.doubt(),
            Body::Compressed(..) => None,
        }
    }

    /// The header of the Image.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Hands the Image to `sink`, piece by piece or as a file of known length.
    ///
    /// # Errors
    /// What the sink answers, or that the file cannot be read or decompressed.
    pub(super) fn read_into<E: From<Error>>(
        self,
        sink: &mut impl ImageSink<Error = E>,
    ) -> Result<(), E> {
        let Self { path, header, body } = self;
        match body {
            Body::Raw(mut file, length) => sink.file(&mut file, length, &path),
            Body::Compressed(mut stream, form) => {
                let mut total = 0u64;
                let mut piece = vec![0; 64 << 10];
                loop {
                    let n = match stream.read(&mut piece) {
                        Ok(0) => break,
                        Ok(n) => n,
                        Err(source) => return Err(Error::Decompress { path, form, source }.into()),
                    };
                    total += n as u64;
                    sink.bytes(&piece[..n])?;
                }
                if stream.get_ref().1.has_ignored() {
                    let path = path.display();
                    say(&format!(
                        "{path}: what follows its {form} data is not compressed, and ignored"
                    ));
                }
                match header.footprint(Bytes::new(total)) {
                    Ok(_) => Ok(()),
                    Err(source) => Err(Error::Image { path, source }.into()),
                }
            }
        }
    }
}

/// Where an Image goes.
pub(super) trait ImageSink {
    /// Why it cannot go there.
    type Error;
    /// Takes the next bytes.
    fn bytes(&mut self, piece: &[u8]) -> Result<(), Self::Error>;
    /// Takes the first `length` bytes of a file.
    fn file(&mut self, file: &mut File, length: Bytes, path: &Path) -> Result<(), Self::Error>;
}
