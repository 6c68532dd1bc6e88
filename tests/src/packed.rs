//! Kernels that are packed: gzip, and EFI zboot images, which unpack themselves.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Where the payload begins, in bytes: any place behind the header.
const OFFSET: usize = 0x1000;

/// A file packed by gzip.
///
/// # Panics
/// Never: it is packed in memory.
pub fn gzip(file: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(file).unwrap();
    encoder.finish().unwrap()
}

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
