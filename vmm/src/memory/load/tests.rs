#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};

use arch::image;
use arch::layout::RAM_BASE;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;
use crate::memory::Attributes;

const FDT: Bytes = Bytes::kib(8);
const MEMORY: Bytes = Bytes::mib(64);

/// An Image of `length` bytes that claims `image_size` bytes of memory.
pub(in crate::memory) fn image(length: usize, image_size: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..length).map(|at| (at * 7 + at / 256) as u8).collect();
    image[..64].fill(0);
    image[16..24].copy_from_slice(&image_size.to_le_bytes());
    image[24..32].copy_from_slice(&0xau64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// An EFI zboot image around a payload.
fn zboot(payload: &[u8], compression: &str) -> Vec<u8> {
    let mut file = vec![0; 512];
    file[..2].copy_from_slice(b"MZ");
    file[4..8].copy_from_slice(b"zimg");
    file[8..12].copy_from_slice(&512u32.to_le_bytes());
    file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[24..24 + compression.len()].copy_from_slice(compression.as_bytes());
    file.extend(payload);
    file.extend(b"what the EFI linker puts behind the payload");
    file
}

/// Every form that a kernel's file may have.
pub(in crate::memory) fn forms(image: &[u8]) -> [(&'static str, Vec<u8>); 5] {
    [
        ("raw", image.to_vec()),
        ("gzip", gzip(image)),
        ("zboot with gzip", zboot(&gzip(image), "gzip")),
        ("zboot with zstd", zboot(&zstd(image), "zstd")),
        ("zboot with zstd22", zboot(&zstd(image), "zstd22")),
    ]
}

struct Bench {
    directory: tempfile::TempDir,
    ram: GuestRam,
}

impl Bench {
    fn new() -> Self {
        let ram = GuestRam::new(MEMORY, Attributes::default()).unwrap();
        Self { directory: tempfile::tempdir().unwrap(), ram }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Loads a kernel with these bytes alone.
    fn kernel(&self, bytes: &[u8]) -> Result<Loaded, Error> {
        load(&self.ram, &self.file("Image", bytes), None, FDT)
    }

    /// Loads a good kernel with an initrd at this path.
    fn initrd(&self, path: &Path) -> Result<Loaded, Error> {
        let kernel = self.file("Image", &image(5000, 0x10_0000));
        load(&self.ram, &kernel, Some(path), FDT)
    }

    fn memory(&self, at: GuestAddress, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, at).unwrap();
        bytes
    }
}

fn image_error(result: Result<Loaded, Error>) -> image::Error {
    match result.expect_err("it is no kernel") {
        Error::File(kernel::Error::Image { source, .. }) => source,
        Error::Place { source: layout::Error::Kernel(source), .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_form_of_a_kernel_lands_byte_for_byte_at_its_place() {
    for length in [4096, 100_000, 3_000_001] {
        let image = image(length, 0x40_0000);
        for (form, file) in forms(&image) {
            let bench = Bench::new();
            let loaded = bench.kernel(&file).unwrap();
            assert_eq!(loaded.entry, RAM_BASE, "{form}");
            assert_eq!(loaded.kernel, MemoryRange::new(RAM_BASE, Bytes::mib(4)), "{form}");
            assert!(bench.memory(RAM_BASE, length) == image, "{form}: other bytes");
            let behind = bench.memory(GuestAddress(RAM_BASE.0 + length as u64), 0x40_0000 - length);
            assert!(behind.iter().all(|byte| *byte == 0), "{form}: bytes in the BSS");
        }
    }
}

/// A frame that decoders pass over (RFC 8878, 3.1.2).
fn skippable(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    [&0x184d_2a53u32.to_le_bytes(), length.as_slice(), content].concat()
}

/// The forms whose compressed data can have several parts, of these pieces of one kernel.
fn in_parts(pieces: &[&[u8]]) -> [(&'static str, Vec<u8>); 3] {
    let gzip = pieces.iter().map(|piece| gzip(piece)).collect::<Vec<_>>().concat();
    let zstd = pieces.iter().map(|piece| zstd(piece)).collect::<Vec<_>>().concat();
    [
        ("gzip", gzip.clone()),
        ("zboot with gzip", zboot(&gzip, "gzip")),
        ("zboot with zstd", zboot(&zstd, "zstd")),
    ]
}

#[test]
fn all_parts_of_compressed_data_are_read() {
    let image = image(300_000, 0x40_0000);
    for cuts in [&[150_000][..], &[10, 40], &[0, 0, 299_999], &[100_000, 100_000, 200_000]] {
        let mut pieces = Vec::new();
        let mut rest = &image[..];
        for (number, cut) in cuts.iter().enumerate() {
            let before = number.checked_sub(1).map_or(0, |before| cuts[before]);
            let (piece, behind) = rest.split_at(cut - before);
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        for (form, file) in in_parts(&pieces) {
            let bench = Bench::new();
            bench.kernel(&file).unwrap();
            assert!(bench.memory(RAM_BASE, image.len()) == image, "{form}, cut at {cuts:?}");
        }
    }
}

#[test]
fn frames_for_others_are_passed_over() {
    let image = image(5000, 0x10_0000);
    let (head, tail) = image.split_at(2000);
    let frames = [skippable(b"?"), zstd(head), skippable(b""), skippable(&[7; 99]), zstd(tail)];
    let bench = Bench::new();

    bench.kernel(&zboot(&[frames.concat(), skippable(b"end")].concat(), "zstd")).unwrap();

    assert!(bench.memory(RAM_BASE, image.len()) == image);
}

#[test]
fn what_follows_compressed_data_and_is_none_is_ignored() {
    let image = image(5000, 0x10_0000);
    for rest in [&b"\0"[..], &[0; 70_000], b"garbage", b"\x1f\x8c", b"\x28\xb5\x2f\xfc"] {
        let [gzip, zstd] = [gzip(&image), zstd(&image)].map(|data| [&data, rest].concat());
        for (form, file) in [("gzip", gzip), ("zboot with zstd", zboot(&zstd, "zstd"))] {
            let bench = Bench::new();
            bench.kernel(&file).unwrap();
            assert!(bench.memory(RAM_BASE, image.len()) == image, "{form}: {:?}", &rest[..1]);
        }
    }
}

#[test]
fn a_later_part_that_is_damaged_or_cut_off_is_refused() {
    let image = image(5000, 0x10_0000);
    let wide = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3][..], &[0; 20]].concat();
    for (form, first, second) in [
        ("gzip", gzip(&image), gzip(&[0; 500])),
        ("zstd", zstd(&image), zstd(&[0; 500])),
        ("zstd", zstd(&image), skippable(&[0; 20])),
        ("zstd", zstd(&image), wide),
    ] {
        for length in 1..second.len() {
            let data = [&first, &second[..length]].concat();
            let file = if form == "gzip" { data } else { zboot(&data, "zstd") };
            let error = Bench::new().kernel(&file).expect_err(form);
            assert_eq!(error.status(), ExitStatus::BadImage, "{form}, {length} bytes: {error}");
        }
    }
}

#[test]
fn a_kernel_with_a_text_offset_lands_there() {
    let mut image = image(5000, 0x10_0000);
    image[8..16].copy_from_slice(&0x8_0000u64.to_le_bytes());
    for (form, file) in forms(&image) {
        let bench = Bench::new();
        let loaded = bench.kernel(&file).unwrap();
        assert_eq!(loaded.entry, GuestAddress(RAM_BASE.0 + 0x8_0000), "{form}");
        assert!(bench.memory(loaded.entry, 5000) == image, "{form}");
    }
}

#[test]
fn a_kernel_that_fills_its_claim_to_the_last_byte_is_loaded() {
    let image = image(0x2_0000, 0x2_0000);
    for (form, file) in forms(&image) {
        assert!(Bench::new().kernel(&file).is_ok(), "{form}");
    }
}

#[test]
fn an_initrd_lands_byte_for_byte_beyond_the_kernels_bss() {
    let kernel = image(5000, 0x123_4567);
    let contents: Vec<u8> = (0..70_001).map(|at| (at % 251) as u8).collect();
    for (form, file) in forms(&kernel) {
        let bench = Bench::new();
        let (kernel, initrd) = (bench.file("Image", &file), bench.file("initrd", &contents));
        let loaded = load(&bench.ram, &kernel, Some(&initrd), FDT).unwrap();
        let initrd = loaded.initrd.unwrap();
        assert!(initrd.base.0 >= RAM_BASE.0 + 0x123_4567, "{form}");
        assert!(!initrd.overlaps(&loaded.fdt), "{form}");
        assert_eq!(initrd.size, Bytes::new(70_001));
        assert!(bench.memory(initrd.base, 70_001) == contents, "{form}");
    }
}

#[test]
fn a_file_behind_a_link_is_that_file() {
    let bench = Bench::new();
    let link = bench.directory.path().join("link");
    symlink(bench.file("vmlinuz", &image(5000, 0x10_0000)), &link).unwrap();
    assert!(load(&bench.ram, &link, None, FDT).is_ok());
}

#[test]
fn a_header_that_claims_less_than_the_kernel_has_is_refused() {
    let image = image(0x3_0000, 0x1_0000);
    for (form, file) in forms(&image) {
        let bench = Bench::new();
        let error = bench.kernel(&file).expect_err(form);
        assert_eq!(error.status(), ExitStatus::BadImage, "{form}");
        let beyond = bench.memory(GuestAddress(RAM_BASE.0 + 0x1_0000), 0x4_0000);
        assert!(beyond.iter().all(|byte| *byte == 0), "{form}: written beyond the claim");
    }
}

#[test]
fn a_bomb_is_given_up_once_it_is_over_its_claim() {
    let mut bomb = image(64, 0x1_0000);
    bomb.resize(48 << 20, 0x55);
    for (form, file) in &forms(&bomb)[1..] {
        let bench = Bench::new();
        let error = bench.kernel(file).expect_err(form);
        assert!(matches!(error, Error::Longer { said, .. } if said == Bytes::kib(64)), "{form}");
        assert_eq!(error.status(), ExitStatus::BadImage);
        let beyond = bench.memory(GuestAddress(RAM_BASE.0 + 0x1_0000), 0x10_0000);
        assert!(beyond.iter().all(|byte| *byte == 0), "{form}: written beyond the claim");
    }
}

#[test]
fn a_header_that_claims_absurdly_much_is_refused() {
    for (form, file) in forms(&image(5000, 1 << 40)) {
        let error = image_error(Bench::new().kernel(&file));
        assert!(matches!(error, image::Error::ImageSizeTooLarge { .. }), "{form}: {error:?}");
    }
}

#[test]
fn a_kernel_larger_than_memory_is_refused_with_advice() {
    for (form, file) in forms(&image(5000, MEMORY.get() + 1)) {
        let error = Bench::new().kernel(&file).expect_err(form);
        assert_eq!(error.status(), ExitStatus::BadImage);
        assert!(matches!(
            error,
            Error::Place { source: layout::Error::KernelDoesNotFit { .. }, .. }
        ));
    }
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    for (what, file) in [
        ("one byte", vec![0]),
        ("half a header", image(64, 0x1000)[..32].to_vec()),
        ("text", b"#!/bin/sh\n".repeat(100)),
        ("zeroes", vec![0; 100_000]),
        ("an ELF file", [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 4000]].concat()),
        ("gzip of nothing", gzip(b"")),
        ("gzip of text", gzip(&b"no kernel ".repeat(1000))),
        ("gzip of gzip", gzip(&gzip(&image(5000, 0x10_0000)))),
        ("gzip of zboot", gzip(&zboot(&gzip(&image(5000, 0x10_0000)), "gzip"))),
        ("bare zstd", zstd(&image(5000, 0x10_0000))),
        ("zboot with lzma", zboot(&[0; 100], "lzma")),
        ("zboot without payload", zboot(b"", "gzip")),
        ("zboot of text", zboot(&zstd(&b"no kernel ".repeat(1000)), "zstd")),
    ] {
        let error = Bench::new().kernel(&file).expect_err(what);
        assert_eq!(error.status(), ExitStatus::BadImage, "{what}: {error}");
    }
}

#[test]
fn a_kernel_cut_off_before_its_last_section_is_refused_in_every_form() {
    let mut cut = image(5000, 0x10_0000);
    // The header of an EFI stub: one section that ends after 6000 bytes.
    cut[..2].copy_from_slice(b"MZ");
    cut[0x3c..0x40].copy_from_slice(&64u32.to_le_bytes());
    cut[64..128].fill(0);
    cut[64..70].copy_from_slice(b"PE\0\0\x64\xaa");
    cut[70] = 1;
    cut[88 + 16..88 + 20].copy_from_slice(&6000u32.to_le_bytes());
    for (form, file) in forms(&cut) {
        let error = image_error(Bench::new().kernel(&file));
        assert!(matches!(error, image::Error::Truncated { .. }), "{form}: {error:?}");
    }
}

#[test]
fn a_compressed_kernel_of_unknown_size_is_refused() {
    let old = image(5000, 0);
    assert!(Bench::new().kernel(&old).is_ok());
    for (form, file) in &forms(&old)[1..] {
        let error = Bench::new().kernel(file).expect_err(form);
        assert!(matches!(error, Error::File(kernel::Error::NoImageSize(_))), "{form}: {error:?}");
    }
}

/// A kernel whose compressed forms have a few blocks or so.
fn some_kernel() -> Vec<u8> {
    image(40_000, 0x10_0000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn compressed_data_cut_off_anywhere_is_refused(at: prop::sample::Index) {
        let bench = Bench::new();
        let (gzip, zstd) = (gzip(&some_kernel()), zstd(&some_kernel()));
        for (form, file) in [
            ("gzip", gzip[..1 + at.index(gzip.len() - 1)].to_vec()),
            ("zboot with gzip", zboot(&gzip[..1 + at.index(gzip.len() - 1)], "gzip")),
            ("zboot with zstd", zboot(&zstd[..1 + at.index(zstd.len() - 1)], "zstd")),
        ] {
            let error = bench.kernel(&file).expect_err(form);
            prop_assert_eq!(error.status(), ExitStatus::BadImage, "{}: {}", form, error);
        }
    }

    #[test]
    fn a_damaged_byte_anywhere_panics_nobody(at: prop::sample::Index, damage in 1u8..) {
        let kernel = some_kernel();
        for (form, mut file) in forms(&kernel) {
            let at = at.index(file.len());
            file[at] ^= damage;
            let bench = Bench::new();
            let loaded = bench.kernel(&file);
            // A checksum tells; what it does not cover does not matter, unless it says that there is
            // no checksum.
            let without_checksum = form.contains("zstd") && at == 512 + 4;
            if form != "raw" && !without_checksum && loaded.is_ok() {
                prop_assert!(bench.memory(RAM_BASE, kernel.len()) == kernel, "{form}: byte {at}");
            }
        }
    }

    #[test]
    fn zboot_headers_that_lie_panic_nobody(offset: u32, size: u32, small: bool) {
        let mut file = zboot(&gzip(&some_kernel()), "gzip");
        let (offset, size) = if small { (offset % 2000, size % 2000) } else { (offset, size) };
        file[8..12].copy_from_slice(&offset.to_le_bytes());
        file[12..16].copy_from_slice(&size.to_le_bytes());
        prop_assert!(Bench::new().kernel(&file).is_err());
    }
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_before_it_is_read() {
    let bench = Bench::new();
    let huge = File::create(bench.directory.path().join("initrd")).unwrap();
    huge.write_all_at(b"x", 1 << 40).unwrap();
    let error = bench.initrd(&bench.directory.path().join("initrd")).unwrap_err();
    assert!(matches!(error, Error::Place { source: layout::Error::InitrdDoesNotFit { .. }, .. }));
    assert_eq!(error.status(), ExitStatus::BadImage);
}

#[test]
fn an_initrd_that_just_fits_is_loaded() {
    let bench = Bench::new();
    // The device tree is right behind the kernel, the initrd at the next 64 KiB.
    let room = MEMORY.get() - 0x11_0000;
    let file = File::create(bench.directory.path().join("initrd")).unwrap();
    file.set_len(room).unwrap();
    let path = bench.directory.path().join("initrd");
    assert_eq!(bench.initrd(&path).unwrap().initrd.unwrap().size, Bytes::new(room));
    file.set_len(room + 1).unwrap();
    assert!(bench.initrd(&path).is_err());
}

#[test]
fn an_empty_file_is_told_from_a_damaged_one() {
    let bench = Bench::new();
    let empty = bench.file("empty", b"");
    for error in [bench.kernel(b"").unwrap_err(), bench.initrd(&empty).unwrap_err()] {
        assert!(matches!(error, Error::File(kernel::Error::Empty(_))), "{error:?}");
        assert_eq!(error.status(), ExitStatus::BadImage);
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let bench = Bench::new();
    let fifo = bench.directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    for path in [&fifo, bench.directory.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
        let as_kernel = load(&bench.ram, path, None, FDT).unwrap_err();
        let as_initrd = bench.initrd(path).unwrap_err();
        for error in [as_kernel, as_initrd] {
            assert!(matches!(error, Error::File(kernel::Error::NotAFile(_))), "{error:?}");
            assert_eq!(error.status(), ExitStatus::NoInput);
        }
    }
}

#[test]
fn a_file_that_is_missing_or_forbidden_is_named() {
    let bench = Bench::new();
    let missing = bench.directory.path().join("missing");
    for error in [load(&bench.ram, &missing, None, FDT), bench.initrd(&missing)] {
        let error = error.unwrap_err();
        assert_eq!(error.status(), ExitStatus::NoInput);
        assert!(error.to_string().contains("missing"), "{error}");
    }
    let source = io::ErrorKind::PermissionDenied.into();
    let forbidden = kernel::Error::Open { path: missing, source };
    assert_eq!(Error::from(forbidden).status(), ExitStatus::NoPermission);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let bench = Bench::new();
    let path = bench.file("initrd", &[1; 5000]);
    let (mut file, length) = kernel::open(&path).unwrap();
    fs::write(&path, [1; 100]).unwrap();
    let error = copy(&bench.ram, &mut file, length, RAM_BASE, &path).unwrap_err();
    assert!(matches!(error, Error::Copy { .. }), "{error:?}");
    assert_eq!(error.status(), ExitStatus::Io);
}
