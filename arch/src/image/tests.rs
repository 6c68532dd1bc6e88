#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// A header with a PE section table behind it, as the EFI stub of a kernel has. The sections end at
/// 1 MiB.
struct Builder(Vec<u8>);

impl Builder {
    fn new() -> Self {
        let mut bytes = vec![0; HEAD_LEN];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[56..60].copy_from_slice(MAGIC);
        Builder(bytes)
            .u64(16, 0x20_0000)
            .u64(24, 0b1010)
            .u32(0x3c, 0x40)
            .u32(0x40, 0x4550)
            .u16(0x44, 0xaa64)
            .u16(0x46, 2)
            .u16(0x54, 0xa0)
            .section(0, 0x1_0000, 0x8_0000)
            .section(1, 0x9_0000, 0x7_0000)
    }

    fn section(self, index: usize, start: u32, size: u32) -> Self {
        let entry = 0x44 + 20 + 0xa0 + 40 * index;
        self.u32(entry + 16, size).u32(entry + 20, start)
    }

    fn put(mut self, offset: usize, field: &[u8]) -> Self {
        self.0[offset..offset + field.len()].copy_from_slice(field);
        self
    }

    fn u16(self, offset: usize, value: u16) -> Self {
        self.put(offset, &value.to_le_bytes())
    }

    fn u32(self, offset: usize, value: u32) -> Self {
        self.put(offset, &value.to_le_bytes())
    }

    fn u64(self, offset: usize, value: u64) -> Self {
        self.put(offset, &value.to_le_bytes())
    }

    fn parse(self) -> Result<Header, Error> {
        Header::parse(&self.0)
    }
}

fn zboot(compression: &[u8]) -> Builder {
    Builder::new()
        .put(4, b"zimg")
        .u32(8, 0x1000)
        .u32(12, 0x2000)
        .u64(24, 0)
        .put(24, compression)
        .put(56, &[0; 4])
}

#[test]
fn a_header_is_read_field_by_field() {
    let header = Builder::new().u64(8, 0x8_0000).parse().unwrap();

    assert_eq!(header.text_offset(), Bytes::kib(512));
    assert_eq!(header.image_size(), Some(Bytes::mib(2)));
    assert_eq!(header.page_size(), PageSize::Size4K);
    assert_eq!(header.footprint(Bytes::mib(1)), Ok(Bytes::mib(2)));
}

#[test]
fn the_64_bytes_of_a_header_are_enough() {
    let bytes = Builder::new().0;

    let header = Header::parse(&bytes[..64]).unwrap();

    assert_eq!(header.footprint(Bytes::kib(512)), Ok(Bytes::mib(2)));
}

#[test]
fn a_kernel_before_3_17_has_a_fixed_offset_and_needs_its_length() {
    // Neither a big-endian text_offset nor stray flags count.
    let header = Builder::new().u64(8, 0x0000_0800_0000_0000).u64(16, 0).u64(24, 1).parse();

    let header = header.unwrap();

    assert_eq!(header.text_offset(), Bytes::kib(512));
    assert_eq!(header.image_size(), None);
    assert_eq!(header.page_size(), PageSize::Unspecified);
    assert_eq!(header.footprint(Bytes::mib(9)), Ok(Bytes::mib(9)));
    assert_eq!(
        header.footprint(Bytes::gib(2)),
        Err(Error::ImageSizeTooLarge { size: Bytes::gib(2) })
    );
}

#[test]
fn every_page_size_is_known() {
    let sizes = [0, 1, 2, 3].map(|field| {
        Builder::new().u64(24, field << 1).parse().map(|header| header.page_size().bytes())
    });

    assert_eq!(
        sizes,
        [Ok(None), Ok(Some(Bytes::kib(4))), Ok(Some(Bytes::kib(16))), Ok(Some(Bytes::kib(64)))]
    );
}

#[test]
fn an_empty_or_short_file_is_too_short() {
    for length in [0, 1, 63] {
        let bytes = &Builder::new().0[..length];
        let error = Error::TooShort { length: Bytes::new(length as u64) };
        assert_eq!(Form::detect(bytes), Err(error.clone()));
        assert_eq!(Header::parse(bytes), Err(error));
    }
}

#[test]
fn a_kernel_shorter_than_its_header_is_too_short() {
    let header = Builder::new().parse().unwrap();

    assert_eq!(header.footprint(Bytes::new(63)), Err(Error::TooShort { length: Bytes::new(63) }));
}

#[test]
fn a_big_endian_kernel_is_refused() {
    assert_eq!(Builder::new().u64(24, 0b1011).parse(), Err(Error::BigEndian));
}

#[test]
fn a_text_offset_that_linux_never_had_is_refused() {
    for offset in [0x20_0000, 0x800, 1, u64::MAX] {
        let result = Builder::new().u64(8, offset).parse();
        assert_eq!(result, Err(Error::TextOffset { offset }));
    }
}

#[test]
fn an_absurd_image_size_is_refused() {
    for size in [Bytes::new(MAX_IMAGE_SIZE.get() + 1), Bytes::MAX] {
        let result = Builder::new().u64(16, size.get()).parse();
        assert_eq!(result, Err(Error::ImageSizeTooLarge { size }));
    }
}

#[test]
fn the_largest_kernels_are_taken() {
    let largest = Builder::new().u64(16, MAX_IMAGE_SIZE.get()).parse().unwrap();
    let before_3_17 = Builder::new().u64(16, 0).parse().unwrap();

    assert_eq!(largest.image_size(), Some(MAX_IMAGE_SIZE));
    assert_eq!(before_3_17.footprint(MAX_IMAGE_SIZE), Ok(MAX_IMAGE_SIZE));
}

#[test]
fn an_image_size_below_the_length_is_a_lie() {
    let header = Builder::new().u64(16, 0x1000).parse().unwrap();

    assert_eq!(
        header.footprint(Bytes::mib(1)),
        Err(Error::ImageSizeTooSmall { size: Bytes::kib(4), file: Bytes::mib(1) })
    );
}

#[test]
fn a_kernel_that_ends_before_its_last_section_is_truncated() {
    let header = Builder::new().parse().unwrap();

    assert_eq!(
        header.footprint(Bytes::new(0xf_ffff)),
        Err(Error::Truncated { expected: Bytes::mib(1), file: Bytes::new(0xf_ffff) })
    );
}

/// What a loader makes of the first `length` bytes of a file.
fn cut(file: &[u8], length: usize) -> Result<Header, Error> {
    let file = &file[..length];
    if Form::detect(file)? != Form::Raw {
        return Err(Error::NotAnImage);
    }
    let header = Header::parse(&file[..length.min(HEAD_LEN)])?;
    header.footprint(Bytes::new(length as u64)).map(|_| header)
}

#[test]
fn a_kernel_that_is_cut_anywhere_is_refused() {
    let mut file = Builder::new().section(1, 0x1000, 0x1000).section(0, 0x400, 0xc00).0;
    file.resize(0x2000, 0x5a);
    assert_eq!(cut(&file, 0x2000).map(|header| header.doubt()), Ok(None));

    for length in 0..0x2000 {
        let result = cut(&file, length);
        let cut = matches!(result, Err(Error::TooShort { .. } | Error::Truncated { .. }));
        assert!(cut, "{length} bytes: {result:?}");
    }
}

#[test]
fn the_largest_pe_headers_are_read() {
    let (pe, optional) = (64 << 10, 240);
    let table = pe + 24 + optional;
    let last = table + 40 * 15;
    let header = Builder(vec![0; last + 40])
        .put(0, b"MZ")
        .put(56, MAGIC)
        .u64(16, 0x20_0000)
        .u32(0x3c, pe as u32)
        .u32(pe, 0x4550)
        .u16(pe + 6, 16)
        .u16(pe + 20, optional as u16)
        .u32(last + 16, 0x1000)
        .u32(last + 20, 0x2_0000)
        .parse()
        .unwrap();

    assert_eq!(header.doubt(), None);
    let (expected, file) = (Bytes::new(0x2_1000), Bytes::new(0x2_0fff));
    assert_eq!(header.footprint(file), Err(Error::Truncated { expected, file }));
}

#[test]
fn a_section_without_data_takes_nothing_of_the_file() {
    let header = Builder::new().section(1, u32::MAX, 0).parse().unwrap();

    assert_eq!(header.footprint(Bytes::new(0x9_0000)), Ok(Bytes::mib(2)));
}

#[test]
fn a_kernel_without_a_section_table_is_doubted_wherever_it_is_cut() {
    // A kernel without an EFI stub begins with an instruction, and the PE offset is zero.
    let plain = || Builder::new().put(0, &[0; 8]).u32(0x3c, 0);
    let (plain, old) = (plain(), plain().u64(16, 0).u64(24, 0));
    for mut file in [plain.0, old.0] {
        file.resize(0x2000, 0x5a);

        for length in 64..=0x2000 {
            let header = cut(&file, length).unwrap();
            assert_eq!(header.doubt(), Some(Doubt::Length), "{length} bytes");
        }
    }
}

#[test]
fn a_damaged_section_table_says_nothing_about_the_length() {
    let damaged = [
        Builder::new().u16(0x46, 0),
        Builder::new().u16(0x46, 17),
        Builder::new().u16(0x54, u16::MAX),
        Builder::new().u32(0x3c, u32::MAX),
        Builder::new().u32(0x40, 0),
    ];
    for bytes in damaged {
        let header = bytes.parse().unwrap();
        assert_eq!(header.footprint(Bytes::kib(4)), Ok(Bytes::mib(2)));
        assert_eq!(header.doubt(), Some(Doubt::Length));
    }
}

#[test]
fn forms_are_told_apart() {
    let gzip = Form::detect(&[0x1f, 0x8b, 8, 0]);
    let raw = Form::detect(&Builder::new().0);
    let unknown = Form::detect(&[0; 64]);
    let zboot = Form::detect(&zboot(b"gzip\0").0);

    assert_eq!(gzip, Ok(Form::Gzip));
    assert_eq!(raw, Ok(Form::Raw));
    assert_eq!(unknown, Ok(Form::Raw));
    assert_eq!(
        zboot,
        Ok(Form::Zboot(Zboot {
            payload_offset: 0x1000,
            payload_size: 0x2000,
            compression: Compression::Gzip
        }))
    );
}

#[test]
fn both_names_of_zstd_are_known() {
    for name in [&b"zstd\0"[..], b"zstd22\0"] {
        let form = Form::detect(&zboot(name).0);
        assert!(matches!(form, Ok(Form::Zboot(z)) if z.compression == Compression::Zstd));
    }
}

#[test]
fn other_zboot_compressions_are_named() {
    for name in ["lzma", "xzkern", "lz4", "lzo", ""] {
        let form = Form::detect(&zboot(name.as_bytes()).0);
        assert_eq!(form, Err(Error::ZbootCompression { compression: name.to_owned() }));
    }
}

#[test]
fn a_hostile_compression_name_cannot_write_to_the_terminal() {
    let error = Form::detect(&zboot(b"\x1b[2J").0).unwrap_err();

    assert!(!error.to_string().contains('\x1b'));
}

#[test]
fn a_zboot_image_of_another_machine_is_refused() {
    let form = Form::detect(&zboot(b"gzip\0").u16(0x44, 0x6264).0);

    assert_eq!(form, Err(Error::Foreign(Foreign::LoongArch)));
}

#[test]
fn a_zboot_header_that_is_cut_off_is_too_short() {
    let bytes = zboot(b"gzip\0").0;

    let form = Form::detect(&bytes[..55]);

    assert_eq!(form, Err(Error::TooShort { length: Bytes::new(55) }));
}

#[test]
fn a_zboot_payload_lies_in_the_file() {
    let image = |payload_offset, payload_size| Zboot {
        payload_offset,
        payload_size,
        compression: Compression::Gzip,
    };
    let file = Bytes::kib(12);

    assert_eq!(image(0x1000, 0x2000).payload(file), Ok(0x1000..0x3000));
    assert_eq!(image(64, 1).payload(file), Ok(64..65));
    for (offset, size) in [(0x1000, 0x2001), (0, 16), (63, 16), (64, 0), (u32::MAX, u32::MAX)] {
        assert_eq!(
            image(offset, size).payload(file),
            Err(Error::ZbootPayload { offset, size: Bytes::new(size.into()), file })
        );
    }
}

#[test]
fn other_compressions_of_the_file_are_named() {
    let files: [(&[u8], &str); 7] = [
        (&[0x28, 0xb5, 0x2f, 0xfd, 0], "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh9", "bzip2"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4 (legacy frame)"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
        (b"\x89LZO\0", "lzo"),
        (&[0x5d, 0, 0, 0x80], "lzma"),
    ];
    for (bytes, compression) in files {
        assert_eq!(Form::detect(bytes), Err(Error::Compressed { compression, layer: "" }));
    }
}

#[test]
fn a_kernel_compressed_twice_is_named() {
    let inner = [vec![0x1f, 0x8b, 8, 0], zboot(b"gzip\0").0, b"BZh9".to_vec()];
    let messages = inner.map(|bytes| Header::parse(&bytes).unwrap_err().to_string());

    assert!(messages[0].starts_with("the kernel is compressed with gzip once more inside"));
    assert!(messages[1].starts_with("the kernel is compressed with EFI zboot inside"));
    assert!(messages[2].starts_with("the kernel is compressed with bzip2 inside"));
}

#[test]
fn foreign_files_are_named_with_advice() {
    let blank = || Builder(vec![0; HEAD_LEN]);
    let elf = |machine| blank().put(0, b"\x7fELF\x02\x01").u16(18, machine);
    let cases = [
        (blank().put(0x202, b"HdrS"), "an x86 kernel"),
        (blank().u32(36, 0x016f_2818), "a 32-bit Arm kernel"),
        (blank().put(56, b"RSC\x05"), "a RISC-V kernel"),
        (elf(0xb7), "an ELF file for arm64"),
        (elf(3), "an ELF file for 32-bit x86"),
        (elf(8), "an ELF file for MIPS"),
        (elf(20), "an ELF file for 32-bit PowerPC"),
        (elf(21), "an ELF file for 64-bit PowerPC"),
        (elf(40), "an ELF file for 32-bit Arm"),
        (elf(62), "an ELF file for x86-64"),
        (elf(243), "an ELF file for RISC-V"),
        (elf(258), "an ELF file for LoongArch"),
        (elf(0x1234), "an ELF file for machine 4660"),
        (blank().put(0, b"\x7fELF\x02\x02\0\0").put(18, &[0, 22]), "an ELF file for s390"),
        (Builder::new().u32(56, 0).u16(0x44, 0x8664), "an x86 kernel"),
        (Builder::new().u32(56, 0).u16(0x44, 0x6264), "a LoongArch kernel"),
        (Builder::new().u32(56, 0), "an arm64 EFI program"),
        (Builder::new().u32(56, 0).u16(0x44, 1), "an EFI program for machine 0x0001"),
        (blank().put(0, b"#!/bin/sh"), "a script"),
    ];
    for (bytes, name) in cases {
        let message = bytes.parse().unwrap_err().to_string();
        assert!(message.starts_with(&format!("the kernel file is {name}, not")), "{message}");
    }
}

#[test]
fn the_advice_is_that_for_the_file() {
    let advice = [Foreign::ElfArm64, Foreign::Script, Foreign::X86].map(|file| file.advice());

    assert!(advice[0].contains("objcopy"), "{}", advice[0]);
    assert_eq!(advice[1], "give the kernel itself");
    assert!(advice[2].contains("ARCH=arm64"), "{}", advice[2]);
}

#[test]
fn compressions_are_named() {
    let names = [Compression::Gzip, Compression::Zstd].map(|compression| compression.to_string());

    assert_eq!(names, ["gzip", "zstd"]);
}

#[test]
fn what_nothing_identifies_is_not_an_image() {
    assert_eq!(Header::parse(&[0; 64]), Err(Error::NotAnImage));
}

proptest! {
    #[test]
    fn a_kernel_of_any_layout_that_is_cut_is_refused_or_doubted(
        pe in 0x40_u32..0x200,
        optional in 0_u16..300,
        sections in prop::collection::vec((0_u32..0x2000, 0_u32..0x2000), 0..4),
        length in 64_usize..0x4000,
        stub: bool,
    ) {
        let mut builder = Builder(vec![0x5a; 0x4000])
            .put(0, if stub { b"MZ" } else { b"\0\0" })
            .put(56, MAGIC)
            .u64(8, 0)
            .u64(16, 0x20_0000)
            .u64(24, 0)
            .u32(0x3c, pe)
            .u32(pe as usize, 0x4550)
            .u16(pe as usize + 6, sections.len() as u16)
            .u16(pe as usize + 20, optional);
        let table = pe as usize + 24 + usize::from(optional);
        let mut end = table + 40 * sections.len();
        for (index, (start, size)) in sections.iter().enumerate() {
            builder = builder
                .u32(table + 40 * index + 16, *size)
                .u32(table + 40 * index + 20, *start);
            if *size > 0 {
                end = end.max(*start as usize + *size as usize);
            }
        }

        match cut(&builder.0, length) {
            Err(Error::Truncated { .. }) => prop_assert!(length < end),
            Err(error) => prop_assert!(false, "{}", error),
            Ok(header) => prop_assert!(header.doubt().is_some() || length >= end),
        }
    }

    #[test]
    fn hostile_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..512),
        form in 0u8..4,
    ) {
        for (offset, magic) in [(0, &b"MZ"[..]), (4, ZBOOT_MAGIC), (56, MAGIC)] {
            let wanted = form == 3 || (form == 1) == (offset == 56);
            if let Some(field) = bytes.get_mut(offset..offset + magic.len()).filter(|_| wanted) {
                field.copy_from_slice(magic);
            }
        }
        if let Ok(Form::Zboot(image)) = Form::detect(&bytes) {
            let _ = image.payload(Bytes::new(bytes.len() as u64));
        }
        if let Ok(header) = Header::parse(&bytes) {
            let _ = header.footprint(Bytes::new(bytes.len() as u64));
        }
    }

    #[test]
    fn a_damaged_pe_header_never_panics(offset in 0x3cusize..0x200, value: u32) {
        let _ = Builder::new().u32(offset, value).parse();
    }

    #[test]
    fn an_accepted_header_keeps_its_bounds(offset: u64, size: u64, flags: u64, file: u64) {
        let bytes = Builder::new().u64(8, offset & 0x3f_f000).u64(16, size >> 30).u64(24, flags);
        if let Ok(header) = bytes.parse() {
            prop_assert!(header.text_offset() < Bytes::mib(2));
            prop_assert!(header.image_size().is_none_or(|size| size <= MAX_IMAGE_SIZE));
            if let Ok(footprint) = header.footprint(Bytes::new(file >> 32)) {
                prop_assert!(footprint.get() >= file >> 32 && footprint <= MAX_IMAGE_SIZE);
            }
        }
    }

    #[test]
    fn an_accepted_payload_is_in_the_file(
        payload_offset: u32,
        payload_size: u32,
        file in 0u64..1 << 33,
    ) {
        let image = Zboot { payload_offset, payload_size, compression: Compression::Zstd };
        if let Ok(range) = image.payload(Bytes::new(file)) {
            prop_assert!(range.start >= 64 && range.start < range.end && range.end <= file);
        }
    }
}
