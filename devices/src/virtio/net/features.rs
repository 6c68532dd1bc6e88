//! The features of a network device (5.1.3).

use crate::virtio::Features;

/// Frames that the driver sends may have partial checksums.
pub const CSUM: Features = Features(1 << 0);
/// Frames that the driver gets may have partial checksums.
pub const GUEST_CSUM: Features = Features(1 << 1);
/// The device names the greatest packet.
pub const MTU: Features = Features(1 << 3);
/// The device has an address.
pub const MAC: Features = Features(1 << 5);
/// The driver takes TCP over IPv4 that is not cut into segments.
pub const GUEST_TSO4: Features = Features(1 << 7);
/// The driver takes TCP over IPv6 that is not cut into segments.
pub const GUEST_TSO6: Features = Features(1 << 8);
/// The driver takes UDP that is not cut into fragments.
pub const GUEST_UFO: Features = Features(1 << 10);
/// The device takes TCP over IPv4 that is not cut into segments.
pub const HOST_TSO4: Features = Features(1 << 11);
/// The device takes TCP over IPv6 that is not cut into segments.
pub const HOST_TSO6: Features = Features(1 << 12);
/// The device takes UDP that is not cut into fragments.
pub const HOST_UFO: Features = Features(1 << 14);
/// A frame may lie in several buffers.
pub const MRG_RXBUF: Features = Features(1 << 15);
/// The device says whether the link is up.
pub const STATUS: Features = Features(1 << 16);
/// The driver takes UDP over IPv4 that is not cut into segments.
pub const GUEST_USO4: Features = Features(1 << 54);
/// The driver takes UDP over IPv6 that is not cut into segments.
pub const GUEST_USO6: Features = Features(1 << 55);
/// The device takes UDP that is not cut into segments.
pub const HOST_USO: Features = Features(1 << 56);

/// What a port may offer. Explicit congestion notification is left out: few hosts have it on, and a driver
/// without it clears its bit.
pub(super) const OFFLOADS: Features = CSUM
    .with(GUEST_CSUM)
    .with(GUEST_TSO4)
    .with(GUEST_TSO6)
    .with(GUEST_UFO)
    .with(HOST_TSO4)
    .with(HOST_TSO6)
    .with(HOST_UFO)
    .with(GUEST_USO4)
    .with(GUEST_USO6)
    .with(HOST_USO);
