//! The identity of a snapshot.

use std::fmt;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Tells one snapshot from all others: 128 random bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SnapshotId(pub(super) [u8; 16]);

impl SnapshotId {
    /// A new one.
    ///
    /// # Errors
    /// When the host has no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // So few bytes are never fewer, and no signal interrupts the call but before the host has any (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// That of these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("an id has 32 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_id_is_written_and_read() {
        let id = SnapshotId::random().unwrap();
        let text = serde_json::to_string(&id).unwrap();

        assert_eq!(text.len(), 34);
        assert_eq!(serde_json::from_str::<SnapshotId>(&text).unwrap(), id);
        assert_ne!(SnapshotId::random().unwrap(), id);
    }

    #[test]
    fn bytes_are_an_id_and_an_id_is_its_bytes() {
        let bytes = std::array::from_fn(|at| at as u8);
        let id = SnapshotId::from_bytes(bytes);

        assert_eq!(id.to_bytes(), bytes);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "1", "+123456789abcdef0123456789abcdef", &"0".repeat(33)] {
            assert_eq!(SnapshotId::parse(text), None, "{text}");
        }
    }
}
