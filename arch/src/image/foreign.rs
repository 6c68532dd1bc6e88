//! Files that people hand over as kernels by mistake, named so that the message can help.

use std::fmt;

use super::{pe, u16_at, u32_at};

/// Something else than an arm64 `Image`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// An x86 bzImage ("HdrS" at 0x202; Linux `Documentation/arch/x86/boot.rst`).
    X86,
    /// A 32-bit Arm zImage (0x016f2818 at 36; Linux `arch/arm/boot/compressed/head.S`).
    Arm32,
    /// A RISC-V Image ("RSC\x05" at 56; Linux `Documentation/arch/riscv/boot-image-header.rst`).
    RiscV,
    /// A LoongArch image (PE machine 0x6232 or 0x6264).
    LoongArch,
    /// An ELF file for arm64, such as `vmlinux`.
    ElfArm64,
    /// An ELF file for another machine.
    Elf {
        /// `e_machine` of the ELF header.
        machine: u16,
    },
    /// An EFI program that is no kernel, or a kernel of another machine.
    Pe {
        /// `Machine` of the COFF header.
        machine: u16,
    },
    /// A file that starts with "#!".
    Script,
}

impl Foreign {
    /// What the bytes look like, if it is one of these.
    pub(super) fn detect(bytes: &[u8]) -> Option<Foreign> {
        if bytes.starts_with(b"\x7fELF") {
            return Some(match elf_machine(bytes) {
                Some(0xb7) => Foreign::ElfArm64,
                machine => Foreign::Elf { machine: machine.unwrap_or_default() },
            });
        }
        if bytes.get(0x202..0x206) == Some(b"HdrS") {
            return Some(Foreign::X86);
        }
        if u32_at(bytes, 36) == Some(0x016f_2818) {
            return Some(Foreign::Arm32);
        }
        if bytes.get(56..60) == Some(b"RSC\x05") {
            return Some(Foreign::RiscV);
        }
        if bytes.starts_with(b"#!") {
            return Some(Foreign::Script);
        }
        pe::machine(bytes).map(Foreign::from_pe_machine)
    }

    pub(super) fn from_pe_machine(machine: u16) -> Foreign {
        match machine {
            0x014c | 0x8664 => Foreign::X86,
            0x01c0 | 0x01c2 | 0x01c4 => Foreign::Arm32,
            0x5032 | 0x5064 => Foreign::RiscV,
            0x6232 | 0x6264 => Foreign::LoongArch,
            machine => Foreign::Pe { machine },
        }
    }

    /// What to do about it, as a clause without a full stop.
    pub fn advice(&self) -> &'static str {
        match self {
            Foreign::ElfArm64 => {
                "use arch/arm64/boot/Image of the same build, or make one with objcopy -O binary"
            }
            Foreign::Script => "give the kernel itself",
            _ => "use a kernel built for arm64 (ARCH=arm64)",
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Foreign::X86 => f.write_str("an x86 kernel"),
            Foreign::Arm32 => f.write_str("a 32-bit Arm kernel"),
            Foreign::RiscV => f.write_str("a RISC-V kernel"),
            Foreign::LoongArch => f.write_str("a LoongArch kernel"),
            Foreign::ElfArm64 => f.write_str("an ELF file for arm64"),
            Foreign::Elf { machine } => match elf_machine_name(*machine) {
                Some(name) => write!(f, "an ELF file for {name}"),
                None => write!(f, "an ELF file for machine {machine}"),
            },
            Foreign::Pe { machine: pe::MACHINE_ARM64 } => f.write_str("an arm64 EFI program"),
            Foreign::Pe { machine } => write!(f, "an EFI program for machine {machine:#06x}"),
            Foreign::Script => f.write_str("a script"),
        }
    }
}

/// `e_machine`, in the byte order that the file states (ELF specification, "ELF Header").
fn elf_machine(bytes: &[u8]) -> Option<u16> {
    let machine = u16_at(bytes, 18)?;
    let big_endian = bytes.get(5) == Some(&2);
    Some(if big_endian { machine.swap_bytes() } else { machine })
}

fn elf_machine_name(machine: u16) -> Option<&'static str> {
    Some(match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 => "32-bit PowerPC",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit Arm",
        62 => "x86-64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return None,
    })
}

/// The compression that the bytes start with, other than gzip.
pub(super) fn compression(bytes: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 7] = [
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
        (b"BZh", "bzip2"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4 (legacy frame)"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
        (&[0x89, b'L', b'Z', b'O', 0], "lzo"),
        (&[0x5d, 0x00, 0x00], "lzma"),
    ];
    MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| *name)
}
