//! EFI zboot images: kernels that unpack themselves.

/// Where the payload begins, in bytes: any place behind the header.
const OFFSET: usize = 0x1000;

/// An EFI zboot image around a payload (drivers/firmware/efi/libstub/zboot-header.S): a header, something
/// in the place of its decompressor, and the compressed Image.
pub fn zboot(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; OFFSET];
    bytes[0..2].copy_from_slice(b"MZ");
    bytes[4..8].copy_from_slice(b"zimg");
    bytes[8..12].copy_from_slice(&(OFFSET as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len() + 512, 0xa5);
    bytes
}
