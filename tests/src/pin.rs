//! Memory that will not move, as I/O makes it.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use rustix::pipe::{IoSliceRaw, PipeFlags, SpliceFlags, pipe_with, vmsplice};
use vmm::memory::GuestRam;

/// The first pages of a memory, in pipes without a reader: pinned until this is dropped.
pub struct Pinned {
    _pipes: Vec<(OwnedFd, OwnedFd)>,
    _ram: GuestRam,
}

impl Pinned {
    /// Pins so many pages of 4 KiB from the start.
    pub fn new(ram: &GuestRam, pages: usize) -> Self {
        const PAGE: usize = 4096;
        assert!((pages * PAGE) as u64 <= ram.range().size.get());
        let mut pipes = Vec::new();
        let mut done = 0;
        while done < pages * PAGE {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
            // As many as a pipe takes: 16 pages.
            let start = ram.host_address() as usize + done;
            let length = (pages * PAGE - done).min(16 * PAGE);
            // SAFETY: the range is of this memory, as checked above, which lives as long as this value. The
            // pipes are never read, so that nothing depends on what is in it.
            done += unsafe {
                let bytes = std::slice::from_raw_parts(start as *const u8, length);
                vmsplice(&writer, &[IoSliceRaw::from_slice(bytes)], SpliceFlags::NONBLOCK)
            }
            .unwrap();
            pipes.push((reader, writer));
        }
        Self { _pipes: pipes, _ram: ram.clone() }
    }
}
