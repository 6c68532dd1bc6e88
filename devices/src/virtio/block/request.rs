//! What a driver asks of a disk (5.2.6).

use vm_memory::GuestMemory;

use crate::virtio::{Broken, Chain, Head, Stream};

/// Bytes of a sector, the unit of every number on the wire (5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of what comes before the data: type, a word that is reserved, and the sector.
const HEADER: usize = 16;

/// Bytes of one segment of DISCARD and WRITE_ZEROES: sector, number of sectors and flags.
const SEGMENT: usize = 16;

/// Most segments of one DISCARD or WRITE_ZEROES: a bound on the work that a request is.
pub(super) const MOST_SEGMENTS: u32 = 32;

/// Most sectors of one segment of DISCARD: 2 GiB. A file system gives up that much in moments.
pub(super) const DISCARD_SECTORS: u32 = 1 << 22;

/// Most sectors of one segment of WRITE_ZEROES: 32 MiB. Some file systems have to write them.
pub(super) const WRITE_ZEROES_SECTORS: u32 = 1 << 16;

/// Bytes of a serial number (5.2.6).
pub(super) const SERIAL: usize = 20;

/// Types of requests (5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// Flag of a segment of WRITE_ZEROES: the device may give its blocks up (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP).
const UNMAP: u32 = 1;

/// How a request ends (5.2.6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// It is done.
    Ok,
    /// It failed, or cannot be done to this disk.
    IoError,
    /// There is no such request.
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// A part of a disk, inside of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// Its first byte, a whole number of sectors.
    pub offset: u64,
    /// Its length in bytes, a whole number of sectors.
    pub length: u64,
    /// Its blocks may be given up.
    pub unmap: bool,
}

/// What is to be done to a disk. Every offset and length is inside of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Read from this byte on into guest memory.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// What is to be filled.
        into: Stream,
    },
    /// Write from guest memory from this byte on.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What is to be written.
        from: Stream,
        /// It must be durable before it is completed, as the driver does not know FLUSH (5.2.6.2).
        durable: bool,
    },
    /// Make durable what was written and completed before.
    Flush,
    /// Give the blocks of these parts up, which then read as anything.
    Discard(Vec<Extent>),
    /// Make these parts read zero.
    WriteZeroes(Vec<Extent>),
}

impl Operation {
    /// How many bytes of the disk it reads or writes. Zeros count that may not be a hole: some file systems have to
    /// write them.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { into, .. } => into.len(),
            Self::Write { from, .. } => from.len(),
            Self::WriteZeroes(parts) => {
                parts.iter().filter(|part| !part.unmap).map(|part| part.length).sum()
            }
            Self::Flush | Self::Discard(_) => 0,
        }
    }
}

/// A request that is under way: it is completed with [`Block::complete`](super::Block::complete).
#[derive(Debug)]
pub struct Request {
    pub(super) head: Head,
    pub(super) operation: Operation,
    pub(super) status: Stream,
    /// The driver of this time: a reset of the device forgets it.
    pub(super) generation: u64,
}

impl Request {
    /// What is to be done.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }
}

/// What the parser needs to know of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) discards: bool,
    /// Writes are to be durable, for want of FLUSH.
    pub(super) durable: bool,
}

/// A chain, understood.
pub(super) enum Parsed {
    /// Something is to be done to the disk.
    Work {
        operation: Operation,
        /// Where the status goes.
        status: Stream,
    },
    /// The serial number is wanted.
    Id { into: Stream, status: Stream },
    /// Nothing is to be done.
    Refused { why: Status, status: Stream },
}

/// Reads a request out of a chain.
///
/// # Errors
/// When there is no room for the status, so that the driver cannot be answered, or a buffer is not in guest memory.
pub(super) fn parse<M: GuestMemory>(
    chain: Chain,
    memory: &M,
    geometry: Geometry,
) -> Result<Parsed, Broken> {
    let (mut readable, mut writable) = chain.into_streams()?;
    let status = writable.split_off_back(1);
    if status.is_empty() {
        return Err(Broken::Form("a request to a disk has no room for its status (5.2.6)"));
    }
    let mut header = [0; HEADER];
    let found = readable.read(memory, &mut header)?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
    let asked = if found {
        operation(kind, sector, readable, &mut writable, memory, geometry)?
    } else {
        Err(Status::IoError)
    };
    Ok(match asked {
        Ok(Some(operation)) => Parsed::Work { operation, status },
        Ok(None) => Parsed::Id { into: writable, status },
        Err(why) => Parsed::Refused { why, status },
    })
}

/// `Ok(None)` is the wish for the serial number, for which `writable` is left.
fn operation<M: GuestMemory>(
    kind: u32,
    sector: u64,
    readable: Stream,
    writable: &mut Stream,
    memory: &M,
    geometry: Geometry,
) -> Result<Result<Option<Operation>, Status>, Broken> {
    let read_only = geometry.read_only;
    let asked = match kind {
        kind::IN => geometry
            .bytes(sector, writable.len())
            .map(|offset| Operation::Read { offset, into: std::mem::take(writable) }),
        kind::OUT if !read_only => geometry
            .bytes(sector, readable.len())
            .map(|offset| Operation::Write { offset, from: readable, durable: geometry.durable }),
        // A driver that did not acknowledge it must not send it; a disk that cannot be written has nothing to do.
        kind::FLUSH => Ok(Operation::Flush),
        kind::GET_ID => return Ok(Ok(None)),
        kind::DISCARD if !read_only && geometry.discards => {
            geometry.extents(readable, memory, DISCARD_SECTORS, 0)?.map(Operation::Discard)
        }
        kind::WRITE_ZEROES if !read_only && geometry.discards => {
            let zeroed = geometry.extents(readable, memory, WRITE_ZEROES_SECTORS, UNMAP)?;
            zeroed.map(Operation::WriteZeroes)
        }
        // 5.2.6.2: of a read-only device, these fail with an I/O error.
        kind::OUT | kind::DISCARD | kind::WRITE_ZEROES if read_only => Err(Status::IoError),
        _ => Err(Status::Unsupported),
    };
    Ok(asked.map(Some))
}

impl Geometry {
    /// The byte that a request of so many bytes begins at.
    fn bytes(self, sector: u64, length: u64) -> Result<u64, Status> {
        let inside = sector
            .checked_add(length.div_ceil(SECTOR))
            .is_some_and(|end| end <= self.sectors && length.is_multiple_of(SECTOR));
        // A disk has less than 2^63 bytes.
        if inside { Ok(sector * SECTOR) } else { Err(Status::IoError) }
    }

    /// The segments of a DISCARD or WRITE_ZEROES, each of at most `most` sectors and with no other flags.
    fn extents<M: GuestMemory>(
        self,
        mut segments: Stream,
        memory: &M,
        most: u32,
        flags: u32,
    ) -> Result<Result<Vec<Extent>, Status>, Broken> {
        let count = segments.len() / SEGMENT as u64;
        let whole = segments.len().is_multiple_of(SEGMENT as u64);
        if count == 0 || count > MOST_SEGMENTS.into() || !whole {
            return Ok(Err(Status::IoError));
        }
        let mut extents = Vec::new();
        let mut segment = [0; SEGMENT];
        while segments.read(memory, &mut segment)? && extents.len() < count as usize {
            let [sector @ .., a, b, c, d, e, f, g, h] = segment;
            let sectors = u32::from_le_bytes([a, b, c, d]);
            let given = u32::from_le_bytes([e, f, g, h]);
            // 5.2.6.2: flags that the device does not know are answered so.
            if given & !flags != 0 {
                return Ok(Err(Status::Unsupported));
            }
            if sectors > most {
                return Ok(Err(Status::IoError));
            }
            let length = u64::from(sectors) * SECTOR;
            match self.bytes(u64::from_le_bytes(sector), length) {
                Ok(offset) => extents.push(Extent { offset, length, unmap: given & UNMAP != 0 }),
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(Ok(extents))
    }
}
