//! Each form of a kernel file boots: the lab's own kernel, packed in each way.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use testing::guest::Plan;
use testing::lab::{Lab, artifact};
use testing::packed::{gzip, zboot};

fn make(folder: &Path) {
    let image = fs::read(artifact("Image")).unwrap();
    let gzip = gzip(&image);
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
