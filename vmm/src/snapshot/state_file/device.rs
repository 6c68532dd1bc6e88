//! The state of a device, which only the device itself reads.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The states of devices by name.
pub type DeviceStates = BTreeMap<String, DeviceState>;

/// The state of a device, as postcard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceState(Vec<u8>);

impl DeviceState {
    /// That which a device gives.
    ///
    /// # Errors
    /// When it has no such form.
    pub fn encode(state: &impl Serialize) -> Result<Self, postcard::Error> {
        postcard::to_allocvec(state).map(Self)
    }

    /// That which a device takes.
    ///
    /// # Errors
    /// When it is not of this form, or something is left of it.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, postcard::Error> {
        match postcard::take_from_bytes(&self.0)? {
            (state, []) => Ok(state),
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.0.len() as u64
    }
}

impl Serialize for DeviceState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for DeviceState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = DeviceState;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<DeviceState, E> {
                Ok(DeviceState(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_state_is_of_its_form_and_no_longer() {
        let state = DeviceState::encode(&(1u8, 300u32)).unwrap();

        assert_eq!(state.decode(), Ok((1u8, 300u32)));
        assert!(state.decode::<u8>().is_err());
        assert!(state.decode::<(u8, u32, u8)>().is_err());
    }
}
