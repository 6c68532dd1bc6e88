//! What broker and client say to each other: one message a packet, little-endian, of bounded size.
//!
//! A packet is a 32-bit kind and the fields of that kind in their order; a list or a text has its length
//! before it. A packet that is longer or shorter than its fields is malformed, so that no version of this
//! program takes another's message for something else.

use std::ops::RangeInclusive;

use arch::units::Bytes;
use thiserror::Error;

pub(crate) use super::limits::{BUFFER, MAX_ADOPT, MAX_PART, MAX_SLOTS, MAX_TEXT, VERSION};
use super::refusal::{Reason, Refusal};
use crate::tag_storage::pool::lease::MAX_NAME;
use crate::tag_storage::pool::{LeaseTerms, SlotIndex};
use crate::tag_storage::supply::SupplyName;
use crate::tag_storage::supply::lend_policy::LendPolicy;

/// Stands for no slot: a pool has less than 2^32.
const NONE: SlotIndex = SlotIndex(u32::MAX);

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// There are too few or too many.
    #[error("a message of kind {0} has another length")]
    Length(u32),
    /// There is no such kind.
    #[error("there is no message of kind {0}")]
    Kind(u32),
    /// A field has a value that it cannot have.
    #[error("a message of kind {0} has a field that makes no sense")]
    Field(u32),
    /// Not even a kind.
    #[error("a message without a kind")]
    Empty,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A VM that needs tag storage.
    Holder,
    /// A VM that may live in tag storage that is not needed for tags.
    Borrower,
}

/// The first message of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What it is.
    pub role: Role,
    /// It was a client of a broker before this one. Nothing proves it.
    pub returning: bool,
    /// What it wants. A borrower has a name only.
    pub terms: LeaseTerms,
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// It wants a lease, or to borrow. Answered by [`Reply::Opened`].
    Open(Open),
    /// It holds these slots of a broker that has ended, at most [`MAX_ADOPT`] a message. Answered by
    /// [`Reply::Adopted`].
    Adopt(Vec<SlotIndex>),
    /// It wants tag storage. Answered by as many [`Reply::Reserved`] as it takes, for all of the chunks or for the least.
    Reserve {
        /// For so many chunks.
        chunks: u32,
        /// For so many of them at least. Others are asked to give only for these.
        least: u32,
    },
    /// It frees these slots. Not answered: a VM does not wait for anybody when its guest gives back memory.
    Free(Vec<SlotIndex>),
    /// It wants to look. The only request of a connection that is not open. Answered by
    /// [`Reply::Part`]s.
    Report {
        /// [`VERSION`] of the sender.
        version: u32,
    },
}

/// What the broker answers; instead of any of them, [`Reply::Refused`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The connection has a lease. The descriptor that notices come from is with it.
    Opened(Terms),
    /// Slots, and how many more follow in further messages.
    Reserved {
        /// Slots that are still to come.
        left: u32,
        /// Some of the slots.
        slots: Vec<SlotIndex>,
    },
    /// For each slot that was to be adopted the one that the lease has now, if any.
    Adopted(Vec<Option<SlotIndex>>),
    /// A part of a report in JSON.
    Part {
        /// No further one follows.
        last: bool,
        /// The text.
        bytes: Vec<u8>,
    },
    /// No, and why. The reason decides whether the connection lasts.
    Refused(Refusal),
}

/// On what terms the broker serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Where its tag storage comes from.
    pub supply: SupplyName,
    /// What it does with tag storage that is not needed for tags.
    pub lend: LendPolicy,
    /// All of the pool.
    pub capacity: Bytes,
}

/// What the broker says unasked, on the descriptor of its own. A client that does not listen misses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// To a holder: other VMs lack tag storage, and this many chunks are this VM's part of it. Give back what
    /// the guest can do without. Each request stands beside those before it.
    RequestReclaim {
        /// Chunks that are asked of this VM.
        chunks: u32,
    },
    /// To a VM whose request was refused for lack: the same request may succeed now, so send it again. It says
    /// nothing about what this VM was asked to give.
    Retry,
    /// To a VM that was asked to give back: nothing more is needed of it. It says nothing about what this VM
    /// lacks.
    StopReclaim,
}

const OPEN: u32 = 1;
const ADOPT: u32 = 2;
const RESERVE: u32 = 3;
const FREE: u32 = 4;
const REPORT: u32 = 5;
const OPENED: u32 = 101;
const RESERVED: u32 = 102;
const ADOPTED: u32 = 103;
const PART: u32 = 104;
const REFUSED: u32 = 105;
const GIVE_BACK: u32 = 201;
const RETRY: u32 = 202;
const STOP_RECLAIM: u32 = 203;

impl Request {
    /// The message. Lists and texts beyond their bounds are cut; senders keep to them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Open(open) => {
                let role = match open.role {
                    Role::Holder => 1,
                    Role::Borrower => 2,
                };
                let terms = &open.terms;
                let message = Writer::new(OPEN).u32(open.version).u32(role);
                let message = message.u32(u32::from(open.returning));
                let message = message.u64(terms.min.get()).u64(terms.max.get());
                message.bytes(terms.name.as_bytes(), MAX_NAME)
            }
            Self::Adopt(slots) => Writer::new(ADOPT).slots(slots),
            Self::Reserve { chunks, least } => Writer::new(RESERVE).u32(*chunks).u32(*least),
            Self::Free(slots) => Writer::new(FREE).slots(slots),
            Self::Report { version } => Writer::new(REPORT).u32(*version),
        }
        .0
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(message)?;
        let request = match reader.kind {
            OPEN => {
                let version = reader.u32()?;
                // What follows is another matter in another version.
                if version != VERSION {
                    let terms =
                        LeaseTerms { name: String::new(), min: Bytes::ZERO, max: Bytes::ZERO };
                    let (role, returning) = (Role::Borrower, false);
                    return Ok(Self::Open(Open { version, role, returning, terms }));
                }
                let role = match reader.u32()? {
                    1 => Role::Holder,
                    2 => Role::Borrower,
                    _ => return Err(reader.nonsense()),
                };
                let returning = match reader.u32()? {
                    0 => false,
                    1 => true,
                    _ => return Err(reader.nonsense()),
                };
                let (min, max) = (Bytes::new(reader.u64()?), Bytes::new(reader.u64()?));
                let name = reader.bytes(MAX_NAME)?.to_vec();
                let name = String::from_utf8(name).map_err(|_| reader.nonsense())?;
                let terms = LeaseTerms { name, min, max };
                Self::Open(Open { version, role, returning, terms })
            }
            ADOPT => Self::Adopt(reader.slots(1..=MAX_ADOPT)?),
            RESERVE => Self::Reserve { chunks: reader.u32()?, least: reader.u32()? },
            FREE => Self::Free(reader.slots(1..=MAX_SLOTS)?),
            REPORT => {
                let version = reader.u32()?;
                if version != VERSION {
                    return Ok(Self::Report { version });
                }
                Self::Report { version }
            }
            kind => return Err(Malformed::Kind(kind)),
        };
        reader.end(request)
    }
}

impl Reply {
    /// The message. Lists and texts beyond their bounds are cut; senders keep to them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Opened(terms) => {
                let (kind, node) = match terms.supply {
                    SupplyName::Ledger => (0, 0),
                    SupplyName::Node(node) => (1, node),
                };
                let message = Writer::new(OPENED).u32(kind).u32(node);
                message.u32(terms.lend.code()).u64(terms.capacity.get())
            }
            Self::Reserved { left, slots } => Writer::new(RESERVED).u32(*left).slots(slots),
            Self::Adopted(slots) => {
                let slots: Vec<_> = slots.iter().map(|slot| slot.unwrap_or(NONE)).collect();
                Writer::new(ADOPTED).slots(&slots)
            }
            Self::Part { last, bytes } => {
                Writer::new(PART).u32(u32::from(*last)).bytes(bytes, MAX_PART)
            }
            Self::Refused(refusal) => {
                let [a, b, c] = refusal.figures();
                let message = Writer::new(REFUSED).u32(refusal.reason.code());
                message.u64(a).u64(b).u64(c).bytes(refusal.text().as_bytes(), MAX_TEXT)
            }
        }
        .0
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(message)?;
        let reply = match reader.kind {
            OPENED => {
                let supply = match (reader.u32()?, reader.u32()?) {
                    (0, 0) => SupplyName::Ledger,
                    (1, node) => SupplyName::Node(node),
                    _ => return Err(reader.nonsense()),
                };
                let lend = LendPolicy::of(reader.u32()?).ok_or_else(|| reader.nonsense())?;
                let capacity = Bytes::new(reader.u64()?);
                Self::Opened(Terms { supply, lend, capacity })
            }
            RESERVED => {
                let left = reader.u32()?;
                Self::Reserved { left, slots: reader.slots(1..=MAX_SLOTS)? }
            }
            ADOPTED => {
                let slots = reader.slots(1..=MAX_SLOTS)?;
                let some = |slot| Some(slot).filter(|slot| *slot != NONE);
                Self::Adopted(slots.into_iter().map(some).collect())
            }
            PART => {
                let last = reader.u32()? != 0;
                Self::Part { last, bytes: reader.bytes(MAX_PART)?.to_vec() }
            }
            REFUSED => {
                let reason = reader.u32()?;
                let figures = [reader.u64()?, reader.u64()?, reader.u64()?];
                let reason = Reason::of(reason, figures).ok_or_else(|| reader.nonsense())?;
                let text = String::from_utf8_lossy(reader.bytes(MAX_TEXT)?).into_owned();
                Self::Refused(Refusal::new(reason, text))
            }
            kind => return Err(Malformed::Kind(kind)),
        };
        reader.end(reply)
    }
}

impl Notice {
    /// The message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::RequestReclaim { chunks } => Writer::new(GIVE_BACK).u32(*chunks),
            Self::Retry => Writer::new(RETRY),
            Self::StopReclaim => Writer::new(STOP_RECLAIM),
        }
        .0
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(message)?;
        let notice = match reader.kind {
            GIVE_BACK => Self::RequestReclaim { chunks: reader.u32()? },
            RETRY => Self::Retry,
            STOP_RECLAIM => Self::StopReclaim,
            kind => return Err(Malformed::Kind(kind)),
        };
        reader.end(notice)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u32) -> Self {
        Self(kind.to_le_bytes().to_vec())
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(self, bytes: &[u8], most: usize) -> Self {
        let bytes = &bytes[..bytes.len().min(most)];
        let mut message = self.u32(bytes.len() as u32);
        message.0.extend_from_slice(bytes);
        message
    }

    fn slots(self, slots: &[SlotIndex]) -> Self {
        let slots = &slots[..slots.len().min(MAX_SLOTS)];
        let mut message = self.u32(slots.len() as u32);
        message.0.extend(slots.iter().flat_map(|slot| slot.0.to_le_bytes()));
        message
    }
}

struct Reader<'a> {
    kind: u32,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(message: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, rest) = message.split_first_chunk().ok_or(Malformed::Empty)?;
        Ok(Self { kind: u32::from_le_bytes(*kind), rest })
    }

    fn nonsense(&self) -> Malformed {
        Malformed::Field(self.kind)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(Malformed::Length(self.kind))?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        if length > most {
            return Err(self.nonsense());
        }
        let (bytes, rest) =
            self.rest.split_at_checked(length).ok_or(Malformed::Length(self.kind))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn slots(&mut self, count: RangeInclusive<usize>) -> Result<Vec<SlotIndex>, Malformed> {
        let length = self.u32()? as usize;
        if !count.contains(&length) {
            return Err(self.nonsense());
        }
        (0..length).map(|_| self.u32().map(SlotIndex)).collect()
    }

    fn end<T>(self, message: T) -> Result<T, Malformed> {
        match self.rest {
            [] => Ok(message),
            _ => Err(Malformed::Length(self.kind)),
        }
    }
}

#[cfg(test)]
mod tests;
