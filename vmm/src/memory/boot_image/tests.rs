#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use tempfile::TempDir;
use vm_memory::Bytes as _;

use super::*;
use crate::memory::load;
use crate::memory::load::tests::{forms, image};

const FDT: Bytes = Bytes::kib(8);
const MEMORY: Bytes = Bytes::mib(64);
/// Of several pages of any host, and a part of one.
const INITRD: usize = 300_001;

struct Files {
    _folder: TempDir,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Files {
    fn new(kernel: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [kernel_path, initrd] = ["Image", "initrd"].map(|name| folder.path().join(name));
        std::fs::write(&kernel_path, kernel).unwrap();
        let bytes: Vec<u8> = (0..INITRD).map(|at| (at % 251) as u8 + 1).collect();
        std::fs::write(&initrd, bytes).unwrap();
        Self { _folder: folder, kernel: kernel_path, initrd }
    }

    fn initrd(&self, has_initrd: bool) -> Option<&Path> {
        has_initrd.then_some(&*self.initrd)
    }

    fn boot_image(&self, has_initrd: bool) -> BootImage {
        let (file, parts) = make_boot_image(&self.kernel, self.initrd(has_initrd)).unwrap();
        BootImage::new(file, parts).unwrap()
    }
}

fn memory() -> GuestRam {
    GuestRam::new(MEMORY, Attributes::default()).unwrap()
}

fn contents(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY.get() as usize];
    ram.read_slice(&mut bytes, ram.range().base).unwrap();
    bytes
}

#[test]
fn a_vm_has_what_it_would_have_loaded_itself() {
    for length in [4096, 100_000, 3_000_001] {
        for (form, file) in forms(&image(length, 0x40_0000)) {
            let files = Files::new(&file);
            for has_initrd in [false, true] {
                let (own, shared) = (memory(), memory());
                let initrd = files.initrd(has_initrd);
                let wanted = load(&own, &files.kernel, initrd, FDT).unwrap();

                let boot_image = files.boot_image(has_initrd);
                let loaded = boot_image.load(&shared, &files.kernel, FDT).unwrap();

                assert_eq!(format!("{loaded:?}"), format!("{wanted:?}"), "{form}");
                assert!(contents(&shared) == contents(&own), "{form}: other bytes");
            }
        }
    }
}

#[test]
fn each_vm_has_its_own_copy_of_what_it_writes_and_what_it_gives_back_is_zero() {
    let files = Files::new(&image(3_000_001, 0x40_0000));
    let boot_image = files.boot_image(true);
    let [one, other] = [(); 2].map(|()| memory());
    let loaded = boot_image.load(&one, &files.kernel, FDT).unwrap();
    boot_image.load(&other, &files.kernel, FDT).unwrap();
    let before = contents(&other);
    let page = rustix::param::page_size() as u64;
    let initrd = loaded.initrd.unwrap();
    let whole = Bytes::new(INITRD as u64).align_up(Bytes::new(page)).unwrap();
    let mapped = Bytes::new(3_000_001).align_up(Bytes::new(page)).unwrap().get() + whole.get();
    assert_eq!(one.of_the_template(), Some(Bytes::new(mapped)));

    one.write_slice(&[0xee; 8192], GuestAddress(loaded.kernel.base.0 + 100)).unwrap();
    assert_eq!(one.discard(MemoryRange::new(initrd.base, whole)).unwrap(), whole);
    let kernel_page = MemoryRange::new(loaded.kernel.base, Bytes::new(page));
    one.discard(kernel_page).unwrap();

    let after = contents(&one);
    let at = |address: GuestAddress| (address.0 - one.range().base.0) as usize;
    assert!(after[at(initrd.base)..][..INITRD].iter().all(|byte| *byte == 0));
    assert!(after[at(loaded.kernel.base)..][..page as usize].iter().all(|byte| *byte == 0));
    assert!(contents(&other) == before);
    assert_eq!(one.of_the_template(), Some(Bytes::new(mapped - whole.get() - page)));
    let third = memory();
    boot_image.load(&third, &files.kernel, FDT).unwrap();
    assert!(contents(&third) == before);
}

#[test]
fn parts_that_are_not_in_the_file_are_refused() {
    let files = Files::new(&image(100_000, 0x40_0000));
    let (file, parts) = make_boot_image(&files.kernel, Some(&files.initrd)).unwrap();
    let refused = |parts| BootImage::new(file.try_clone().unwrap(), parts).unwrap_err();
    let large = Bytes::new(u64::MAX);

    for lie in [
        Parts { kernel: Bytes::ZERO, ..parts },
        Parts { kernel: parts.initrd_at.checked_add(Bytes::kib(4)).unwrap(), ..parts },
        Parts { kernel: large, ..parts },
        Parts { initrd_at: Bytes::new(parts.initrd_at.get() + 4096), ..parts },
        Parts { initrd_at: Bytes::new(!(CHUNK.get() - 1)), ..parts },
        Parts { initrd: Some(parts.size), ..parts },
        Parts { initrd: Some(large), ..parts },
    ] {
        assert!(matches!(refused(lie), TemplateError::Parts), "{lie:?}");
    }
    for size in [Bytes::new(parts.size.get() + CHUNK.get()), large] {
        let refused = refused(Parts { size, ..parts });
        assert!(matches!(refused, TemplateError::Length { .. }), "{refused:?}");
    }
}

#[test]
fn what_a_vm_cannot_map_is_an_error() {
    let within_a_page = GuestAddress(memory().range().base.0 + 512);
    assert_eq!(pages(&memory(), MemoryRange::new(within_a_page, CHUNK), Bytes::ZERO), None);

    let files = Files::new(&image(100_000, 128 << 20));
    let refused = files.boot_image(false).load(&memory(), &files.kernel, FDT).unwrap_err();
    assert!(matches!(refused, Error::Place { .. }), "{refused:?}");
    // Lengths that its own header contradicts.
    let files = Files::new(&image(100_000, 0x40_0000));
    let (file, parts) = make_boot_image(&files.kernel, None).unwrap();
    for kernel in [1, 63, 4096] {
        let parts = Parts { kernel: Bytes::new(kernel), ..parts };
        let image = BootImage::new(file.try_clone().unwrap(), parts).unwrap();
        let done = image.load(&memory(), &files.kernel, FDT);
        assert_eq!(done.is_ok(), kernel == 4096, "{kernel}");
    }
}

#[test]
fn files_that_are_none_make_no_boot_image() {
    let files = Files::new(b"no kernel");
    assert!(matches!(make_boot_image(&files.kernel, None), Err(Error::File(_))));
    let files = Files::new(&image(100_000, 0x40_0000));
    let nowhere = Path::new("/no-such/initrd");
    assert!(matches!(make_boot_image(&files.kernel, Some(nowhere)), Err(Error::File(_))));
    // A compressed kernel whose header asks for more than there is.
    let [_, (_, gzip), ..] = forms(&image(100_000, u64::MAX >> 8));
    assert!(make_boot_image(&Files::new(&gzip).kernel, None).is_err());
}
