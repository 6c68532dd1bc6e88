#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn header(text_offset: u64, image_size: u64) -> image::Header {
    let mut bytes = [0; 64];
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    image::Header::parse(&bytes).unwrap()
}

fn memory(size: Bytes) -> MemoryRange {
    ram(size, 48).unwrap()
}

fn span(base: u64, size: u64) -> MemoryRange {
    MemoryRange::new(GuestAddress(base), Bytes::new(size))
}

#[test]
fn device_windows_are_apart_and_below_ram() {
    let windows = [
        GIC_DISTRIBUTOR,
        GIC_CPU_INTERFACE,
        GIC_REDISTRIBUTORS,
        SERIAL,
        RTC,
        GPIO,
        GENERATION,
        VIRTIO,
    ];

    for (index, window) in windows.iter().enumerate() {
        assert!(window.end() <= RAM_BASE, "{window}");
        assert!(windows[index + 1..].iter().all(|other| !window.overlaps(other)), "{window}");
    }
}

#[test]
fn interrupts_are_distinct() {
    let mut spis =
        [SERIAL_SPI, RTC_SPI, GPIO_SPI, GENERATION_SPI, VIRTIO_FIRST_SPI].map(Spi::number).to_vec();
    spis.dedup();

    assert_eq!(spis, [0, 1, 2, 3, 16]);
}

#[test]
fn virtio_devices_have_places_and_interrupts_of_their_own() {
    let places: Vec<_> = (0..MAX_VIRTIO_DEVICES).map(|index| virtio(index).unwrap()).collect();

    for (index, (range, spi)) in places.iter().enumerate() {
        assert!(VIRTIO.encloses(range), "{range}");
        assert!(places[index + 1..].iter().all(|(other, _)| !range.overlaps(other)), "{range}");
        assert_eq!(spi.number(), VIRTIO_FIRST_SPI.number() + index as u32);
    }
    assert_eq!(places[0].0.base, VIRTIO.base);
    for (count, (_, spi)) in (1..).zip(&places) {
        assert_eq!(last_spi(count), *spi);
    }
    assert_eq!(last_spi(0), VIRTIO_FIRST_SPI);
    assert_eq!(Some(last_spi(u32::MAX)), places.last().map(|(_, spi)| *spi));
    assert!(virtio(MAX_VIRTIO_DEVICES).is_none() && virtio(u32::MAX).is_none());
}

#[test]
fn ranges_compare_as_sets_of_addresses() {
    let range = span(0x1000, 0x1000);

    assert!(range.contains(GuestAddress(0x1000)) && range.contains(GuestAddress(0x1fff)));
    assert!(!range.contains(GuestAddress(0xfff)) && !range.contains(range.end()));
    assert!(range.overlaps(&span(0x1fff, 1)) && !range.overlaps(&span(0x2000, 1)));
    assert!(!range.overlaps(&span(0x1800, 0)) && !span(0x1800, 0).overlaps(&range));
    assert!(range.encloses(&range) && !range.encloses(&span(0x1800, 0x801)));
    assert_eq!(span(u64::MAX, 5).end(), GuestAddress(u64::MAX));
    assert_eq!(range.to_string(), "0x1000..0x2000 (4 KiB)");
}

#[test]
fn memory_reaches_to_the_end_of_the_address_space() {
    assert_eq!(max_memory(40), Bytes::gib(1022));
    assert_eq!(max_memory(32), Bytes::gib(2));
    assert_eq!(max_memory(31), Bytes::ZERO);
    assert_eq!(max_memory(0), Bytes::ZERO);
    assert_eq!(max_memory(u8::MAX), max_memory(52));
}

#[test]
fn memory_of_any_allowed_size_starts_at_its_base() {
    for size in [MIN_MEMORY, Bytes::mib(3584), Bytes::gib(1022)] {
        assert_eq!(ram(size, 40), Ok(MemoryRange::new(RAM_BASE, size)));
    }
}

#[test]
fn memory_that_is_too_small_is_refused() {
    for size in [Bytes::ZERO, Bytes::mib(62)] {
        assert_eq!(ram(size, 40), Err(Error::MemoryTooSmall { size }));
    }
}

#[test]
fn memory_that_is_not_whole_chunks_is_refused_with_a_proposal() {
    let size = Bytes::mib(65);

    let result = ram(size, 40);

    assert_eq!(result, Err(Error::MemoryNotWholeChunks { size, nearest: Bytes::mib(64) }));
}

#[test]
fn memory_beyond_the_address_space_is_refused_with_the_maximum() {
    let error = ram(Bytes::gib(1024), 40).unwrap_err();

    assert_eq!(
        error.to_string(),
        "1 TiB of guest memory is more than this host can address: its 40-bit guest addresses \
         allow 1022 GiB (--memory)"
    );
}

#[test]
fn a_distribution_kernel_fits_the_smallest_guest_close_together() {
    // The sizes of Debian's 6.12 cloud kernel.
    let kernel = header(0, 0x223_0000);
    let (file, initrd) = (Bytes::new(34_834_368), Some(Bytes::mib(8)));

    let placed = place(&kernel, file, initrd, Bytes::kib(8), memory(MIN_MEMORY)).unwrap();

    assert_eq!(placed.entry, RAM_BASE);
    assert_eq!(placed.kernel, span(0x8000_0000, 0x223_0000));
    assert_eq!(placed.fdt, span(0x8223_0000, 0x2000));
    assert_eq!(placed.initrd, Some(span(0x8224_0000, 8 << 20)));
}

#[test]
fn a_kernel_of_unknown_size_gets_the_memory_behind_it() {
    let kernel = header(0, 0);
    let memory = memory(Bytes::gib(1));

    let placed = place(&kernel, Bytes::mib(9), Some(Bytes::mib(3)), Bytes::kib(8), memory).unwrap();

    assert_eq!(placed.entry, GuestAddress(0x8008_0000));
    assert_eq!(placed.fdt, span(0x9fff_e000, 0x2000));
    assert_eq!(placed.initrd, Some(span(0x9fcf_0000, 3 << 20)));
}

#[test]
fn a_device_tree_may_end_at_a_boundary_and_does_not_cross_one() {
    let place = |kernel, fdt| {
        place(&header(0, kernel), Bytes::mib(1), None, fdt, memory(MIN_MEMORY)).unwrap().fdt
    };

    assert_eq!(place(0x21f_e000, Bytes::kib(8)), span(0x821f_e000, 0x2000));
    assert_eq!(place(0x21f_f000, Bytes::kib(8)), span(0x8220_0000, 0x2000));
    assert_eq!(place(0x21f_e000, Bytes::mib(2)), span(0x8220_0000, 2 << 20));
}

#[test]
fn a_device_tree_at_the_end_of_memory_does_not_cross_a_boundary() {
    for (end, base) in [(0x8400_1000, 0x83ff_e000), (0x8400_2000, 0x8400_0000)] {
        let memory = span(0x8000_0000, end - 0x8000_0000);

        let placed = place(&header(0, 0), Bytes::mib(9), None, Bytes::kib(8), memory).unwrap();

        assert_eq!(placed.fdt, span(base, 0x2000));
    }
}

#[test]
fn a_kernel_larger_than_memory_is_refused() {
    let kernel = header(0x8_0000, 64 << 20);

    let result = place(&kernel, Bytes::mib(1), None, Bytes::kib(8), memory(MIN_MEMORY));

    let needed = Bytes::new((64 << 20) + 0x8_0000);
    assert_eq!(result, Err(Error::KernelDoesNotFit { needed, memory: MIN_MEMORY }));
}

#[test]
fn a_kernel_that_contradicts_its_header_is_refused() {
    let file = Bytes::mib(3);

    let result = place(&header(0, 2 << 20), file, None, Bytes::kib(8), memory(MIN_MEMORY));

    let source = image::Error::ImageSizeTooSmall { size: Bytes::mib(2), file };
    assert_eq!(result, Err(Error::Kernel(source)));
}

#[test]
fn a_device_tree_of_no_size_or_more_than_linux_takes_is_refused() {
    for fdt in [Bytes::ZERO, Bytes::new((2 << 20) + 1), Bytes::MAX] {
        let result = place(&header(0, 1 << 20), Bytes::mib(1), None, fdt, memory(MIN_MEMORY));
        assert_eq!(result, Err(Error::FdtSize { fdt }));
    }
}

#[test]
fn a_device_tree_without_room_is_refused() {
    for (kernel, kind) in [(header(0, 64 << 20), 64 << 20), (header(0, 0), (64 << 20) - 0x8_0000)] {
        let result = place(&kernel, Bytes::new(kind), None, Bytes::kib(8), memory(MIN_MEMORY));
        let (fdt, kernel) = (Bytes::kib(8), Bytes::new(kind));
        assert_eq!(result, Err(Error::FdtDoesNotFit { fdt, kernel, memory: MIN_MEMORY }));
    }
}

#[test]
fn an_initrd_without_room_is_refused_with_the_room_there_is() {
    for (initrd, fits) in
        [(Bytes::new(0x37f_0000), true), (Bytes::new(0x37f_0001), false), (Bytes::MAX, false)]
    {
        let kernel = header(0, 8 << 20);
        let result = place(&kernel, Bytes::mib(1), Some(initrd), Bytes::kib(8), memory(MIN_MEMORY));
        let error = Error::InitrdDoesNotFit {
            initrd,
            available: Bytes::new(0x37f_0000),
            memory: MIN_MEMORY,
        };
        assert_eq!(result.map(|_| ()), if fits { Ok(()) } else { Err(error) });
    }
}

#[test]
fn an_initrd_stays_in_the_window_of_the_kernel_however_large_memory_is() {
    let initrd = Some(Bytes::gib(32));

    let result =
        place(&header(0, 1 << 20), Bytes::mib(1), initrd, Bytes::kib(8), memory(Bytes::gib(64)));

    assert!(matches!(result, Err(Error::InitrdDoesNotFit { .. })));
}

#[test]
fn the_window_begins_at_a_gib_wherever_the_kernel_is_in_it() {
    let kernel = header(0x8_0000, 8 << 20);
    let place = |initrd| {
        let initrd = Some(Bytes::new(initrd));
        place(&kernel, Bytes::mib(1), initrd, Bytes::kib(8), memory(Bytes::gib(64)))
    };
    let available = (32 << 30) - 0x89_0000;

    assert_eq!(place(available).unwrap().initrd, Some(span(0x8089_0000, available)));
    assert!(matches!(place(available + 1), Err(Error::InitrdDoesNotFit { .. })));
}

#[test]
fn an_empty_initrd_is_refused() {
    let kernel = header(0, 1 << 20);

    let result =
        place(&kernel, Bytes::mib(1), Some(Bytes::ZERO), Bytes::kib(8), memory(MIN_MEMORY));

    assert_eq!(result, Err(Error::InitrdEmpty));
}

/// Every rule of booting.rst on where things may be.
fn assert_bootable(placed: &Placement, kernel: &image::Header, ram: MemoryRange) {
    let (k, f) = (placed.kernel, placed.fdt);
    let (base, fdt) = (k.base.raw_value(), f.base.raw_value());
    let parts = [Some(k), Some(f), placed.initrd];
    let parts: Vec<_> = parts.into_iter().flatten().collect();

    assert!(parts.iter().all(|part| ram.encloses(part)), "outside RAM: {placed:x?}");
    for (index, part) in parts.iter().enumerate() {
        assert!(parts[index + 1..].iter().all(|other| !part.overlaps(other)), "{placed:x?}");
    }
    assert_eq!(placed.entry, k.base);
    assert_eq!((base - kernel.text_offset().get()) % (2 << 20), 0);
    assert_eq!(fdt % 8, 0);
    assert_eq!(fdt >> 21, (f.end().raw_value() - 1) >> 21, "crosses 2 MiB: {placed:x?}");
    if let Some(initrd) = placed.initrd {
        assert_eq!(initrd.base.raw_value() % 4096, 0);
        let first = base.min(initrd.base.raw_value()) >> 30 << 30;
        assert!(k.end().max(initrd.end()).raw_value() - first <= 32 << 30);
    }
    if kernel.image_size().is_none() {
        let window = base - kernel.text_offset().get();
        assert!(f.end().raw_value() - window <= 512 << 20);
    }
}

proptest! {
    #[test]
    fn whatever_is_placed_can_be_booted(
        offset in 0u64..512,
        image_size in prop_oneof![Just(0), 1u64..=1 << 30, 1u64..=64 << 20],
        file in 64u64..=1 << 28,
        initrd in prop::option::of(prop_oneof![any::<u64>(), 0u64..=1 << 30, 0u64..=1 << 36]),
        fdt in 0u64..=(2 << 20) + 1,
        chunks in prop_oneof![32u64..256, 32u64..1 << 16],
    ) {
        let kernel = header(offset << 12, image_size);
        let ram = memory(Bytes::new(chunks << 21));
        let placed = place(&kernel, Bytes::new(file), initrd.map(Bytes::new), Bytes::new(fdt), ram);
        if let Ok(placed) = placed {
            assert_bootable(&placed, &kernel, ram);
            prop_assert_eq!(placed.fdt.size.get(), fdt);
            prop_assert_eq!(placed.initrd.map(|range| range.size.get()), initrd);
            prop_assert!(placed.kernel.size.get() >= file.max(image_size));
        }
    }

    #[test]
    fn what_fits_with_slack_is_placed(
        offset in 0u64..512,
        image_size in 1u64..=64 << 20,
        initrd in 1u64..=64 << 20,
        fdt in 1u64..=2 << 20,
    ) {
        // The alignments cost at most 4 MiB for the device tree and 2 MiB for all else.
        let needed = Bytes::new((offset << 12) + image_size.max(64) + initrd + (6 << 20));
        let ram = memory(needed.align_up(CHUNK).unwrap().max(MIN_MEMORY));
        let kernel = header(offset << 12, image_size.max(64));
        let placed = place(&kernel, Bytes::new(64), Some(Bytes::new(initrd)), Bytes::new(fdt), ram);
        prop_assert!(placed.is_ok(), "{:?}", placed);
    }

    #[test]
    fn a_range_anywhere_never_panics(base: u64, size: u64, fdt: u64, initrd: Option<u64>) {
        let kernel = header(0, 1 << 20);
        let ram = span(base, size);
        let (initrd, fdt) = (initrd.map(Bytes::new), Bytes::new(fdt));
        if let Ok(placed) = place(&kernel, Bytes::kib(1), initrd, fdt, ram) {
            assert_bootable(&placed, &kernel, ram);
        }
    }

    #[test]
    fn overlap_agrees_with_the_definition(
        (a, m) in (0u64..40, 0u64..20),
        (b, n) in (0u64..40, 0u64..20),
    ) {
        let (x, y) = (span(a, m), span(b, n));
        let shared = (0..64).map(GuestAddress).any(|a| x.contains(a) && y.contains(a));
        prop_assert_eq!(x.overlaps(&y), shared);
        prop_assert_eq!(y.overlaps(&x), shared);
    }

    #[test]
    fn accepted_memory_ends_in_the_address_space(size: u64, bits: u8) {
        if let Ok(range) = ram(Bytes::new(size).align_down(CHUNK), bits) {
            prop_assert!(u128::from(range.end().raw_value()) <= 1 << bits.min(52));
            prop_assert!(range.size >= MIN_MEMORY && range.size.is_multiple_of(CHUNK));
        }
    }
}
