//! Memory that is given back while the guest does not run.

use arch::units::Bytes;
use devices::ports::{Discarded, GuestRange, Reclaim};

use crate::vcpu::{Held, Hold};

/// The part of guest memory from which on a report is so much that the guest may have next to nothing left.
///
/// Linux takes up to 32 free blocks out of its allocator until a report of them is answered, each as large as it is
/// free (4 MiB with pages of 4 KiB), and leaves the min watermark (`page_reporting_cycle` in mm/page_reporting.c,
/// `__isolate_free_page` in mm/page_alloc.c). What allocates meanwhile meets the OOM killer. The 128 MiB of such a
/// report are an eighth of 1 GiB.
const LARGE_PART: u64 = 8;

/// A hold has a bound in time: that of giving back so much. In huge pages the host takes some milliseconds.
const MOST_HELD: Bytes = Bytes::gib(1);

/// Gives guest memory back, and has the guest not run while it waits for a large part of its memory.
pub(super) struct HeldReclaim<R> {
    inner: R,
    memory: Bytes,
    hold: Hold,
    held: Option<Held>,
}

impl<R> HeldReclaim<R> {
    /// For a guest with so much memory.
    pub(super) fn new(inner: R, memory: Bytes, hold: Hold) -> Self {
        Self { inner, memory, hold, held: None }
    }
}

impl<R: Reclaim> Reclaim for HeldReclaim<R> {
    fn page_size(&self) -> u64 {
        self.inner.page_size()
    }

    fn discard(&mut self, range: GuestRange) -> Discarded {
        self.inner.discard(range)
    }

    fn begin_report(&mut self, bytes: u64) {
        if bytes >= self.memory.get() / LARGE_PART && bytes <= MOST_HELD.get() {
            // One hold ends before the next begins.
            self.held = None;
            self.held = Some(self.hold.hold());
        }
    }

    fn end_report(&mut self) {
        self.held = None;
    }

    fn huge_page_size(&self) -> Option<u64> {
        self.inner.huge_page_size()
    }

    fn renew(&mut self, range: GuestRange) {
        self.inner.renew(range);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use vm_memory::GuestAddress;

    use super::*;
    use crate::vcpu::VcpuSet;
    use crate::vcpu::fake::{Guest, inside};

    struct Nothing;

    impl Reclaim for Nothing {
        fn page_size(&self) -> u64 {
            4096
        }

        fn discard(&mut self, range: GuestRange) -> Discarded {
            Discarded { discarded: range.length, failed: 0 }
        }
    }

    #[test]
    fn a_guest_is_out_while_much_of_its_memory_is_given_back_and_no_longer() {
        let guest = Guest::default();
        let mut vcpus = VcpuSet::computing(&guest, 2);
        let hold = Hold::default();
        vcpus.give_to(&hold);
        vcpus.resume().unwrap();
        guest.wait_until_inside(2);
        let mut reclaim = HeldReclaim::new(Nothing, Bytes::mib(256), hold);

        for (mib, is_held) in [(31, false), (32, true), (128, true), (256, true)] {
            reclaim.begin_report(mib << 20);
            match is_held {
                true => guest.wait_for(|events| inside(events) == 0),
                false => guest.wait_until_inside(2),
            }
            let range = GuestRange { start: GuestAddress(0), length: mib << 20 };
            assert_eq!(reclaim.discard(range).discarded, mib << 20);
            reclaim.end_report();
            guest.wait_until_inside(2);
        }
    }

    #[test]
    fn a_hold_has_a_bound() {
        let mut reclaim = HeldReclaim::new(Nothing, Bytes::gib(4), Hold::default());

        reclaim.begin_report(Bytes::gib(1).get());
        assert!(reclaim.held.is_some());
        reclaim.end_report();
        reclaim.begin_report(Bytes::gib(1).get() + 4096);
        assert!(reclaim.held.is_none());
    }
}
