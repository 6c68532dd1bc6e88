//! Each form of a kernel file boots: the lab's own kernel, packed in each way.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use testing::guest::Plan;
use testing::lab::{Lab, artifact};

/// An EFI zboot image around a payload (drivers/firmware/efi/libstub/zboot-header.S): a header, something
/// in the place of its decompressor, and the compressed Image.
fn zboot(kind: &str, payload: &[u8]) -> Vec<u8> {
    const OFFSET: usize = 0x1000;
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

fn make(folder: &Path) {
    let image = fs::read(artifact("Image")).unwrap();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&image).unwrap();
    let gzip = encoder.finish().unwrap();
    fs::write(folder.join("Image.gz"), &gzip).unwrap();
    fs::write(folder.join("vmlinuz.gzip"), zboot("gzip", &gzip)).unwrap();
    let source = BufReader::new(File::open(artifact("Image")).unwrap());
    let zstd = compress_to_vec(source, CompressionLevel::Fastest);
    fs::write(folder.join("vmlinuz.zstd"), zboot("zstd22", &zstd)).unwrap();
}

#[test]
#[ignore = "long"]
fn gzip_and_zboot_kernels_boot() {
    Lab::new().prepare(make).run_with(|folder| {
        // Every other test boots the raw form.
        for form in ["Image.gz", "vmlinuz.gzip", "vmlinuz.zstd"] {
            let finished = Plan::workload("smp").kernel(&folder.join(form)).run();

            assert_eq!(finished.expect_power_off().report("done")["ok"], true, "{form}");
        }
    });
}
