//! The header of a packet (5.10.6, struct virtio_vsock_hdr), and what it can say.

/// The host, as a guest addresses it (5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// A stream of bytes, in both fields of the header that name a kind of socket (5.10.6).
pub(super) const STREAM: u16 = 1;

/// Bytes of a header.
pub(super) const HEADER: usize = 44;

/// Most bytes of data in a packet for the guest: Linux takes no longer ones
/// (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE, include/linux/virtio_vsock.h).
pub(super) const MOST_DATA: u32 = 64 << 10;

/// Flags of SHUTDOWN (5.10.6.5): what its sender does no more.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Shutdown(u32);

impl Shutdown {
    /// It takes no more data.
    pub(super) const RECEIVE: Self = Self(1);
    /// It sends no more data.
    pub(super) const SEND: Self = Self(2);
    /// Neither.
    pub(super) const BOTH: Self = Self(3);

    /// What a packet's flags say; others are left out.
    pub(super) fn of(flags: u32) -> Self {
        Self(flags & Self::BOTH.0)
    }

    pub(super) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds what `other` has.
    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn flags(self) -> u32 {
        self.0
    }
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    /// Asks for a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one.
    Reset,
    /// Says what the sender does no more.
    Shutdown,
    /// Carries data.
    Data,
    /// Tells how much room there is.
    CreditUpdate,
    /// Asks how much room there is.
    CreditRequest,
    /// None that the specification has.
    Unknown(u16),
}

impl Operation {
    const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }

    const fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(code) => code,
        }
    }
}

/// A header, field by field as they come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    /// Bytes of data behind it.
    pub(super) length: u32,
    /// The kind of socket.
    pub(super) kind: u16,
    pub(super) operation: Operation,
    pub(super) flags: u32,
    /// How much the sender can hold for the connection.
    pub(super) buffer: u32,
    /// How much of the connection's data it has passed on, modulo 2^32.
    pub(super) forwarded: u32,
}

/// The first `N` bytes of `rest`, which has as many: the offsets below add up to [`HEADER`].
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((bytes, after)) => {
            *rest = after;
            *bytes
        }
        None => [0; N],
    }
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let rest = &mut &bytes[..];
        Self {
            source_cid: u64::from_le_bytes(take(rest)),
            target_cid: u64::from_le_bytes(take(rest)),
            source_port: u32::from_le_bytes(take(rest)),
            target_port: u32::from_le_bytes(take(rest)),
            length: u32::from_le_bytes(take(rest)),
            kind: u16::from_le_bytes(take(rest)),
            operation: Operation::from_code(u16::from_le_bytes(take(rest))),
            flags: u32::from_le_bytes(take(rest)),
            buffer: u32::from_le_bytes(take(rest)),
            forwarded: u32::from_le_bytes(take(rest)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.target_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.target_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.code().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.forwarded.to_le_bytes());
        bytes
    }

    /// The answer that refuses what this packet wants (5.10.6.3: no reply to a RST).
    pub(super) fn reset(&self) -> Option<Self> {
        (self.operation != Operation::Reset).then_some(Self {
            source_cid: self.target_cid,
            target_cid: self.source_cid,
            source_port: self.target_port,
            target_port: self.source_port,
            length: 0,
            kind: self.kind,
            operation: Operation::Reset,
            flags: 0,
            buffer: 0,
            forwarded: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let header = Header {
            source_cid: 0x0102_0304_0506_0708,
            target_cid: 2,
            source_port: 0x1112_1314,
            target_port: 0x2122_2324,
            length: 0x3132_3334,
            kind: STREAM,
            operation: Operation::Data,
            flags: 0x4142_4344,
            buffer: 0x5152_5354,
            forwarded: 0x6162_6364,
        };
        let expected = [
            8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23,
            0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 1, 0, 5, 0, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53,
            0x52, 0x51, 0x64, 0x63, 0x62, 0x61,
        ];

        assert_eq!(header.to_bytes(), expected);
        assert_eq!(Header::from_bytes(&expected), header);
    }

    #[test]
    fn every_operation_keeps_its_code() {
        for code in 0..=u16::MAX {
            assert_eq!(Operation::from_code(code).code(), code);
        }
    }
}
