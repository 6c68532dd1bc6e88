//! A kernel file: opened, recognised, and read as the stream of bytes that is its Image.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use arch::image::{self, Compression, Form, HEAD_LEN, Header, MAX_ZSTD_WINDOW, zstd};
use arch::units::Bytes;
use flate2::read::GzDecoder;
use rustix::fs::OFlags;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use thiserror::Error;

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
    /// The Image comes out of a decompressor.
    Compressed(Box<dyn Read>, Compression),
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
        let mut head = Vec::new();
        file.try_clone()
            .and_then(|file| file.take(HEAD_LEN as u64).read_to_end(&mut head))
            .map_err(read_error)?;
        let (start, size, compression) = match Form::detect(&head).map_err(image_error)? {
            Form::Raw => {
                let header = Header::parse(&head).map_err(image_error)?;
                return Ok(Self { path: path.to_owned(), header, body: Body::Raw(file, length) });
            }
            Form::Gzip => (0, length.get(), Compression::Gzip),
            Form::Zboot(zboot) => {
                let payload = zboot.payload(length).map_err(image_error)?;
                (payload.start, payload.end - payload.start, zboot.compression)
            }
        };
        let stored = Stored { file, at: start, left: size };
        Self::compressed(path, stored, compression)
    }

    fn compressed(path: &Path, stored: Stored, compression: Compression) -> Result<Self, Error> {
        let damaged =
            |source| Error::Decompress { path: path.to_owned(), form: compression, source };
        let mut stream: Box<dyn Read> = match compression {
            Compression::Gzip => Box::new(GzDecoder::new(stored)),
            Compression::Zstd => {
                let mut header = [0; zstd::HEADER_LEN];
                let n = stored.file.read_at(&mut header, stored.at).map_err(damaged)?;
                if let Some(window) = zstd::window(&header[..n]).filter(|w| *w > MAX_ZSTD_WINDOW) {
                    let source = image::Error::ZstdWindow { window };
                    return Err(Error::Image { path: path.to_owned(), source });
                }
                let frame = StreamingDecoder::new(stored);
                Box::new(Zstd(frame.map_err(|error| damaged(io::Error::other(error)))?))
            }
        };
        let mut head = Vec::new();
        stream.by_ref().take(HEAD_LEN as u64).read_to_end(&mut head).map_err(damaged)?;
        let header = Header::parse(&head)
            .map_err(|source| Error::Image { path: path.to_owned(), source })?;
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

/// A zstd frame. Its checksum is compared here, as the decoder leaves that to its caller; a frame that
/// has none is taken as it is.
struct Zstd(StreamingDecoder<Stored, FrameDecoder>);

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        let decoder = &self.0.decoder;
        let stored = decoder.get_checksum_from_data();
        if n == 0 && stored.is_some() && stored != decoder.get_calculated_checksum() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
        }
        Ok(n)
    }
}

/// A part of a file, read at its own position: the offset of the file itself may be shared.
struct Stored {
    file: File,
    at: u64,
    left: u64,
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
