//! The performance monitors, as the kernel gives them to processes.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

/// The size of the first version of `struct perf_event_attr` (PERF_ATTR_SIZE_VER0 in
/// include/uapi/linux/perf_event.h), which every kernel takes. All zero but for its size, it asks for
/// PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES, counting from the start.
const ATTRIBUTES_SIZE: u32 = 64;

/// PERF_FLAG_FD_CLOEXEC of the same file.
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// The kernel's devices for events of PMUv3.
pub(crate) fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/bus/event_source/devices").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("armv8_pmuv3")).collect()
}

/// How often numbers are added while nothing was counted: for seconds on a busy host.
const MOST_ROUNDS: u32 = 200;

/// The processor's cycles while it adds some numbers. An event counts from when the kernel has a counter for it, in the
/// host too, and that may be after a while.
///
/// # Errors
/// The kernel's reason, where nothing counts them.
pub(crate) fn cycles() -> io::Result<u64> {
    let mut counter = cycle_counter()?;
    for _ in 1..MOST_ROUNDS {
        match count_of_sums(&mut counter)? {
            0 => {}
            count => return Ok(count),
        }
    }
    count_of_sums(&mut counter)
}

fn count_of_sums(counter: &mut File) -> io::Result<u64> {
    black_box((0..100_000_u64).fold(0, |sum: u64, number| black_box(sum.wrapping_add(number))));
    let mut count = [0; 8];
    counter.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}

/// A counter of this thread's cycles on any processor (perf_event_open(2)).
fn cycle_counter() -> io::Result<File> {
    let mut attributes = [0_u64; ATTRIBUTES_SIZE as usize / 8];
    // Little-endian: `type` is the first word, `size` the second.
    attributes[0] = u64::from(ATTRIBUTES_SIZE) << 32;
    let (this_thread, any_cpu, no_group): (libc::pid_t, libc::c_int, libc::c_int) = (0, -1, -1);
    // SAFETY: the attributes are as long as they say and live through the call, which only reads them.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_ptr(),
            this_thread,
            any_cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    match libc::c_int::try_from(descriptor) {
        // SAFETY: the call has just returned this descriptor, and nothing else has it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { File::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
