//! The device models of Tessera.
//!
//! A model is a state machine behind a register window. It reaches the machine only through the
//! traits of [`ports`], which the VMM implements; it knows neither KVM nor the guest-physical map,
//! and every test runs on any machine with ports made of plain Rust.
//!
//! What a guest reads or writes is untrusted: no access, of any width at any offset, panics or
//! reaches beyond the model.
//!
//! | module | content |
//! |---|---|
//! | [`ports`] | what a model needs of the machine |
//! | [`bus`] | which model an address belongs to |
//! | [`serial`] | ns16550a serial port |
//! | [`rtc`] | PL031 real-time clock |
//! | [`gpio`] | PL061 GPIO controller with the power key |
//! | [`state`] | how a model is saved and restored |
//! | [`virtio`] | the virtio transport, and the devices behind it |

#![forbid(unsafe_code)]

pub mod bus;
pub mod gpio;
pub mod ports;
pub mod rtc;
pub mod serial;
pub mod state;
pub mod virtio;

#[cfg(test)]
mod testing;
