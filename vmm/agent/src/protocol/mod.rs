//! What client and agent say to each other.
//!
//! A connection carries one operation. Both directions are sequences of frames: one byte of kind, four of
//! length (little-endian), the payload. The client begins with [`frame::Kind::Hello`], whose payload is the
//! JSON of [`message::Hello`]; the agent answers [`frame::Kind::Accepted`] or [`frame::Kind::Refused`]. What
//! follows depends on the operation:
//!
//! | Operation | Client | Agent |
//! |---|---|---|
//! | exec | `Input` as far as there is `Credit`, `InputEnd`; `Signal`, `Resize`, `OutputClosed`, `ErrorsClosed` | `Output`, `Errors`, `Credit`, `InputClosed`; last `Exit` |
//! | copy in | `Data`, `DataEnd` | `Done` or `Failed` |
//! | copy out | | `Data`, `Notice`, `DataEnd` or `Failed` |
//! | info, set the clock | | |
//!
//! The module knows no operating system: it reads and writes bytes.

pub mod frame;
pub mod limits;
pub mod message;
pub mod text;

/// What is wrong with what the other side sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a frame of this protocol.
    #[error("a frame of unknown kind {0}: is the other side a tessera agent of the same version?")]
    Kind(u8),
    /// A frame that is too long.
    #[error(
        "a frame of {0} bytes, more than the protocol allows: is the other side a tessera agent?"
    )]
    Length(u32),
    /// A frame that does not belong here.
    #[error("an unexpected frame ({0:?}): use a client and an agent of the same version")]
    Unexpected(frame::Kind),
    /// A payload that is not what its kind says.
    #[error("a frame {0:?} that is not understood: use a client and an agent of the same version")]
    Payload(frame::Kind, #[source] serde_json::Error),
    /// A payload of the wrong length.
    #[error("a frame {0:?} of the wrong length: use a client and an agent of the same version")]
    Size(frame::Kind),
    /// The connection ended in the middle.
    #[error("the connection ended before the operation did")]
    Ended,
    /// The connection failed.
    #[error("the connection failed")]
    Transport(#[source] std::io::Error),
}

#[cfg(test)]
mod tests;
