//! The protocol's version, and the bounds of its messages.

/// The version of this protocol. Both sides must have the same.
pub(crate) const VERSION: u32 = 4;

/// Slots of one message: a page of them. A guest of 1 TiB has its slots in 512 messages, and a
/// connection costs the broker a buffer of this size.
pub(crate) const MAX_SLOTS: usize = 1024;

/// Slots of one request to adopt. Each may need an eviction, and the client waits for the answer of each
/// message: 8 MiB of tag storage at a time keep that wait short.
pub(crate) const MAX_ADOPT: usize = 128;

/// Bytes of a report in one message: as much as of slots.
pub(crate) const MAX_PART: usize = MAX_SLOTS * 4;

/// Bytes of a refusal's text: room for an error and its sources.
pub(crate) const MAX_TEXT: usize = 512;

/// The longest message: the fields beside a list need less than 32 bytes.
pub(crate) const MAX_MESSAGE: usize = MAX_PART + 32;

/// One byte more than the longest message, so that a longer one is noticed.
pub(crate) const BUFFER: usize = MAX_MESSAGE + 1;
