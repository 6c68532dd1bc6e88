//! Kernel files of every form, loaded into the memory of a guest.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::io::Write;

use arch::units::Bytes;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use vmm::memory::{Attributes, GuestRam, load};

use crate::input::Input;
use crate::scratch::with_file;

/// The guest's memory: little, so that a few bytes that decompress to many soon are too many.
const MEMORY: Bytes = Bytes::mib(4);
/// Room for a device tree.
const FDT: Bytes = Bytes::kib(8);

/// Where the magic number of a zboot image is, and what it is.
const ZBOOT: (usize, &[u8]) = (4, b"zimg");

pub(super) fn run(data: &[u8]) {
    thread_local! {
        static RAM: RefCell<Option<GuestRam>> = const { RefCell::new(None) };
    }
    let mut input = Input::new(data);
    let form = input.u8();
    let file = match form % 4 {
        // As it is.
        0 => input.rest().to_vec(),
        // The head of an EFI zboot image before anything.
        1 => zboot(input.rest(), input_word(form)),
        // A gzip stream of something: what is behind the decompressor is met as well.
        2 => gzip(input.rest()),
        // Members of gzip, one behind the other.
        _ => {
            let (first, second) = input.rest().split_at(data.len().saturating_sub(1) / 2);
            [gzip(first), gzip(second)].concat()
        }
    };
    RAM.with_borrow_mut(|ram| {
        let ram = ram.get_or_insert_with(|| GuestRam::new(MEMORY, Attributes::default()).unwrap());
        let Ok(loaded) = with_file(&file, |path| load(ram, path, None, FDT)) else { return };
        let memory = ram.range();
        assert!(memory.encloses(&loaded.kernel) && memory.encloses(&loaded.fdt));
        assert!(!loaded.kernel.overlaps(&loaded.fdt));
        assert!(loaded.kernel.contains(loaded.entry));
    });
}

/// The compression that a zboot image names, by a byte.
fn input_word(form: u8) -> &'static str {
    ["gzip", "zstd", "zstd22", "lzma"][usize::from(form / 4) % 4]
}

/// An EFI zboot image around a payload.
fn zboot(payload: &[u8], compression: &str) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..2].copy_from_slice(b"MZ");
    let (at, magic) = ZBOOT;
    file[at..at + magic.len()].copy_from_slice(magic);
    file[8..12].copy_from_slice(&64u32.to_le_bytes());
    file[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[24..24 + compression.len()].copy_from_slice(compression.as_bytes());
    file.extend(payload);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An Image of so many bytes that claims `size` bytes of memory.
fn image(length: usize, size: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..length).map(|at| at as u8).collect();
    image[..64].fill(0);
    image[16..24].copy_from_slice(&size.to_le_bytes());
    image[24..32].copy_from_slice(&0xau64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let image = image(200, 1 << 16);
    let packed = gzip(&image);
    let zstd = compress_to_vec(&image[..], CompressionLevel::Fastest);
    // A skippable frame before another one.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd].concat();
    let with = |form: u8, bytes: &[u8]| [&[form], bytes].concat();
    vec![
        with(0, &image),
        with(0, &packed),
        with(0, &[&packed[..], &packed, &[0; 20]].concat()),
        with(0, &zboot(&packed, "gzip")),
        with(0, &zboot(&zstd, "zstd22")),
        with(1, &packed),
        with(5, &zstd),
        with(9, &skippable),
        with(2, &image),
        with(3, &image),
        with(0, b"\x7fELF\x02\x01\x01"),
        with(0, b"PK\x03\x04"),
    ]
}
