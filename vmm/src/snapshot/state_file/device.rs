//! The state of a device, which only the device itself reads.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::hypervisor::state::bytes;

/// The states of devices by name.
pub type DeviceStates = BTreeMap<String, DeviceState>;

/// The state of a device, as postcard.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeviceState(#[serde(with = "bytes")] Vec<u8>);

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
