//! Where the registers are, and what their bits mean (4.2.2, table 4.1).
//!
//! R: the driver reads it, W: it writes it. All are 32 bits wide, little-endian.

/// R: "virt".
pub(super) const MAGIC_VALUE: u64 = 0x000;
/// R: 2, the version that is not legacy.
pub(super) const VERSION: u64 = 0x004;
/// R: the kind of the device.
pub(super) const DEVICE_ID: u64 = 0x008;
/// R: who made it.
pub(super) const VENDOR_ID: u64 = 0x00c;
/// R: the selected 32 of the features that are offered.
pub(super) const DEVICE_FEATURES: u64 = 0x010;
/// W: which 32 to read there.
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
/// W: the selected 32 of the features that the driver wants.
pub(super) const DRIVER_FEATURES: u64 = 0x020;
/// W: which 32 to write there.
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
/// W: which queue the registers from [`QUEUE_NUM_MAX`] on are about.
pub(super) const QUEUE_SEL: u64 = 0x030;
/// R: the greatest size of the queue, 0 where there is none.
pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
/// W: its size.
pub(super) const QUEUE_NUM: u64 = 0x038;
/// RW: 1 puts it to use, 0 stops it.
pub(super) const QUEUE_READY: u64 = 0x044;
/// W: the index of a queue with new chains.
pub(super) const QUEUE_NOTIFY: u64 = 0x050;
/// R: [`USED_BUFFER`] and [`CONFIGURATION_CHANGE`].
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
/// W: which of them have been seen to.
pub(super) const INTERRUPT_ACK: u64 = 0x064;
/// RW: the device status (2.1); writing 0 resets the device.
pub(super) const STATUS: u64 = 0x070;
/// W: address of the descriptor table, lower and upper half.
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
/// W: address of the driver area, the available ring.
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// W: address of the device area, the used ring.
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// R: length and base of the selected shared memory region: all ones where there is none.
pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
/// R: changes whenever configuration space does.
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
/// RW: configuration space, any width.
pub(super) const CONFIG: u64 = 0x100;

/// [`MAGIC_VALUE`].
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// [`VENDOR_ID`].
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"TSRA");

/// Interrupt: chains have been used.
pub(super) const USED_BUFFER: u32 = 1 << 0;
/// Interrupt: configuration space, or the need of a reset, has changed.
pub(super) const CONFIGURATION_CHANGE: u32 = 1 << 1;

/// Status: the driver has seen the device.
pub(super) const ACKNOWLEDGE: u32 = 1;
/// Status: it knows how to drive it.
pub(super) const DRIVER: u32 = 2;
/// Status: it drives it.
pub(super) const DRIVER_OK: u32 = 4;
/// Status: the features are settled.
pub(super) const FEATURES_OK: u32 = 8;
/// Status: the device is broken until it is reset.
pub(super) const DEVICE_NEEDS_RESET: u32 = 64;
/// Status: the driver has given up.
pub(super) const FAILED: u32 = 128;

/// The status bits of a driver that succeeds, in their order (3.1.1).
pub(super) const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
