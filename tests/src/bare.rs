//! Kernels of a few instructions.

/// Waits for an interrupt, for ever: wfi; b .-4.
pub const WAITS: [u32; 2] = [0xd503_207f, 0x17ff_ffff];

/// Powers off at once: mov w0, #0x8400_0008 (SYSTEM_OFF); hvc #0.
pub const POWERS_OFF: [u32; 3] = [0x5280_0100, 0x72b0_8000, 0xd400_0002];

/// Where code begins in an image, in bytes.
pub const CODE: usize = 64;

/// An arm64 Image that runs `code` and nothing else (Linux Documentation/arch/arm64/booting.rst).
pub fn image(code: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; CODE];
    // b .+64: over the header to the code.
    bytes[0..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes());
    let length = (CODE + 4 * code.len()) as u64;
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}
