//! Lines of a GPIO chip through its character device (include/uapi/linux/gpio.h, version 2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// `struct gpio_v2_line_request`; the arrays that this program leaves empty are written as words.
#[repr(C)]
struct LineRequest {
    offsets: [u32; 64],
    consumer: [u8; 32],
    flags: u64,
    attributes: [u32; 66],
    lines: u32,
    event_buffer_size: u32,
    padding: [u32; 5],
    fd: i32,
}

/// `GPIO_V2_GET_LINE_IOCTL`: `_IOWR(0xB4, 0x07, struct gpio_v2_line_request)`.
const GET_LINE: u32 = 0xC000_0000 | ((size_of::<LineRequest>() as u32) << 16) | (0xB4 << 8) | 0x07;
/// `GPIO_V2_LINE_FLAG_INPUT`.
const INPUT: u64 = 1 << 2;
/// `GPIO_V2_LINE_FLAG_EDGE_RISING`.
const EDGE_RISING: u64 = 1 << 4;

/// The length of `struct gpio_v2_line_event`.
pub(crate) const EVENT: usize = 48;

/// Takes line `offset` of a chip; each rising edge is [`EVENT`] bytes to read from the file returned.
///
/// # Errors
/// When the line does not exist or is taken.
pub(crate) fn rising_edges(chip: &File, offset: u32) -> io::Result<File> {
    let mut request = LineRequest {
        offsets: [0; 64],
        consumer: [0; 32],
        flags: INPUT | EDGE_RISING,
        attributes: [0; 66],
        lines: 1,
        event_buffer_size: 0,
        padding: [0; 5],
        fd: -1,
    };
    request.offsets[0] = offset;
    for (target, byte) in request.consumer.iter_mut().zip(b"tessera-agent power key") {
        *target = *byte;
    }
    // SAFETY: the request has the size and layout that the number of the ioctl names, and lives through it.
    let status = unsafe { libc::ioctl(chip.as_raw_fd(), GET_LINE as _, &raw mut request) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: on success the kernel has put a new descriptor there, which has no other owner.
    Ok(unsafe { File::from_raw_fd(request.fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_size_and_number() {
        assert_eq!(size_of::<LineRequest>(), 592);
        assert_eq!(GET_LINE, 0xC250_B407);
        assert_eq!(std::mem::offset_of!(LineRequest, flags), 288);
        assert_eq!(std::mem::offset_of!(LineRequest, lines), 560);
        assert_eq!(std::mem::offset_of!(LineRequest, fd), 588);
    }
}
