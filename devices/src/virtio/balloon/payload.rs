//! What a driver sends in a chain: the bytes of its readable buffers, one after the other.
//!
//! A device makes no assumption about how they are cut into buffers (2.7.4.1). Buffers for the device
//! to write are none of the driver's words, and the balloon has nothing to write: they are left
//! alone.

use vm_memory::{Bytes, GuestMemory};

use crate::virtio::{Broken, Buffer};

/// Bytes that the driver has sent, up to 128 times 4 GiB: read them with a limit.
pub(super) fn length(buffers: &[Buffer]) -> u64 {
    readable(buffers).map(|buffer| u64::from(buffer.length)).sum()
}

/// Reads no more than the first `limit` bytes.
///
/// # Errors
/// When a buffer is not in guest memory, the bytes beyond `limit` included.
pub(super) fn read<M: GuestMemory>(
    memory: &M,
    buffers: &[Buffer],
    limit: usize,
) -> Result<Vec<u8>, Broken> {
    let mut bytes = Vec::new();
    for buffer in readable(buffers) {
        let Buffer { address, length, .. } = buffer.checked(memory)?;
        let from = bytes.len();
        let wanted = usize::try_from(length).unwrap_or(limit).min(limit - from);
        bytes.resize(from + wanted, 0);
        memory
            .read_slice(&mut bytes[from..], address)
            .map_err(|_| Broken::Buffer { address, length })?;
    }
    Ok(bytes)
}

/// An empty buffer is nowhere, and says nothing.
fn readable(buffers: &[Buffer]) -> impl Iterator<Item = &Buffer> {
    buffers.iter().filter(|buffer| !buffer.writable && buffer.length > 0)
}
