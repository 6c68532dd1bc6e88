//! The host's randomness.

use std::io;

use devices::ports::Entropy;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes` from the host's random number generator. Early in the host's own boot it waits until
/// that is ready.
///
/// # Errors
/// When the host has none.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match getrandom(&mut *rest, GetRandomFlags::empty()) {
            Ok(n) => rest = &mut rest[n..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The host's random number generator, for a device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        Ok(fill(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_filled() {
        let mut none: [u8; 0] = [];
        assert!(HostEntropy.fill(&mut none).is_ok());
        let mut bytes = vec![0; 100_000];
        assert!(HostEntropy.fill(&mut bytes).is_ok());
        // 64 zero bytes in a row do not happen by chance.
        assert!(bytes.chunks_exact(64).all(|piece| piece.iter().any(|byte| *byte != 0)));
    }
}
