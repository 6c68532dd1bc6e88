//! The guest-physical map, and where the boot files go in it.
//!
//! The map is the same for every guest. Devices lie below [`RAM_BASE`], RAM is one range from there
//! to the end, so no amount of memory ever meets a hole.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x0800_0000` | `0x0801_0000` | GIC distributor |
//! | `0x0801_0000` | `0x0801_2000` | GICv2 CPU interface |
//! | `0x0a00_0000` | `0x0e00_0000` | GICv3 redistributors, 128 KiB a vCPU |
//! | `0x1000_0000` | `0x1000_1000` | serial port |
//! | `0x1000_1000` | `0x1000_2000` | real-time clock |
//! | `0x1000_2000` | `0x1000_3000` | GPIO controller (power key) |
//! | `0x1001_0000` | `0x1002_0000` | generation ID of the VM: its first page is memory |
//! | `0x2000_0000` | `0x3000_0000` | virtio-mmio devices |
//! | `0x8000_0000` | | RAM |
//!
//! # References
//! Linux `Documentation/arch/arm64/booting.rst`

use thiserror::Error;
use vm_memory::{Address, GuestAddress};

use crate::image;
use crate::irq::Spi;
use crate::range::MemoryRange;
use crate::units::Bytes;

/// Where RAM starts: 2 GiB, above every device.
pub const RAM_BASE: GuestAddress = GuestAddress(0x8000_0000);
/// The unit in which guest memory is populated, and of which its size is a multiple.
pub const CHUNK: Bytes = Bytes::mib(2);
/// The smallest guest: a distribution kernel and an initramfs just fit.
pub const MIN_MEMORY: Bytes = Bytes::mib(64);
/// The largest device tree blob that arm64 Linux accepts (booting.rst).
pub const MAX_FDT: Bytes = Bytes::mib(2);

/// GIC distributor.
pub const GIC_DISTRIBUTOR: MemoryRange = range(0x0800_0000, Bytes::kib(64));
/// GICv2 CPU interface.
pub const GIC_CPU_INTERFACE: MemoryRange = range(0x0801_0000, Bytes::kib(8));
/// The window for GICv3 redistributors: 512 of 128 KiB.
pub const GIC_REDISTRIBUTORS: MemoryRange = range(0x0a00_0000, Bytes::mib(64));
/// Serial port (ns16550a).
pub const SERIAL: MemoryRange = range(0x1000_0000, Bytes::kib(4));
/// Real-time clock (PL031).
pub const RTC: MemoryRange = range(0x1000_1000, Bytes::kib(4));
/// GPIO controller (PL061), which carries the power key.
pub const GPIO: MemoryRange = range(0x1000_2000, Bytes::kib(4));
/// The generation ID of the VM, with room for a page of any host, and apart from devices on pages of any guest: it is
/// memory, though no RAM.
pub const GENERATION: MemoryRange = range(0x1001_0000, Bytes::kib(64));
/// The window for virtio-mmio devices.
pub const VIRTIO: MemoryRange = range(0x2000_0000, Bytes::mib(256));

/// Interrupt of the serial port.
pub const SERIAL_SPI: Spi = Spi::fixed::<0>();
/// Interrupt of the real-time clock.
pub const RTC_SPI: Spi = Spi::fixed::<1>();
/// Interrupt of the GPIO controller.
pub const GPIO_SPI: Spi = Spi::fixed::<2>();
/// Interrupt that says that the generation ID is new.
pub const GENERATION_SPI: Spi = Spi::fixed::<3>();
/// First interrupt of the virtio-mmio devices.
pub const VIRTIO_FIRST_SPI: Spi = Spi::fixed::<16>();
/// One virtio-mmio device: 0x100 bytes of registers and its configuration space, on a page of its own
/// for every page size of a guest.
pub const VIRTIO_DEVICE: Bytes = Bytes::kib(64);
/// How many virtio-mmio devices there can be, each with its interrupt.
pub const MAX_VIRTIO_DEVICES: u32 = 128;

/// The widest guest-physical address that KVM offers, in bits (FEAT_LPA2).
const MAX_IPA_BITS: u8 = 52;
/// An initrd shares a window of this size with the kernel (booting.rst) ...
const BOOT_WINDOW: u64 = 32 << 30;
/// ... which starts at a multiple of this.
const BOOT_WINDOW_UNIT: u64 = 1 << 30;
/// Kernels before 4.2 look for the device tree within 512 MiB from their base (booting.rst).
const LEGACY_WINDOW: u64 = 512 << 20;
/// The device tree gets pages of its own, so that freeing it disturbs no neighbour.
const FDT_ALIGNMENT: u64 = 4 << 10;
/// The largest page size of a guest: an initrd aligned to it is page aligned for every kernel.
const INITRD_ALIGNMENT: u64 = 64 << 10;

/// Where the virtio-mmio device `index` is, and its interrupt; `None` from [`MAX_VIRTIO_DEVICES`] on.
pub fn virtio(index: u32) -> Option<(MemoryRange, Spi)> {
    let spi = Spi::new(VIRTIO_FIRST_SPI.number() + index.min(MAX_VIRTIO_DEVICES))?;
    let base = VIRTIO.base.raw_value() + u64::from(index) * VIRTIO_DEVICE.get();
    (index < MAX_VIRTIO_DEVICES).then_some((range(base, VIRTIO_DEVICE), spi))
}

/// The last interrupt of a machine with so many virtio-mmio devices.
pub fn last_spi(virtio_devices: u32) -> Spi {
    let index = virtio_devices.min(MAX_VIRTIO_DEVICES).saturating_sub(1);
    virtio(index).map_or(VIRTIO_FIRST_SPI, |(_, spi)| spi)
}

const fn range(base: u64, size: Bytes) -> MemoryRange {
    MemoryRange { base: GuestAddress(base), size }
}

/// Why a guest does not fit its memory, or its memory the host.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Less than [`MIN_MEMORY`].
    #[error("{size} of guest memory is too little: give at least {MIN_MEMORY} (--memory)")]
    MemoryTooSmall {
        /// What was asked for.
        size: Bytes,
    },
    /// Not a multiple of [`CHUNK`].
    #[error("{size} of guest memory is not a multiple of {CHUNK}: try {nearest} (--memory)")]
    MemoryNotWholeChunks {
        /// What was asked for.
        size: Bytes,
        /// The next smaller size that would do.
        nearest: Bytes,
    },
    /// More than the host's address space for guests.
    #[error(
        "{size} of guest memory is more than this host can address: its {ipa_bits}-bit guest \
         addresses allow {max} (--memory)"
    )]
    MemoryTooLarge {
        /// What was asked for.
        size: Bytes,
        /// The most that would do.
        max: Bytes,
        /// Width of a guest-physical address in bits.
        ipa_bits: u8,
    },
    /// Header and length of the kernel contradict each other.
    #[error("the kernel cannot be placed")]
    Kernel(#[source] image::Error),
    /// The kernel is too large for the memory.
    #[error(
        "the kernel needs {needed} of memory (its own size and BSS), but the guest has {memory}: \
         give it more (--memory)"
    )]
    KernelDoesNotFit {
        /// Bytes from the start of RAM to the end of the kernel.
        needed: Bytes,
        /// The guest's memory.
        memory: Bytes,
    },
    /// Kernel and device tree together are too large for the memory.
    #[error(
        "the device tree of {fdt} does not fit: the kernel takes {kernel} of the {memory} of \
         guest memory; give it more (--memory)"
    )]
    FdtDoesNotFit {
        /// Length of the device tree.
        fdt: Bytes,
        /// Memory of the kernel, BSS included.
        kernel: Bytes,
        /// The guest's memory.
        memory: Bytes,
    },
    /// The device tree is larger than [`MAX_FDT`], or empty.
    #[error(
        "a device tree of {fdt} cannot be passed on: Linux takes 1 B to {MAX_FDT}; use fewer \
         vCPUs (--cpus) or a shorter command line"
    )]
    FdtSize {
        /// Length of the device tree.
        fdt: Bytes,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "the initrd of {initrd} does not fit: {available} of the {memory} of guest memory are \
         left for it; give the guest more (--memory) or use a smaller initrd"
    )]
    InitrdDoesNotFit {
        /// Length of the initrd.
        initrd: Bytes,
        /// The room there is, after the kernel and the device tree.
        available: Bytes,
        /// The guest's memory.
        memory: Bytes,
    },
    /// The initrd has no content.
    #[error("the initrd is empty: leave it out or give one with content (--initrd)")]
    InitrdEmpty,
}

/// Where the boot files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The kernel, BSS included: `image_size` of its header.
    pub kernel: MemoryRange,
    /// Where the first vCPU starts: the kernel's first byte.
    pub entry: GuestAddress,
    /// The initrd, its exact length.
    pub initrd: Option<MemoryRange>,
    /// The device tree, the length that was asked for.
    pub fdt: MemoryRange,
}

/// The most memory that fits a guest whose physical addresses have `ipa_bits` bits: what lies
/// between [`RAM_BASE`] and `1 << ipa_bits`. Zero for 31 bits and fewer; no more than 52 are
/// counted.
pub fn max_memory(ipa_bits: u8) -> Bytes {
    let end = 1u64 << ipa_bits.min(MAX_IPA_BITS);
    Bytes::new(end.saturating_sub(RAM_BASE.raw_value()))
}

/// The RAM of a guest with `size` of memory.
///
/// # Errors
/// When `size` is below [`MIN_MEMORY`], no multiple of [`CHUNK`] or above [`max_memory`].
pub fn ram(size: Bytes, ipa_bits: u8) -> Result<MemoryRange, Error> {
    let max = max_memory(ipa_bits);
    if size < MIN_MEMORY {
        return Err(Error::MemoryTooSmall { size });
    }
    if size > max {
        return Err(Error::MemoryTooLarge { size, max, ipa_bits });
    }
    if !size.is_multiple_of(CHUNK) {
        return Err(Error::MemoryNotWholeChunks { size, nearest: size.align_down(CHUNK) });
    }
    Ok(MemoryRange::new(RAM_BASE, size))
}

/// Places kernel, initrd and device tree in `ram`.
///
/// `kernel_file_len` is the length of the kernel after decompression. The device tree may be built
/// after this, as long as it is not longer than `fdt_len`.
///
/// The three lie as close together as the rules allow: every 2 MiB that the guest does not touch is
/// memory, and tag storage, that the host keeps.
///
/// # Errors
/// When something does not fit, or the kernel's header and length contradict each other.
pub fn place(
    kernel: &image::Header,
    kernel_file_len: Bytes,
    initrd_len: Option<Bytes>,
    fdt_len: Bytes,
    ram: MemoryRange,
) -> Result<Placement, Error> {
    if fdt_len.is_zero() || fdt_len > MAX_FDT {
        return Err(Error::FdtSize { fdt: fdt_len });
    }
    if initrd_len.is_some_and(Bytes::is_zero) {
        return Err(Error::InitrdEmpty);
    }
    let footprint = kernel.footprint(kernel_file_len).map_err(Error::Kernel)?;
    let kernel_range = place_kernel(kernel.text_offset(), footprint, ram)?;
    let room = Room::beside(kernel_range, kernel.image_size().is_some(), ram);
    let (fdt, initrd) = room.place(fdt_len, initrd_len)?;
    Ok(Placement { kernel: kernel_range, entry: kernel_range.base, initrd, fdt })
}

fn place_kernel(
    text_offset: Bytes,
    footprint: Bytes,
    ram: MemoryRange,
) -> Result<MemoryRange, Error> {
    let base = align_up(ram.base.raw_value(), CHUNK.get())
        .and_then(|base| base.checked_add(text_offset.get()))
        .map(|base| MemoryRange::new(GuestAddress(base), footprint));
    match base {
        Some(kernel) if ram.encloses(&kernel) => Ok(kernel),
        _ => Err(Error::KernelDoesNotFit {
            needed: text_offset.checked_add(footprint).unwrap_or(Bytes::MAX),
            memory: ram.size,
        }),
    }
}

/// The memory beside the kernel that boot files may take.
struct Room {
    start: u64,
    end: u64,
    /// Fill from the end: a kernel that does not tell the size of its BSS wants as much memory
    /// behind it as possible.
    downwards: bool,
    kernel: MemoryRange,
    memory: Bytes,
}

impl Room {
    fn beside(kernel: MemoryRange, size_known: bool, ram: MemoryRange) -> Room {
        let base = kernel.base.raw_value();
        let window = match size_known {
            true => (base - base % BOOT_WINDOW_UNIT).saturating_add(BOOT_WINDOW),
            false => (base - base % CHUNK.get()).saturating_add(LEGACY_WINDOW),
        };
        let start = kernel.end().raw_value();
        Room {
            start,
            end: ram.end().raw_value().min(window).max(start),
            downwards: !size_known,
            kernel,
            memory: ram.size,
        }
    }

    fn place(
        &self,
        fdt_len: Bytes,
        initrd_len: Option<Bytes>,
    ) -> Result<(MemoryRange, Option<MemoryRange>), Error> {
        let fdt = match self.downwards {
            false => self.fdt_upwards(fdt_len),
            true => self.fdt_downwards(fdt_len),
        };
        let fdt = fdt.ok_or(Error::FdtDoesNotFit {
            fdt: fdt_len,
            kernel: self.kernel.size,
            memory: self.memory,
        })?;
        let initrd = initrd_len.map(|len| self.initrd(len, fdt)).transpose()?;
        Ok((fdt, initrd))
    }

    /// Right behind the kernel, or at the next 2 MiB boundary if it would cross that.
    fn fdt_upwards(&self, len: Bytes) -> Option<MemoryRange> {
        let base = align_up(self.start, FDT_ALIGNMENT)?;
        let boundary = align_up(base, MAX_FDT.get())?;
        let base = match base.checked_add(len.get())? > boundary {
            true => boundary,
            false => base,
        };
        self.fit(base, len)
    }

    /// At the end of the room, or below the last 2 MiB boundary if it would cross that.
    fn fdt_downwards(&self, len: Bytes) -> Option<MemoryRange> {
        let boundary = align_down(self.end, MAX_FDT.get());
        let base = align_down(self.end.checked_sub(len.get())?, FDT_ALIGNMENT);
        let base = match base < boundary {
            true => align_down(boundary.checked_sub(len.get())?, FDT_ALIGNMENT),
            false => base,
        };
        self.fit(base, len)
    }

    fn initrd(&self, len: Bytes, fdt: MemoryRange) -> Result<MemoryRange, Error> {
        let (low, high) = match self.downwards {
            false => (fdt.end().raw_value(), self.end),
            true => (self.start, fdt.base.raw_value()),
        };
        let base = match self.downwards {
            false => align_up(low, INITRD_ALIGNMENT),
            true => high.checked_sub(len.get()).map(|base| align_down(base, INITRD_ALIGNMENT)),
        };
        let fits =
            |base: &u64| *base >= low && base.checked_add(len.get()).is_some_and(|end| end <= high);
        let first = align_up(low, INITRD_ALIGNMENT).unwrap_or(high);
        base.filter(fits).map(|base| MemoryRange::new(GuestAddress(base), len)).ok_or(
            Error::InitrdDoesNotFit {
                initrd: len,
                available: Bytes::new(high.saturating_sub(first)),
                memory: self.memory,
            },
        )
    }

    fn fit(&self, base: u64, len: Bytes) -> Option<MemoryRange> {
        let end = base.checked_add(len.get())?;
        (base >= self.start && end <= self.end).then_some(MemoryRange::new(GuestAddress(base), len))
    }
}

/// `alignment` is a non-zero constant everywhere.
fn align_up(value: u64, alignment: u64) -> Option<u64> {
    Bytes::new(value).align_up(Bytes::new(alignment)).map(Bytes::get)
}

fn align_down(value: u64, alignment: u64) -> u64 {
    Bytes::new(value).align_down(Bytes::new(alignment)).get()
}

#[cfg(test)]
mod tests;
