//! The state of a network device, saved and restored.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Mac, Net};
use crate::ports::NetPort;
use crate::state::{RestoreError, Stateful};

/// The state of a network device: what the driver has read of it. Frames under way are lost, as on any network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    pub(super) mac: Mac,
    pub(super) mtu: Option<u16>,
    pub(super) link_up: bool,
}

impl<P: NetPort> Stateful for Net<P> {
    type State = State;

    fn save(&self) -> State {
        State { mac: self.space.mac, mtu: self.space.mtu, link_up: self.space.link_up }
    }

    /// The driver keeps the address that it knows, whatever the configuration says. Whether the link is up is
    /// a fact of the new host: the owner of the port [sets](Net::set_link) it.
    fn restore(&mut self, state: State) -> Result<(), RestoreError> {
        let State { mac, mtu, link_up } = state;
        if mtu.is_some() != self.space.mtu.is_some() {
            let problem = "is there in one of them only";
            return Err(RestoreError::configuration("the MTU of a network interface", problem));
        }
        self.space.mac = mac;
        self.space.mtu = mtu;
        self.space.link_up = link_up;
        self.counters.link_up.store(link_up.into(), Ordering::Relaxed);
        Ok(())
    }
}
