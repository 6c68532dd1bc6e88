//! What the agent in a guest and its clients share: the protocol, and how files and trees travel.

pub mod protocol;
pub mod transfer;
