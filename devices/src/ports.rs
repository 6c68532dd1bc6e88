//! What device models need of the machine around them.
//!
//! The VMM implements these traits, over KVM or otherwise; tests implement them with counters.

use std::io;
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, VolatileSlice};

use crate::virtio::Features;

/// An interrupt line whose rising edge means an event.
///
/// There is no level to take back: a model raises an edge whenever something new wants the guest's
/// attention, and the device tree describes its interrupt as edge-triggered.
pub trait IrqLine: Send {
    /// Raises one edge. Edges that the guest has not taken yet may merge into one.
    ///
    /// It is called with the model locked, on any thread, and must not block.
    ///
    /// # Errors
    /// What the machine answered. A model counts failures and continues, as there is no way to report
    /// them to a guest.
    fn trigger(&self) -> io::Result<()>;
}

impl<T: IrqLine + Sync + ?Sized> IrqLine for Arc<T> {
    fn trigger(&self) -> io::Result<()> {
        (**self).trigger()
    }
}

impl<T: IrqLine + ?Sized> IrqLine for Box<T> {
    fn trigger(&self) -> io::Result<()> {
        (**self).trigger()
    }
}

/// An interrupt line that carries a level: it is high for as long as the model wants attention, and the
/// device tree describes its interrupt as active high.
///
/// It cannot be made of an event such as an irqfd, whose level falls before the guest looks at it.
pub trait LevelLine: Send {
    /// Sets the level. Setting it to what it is has no effect.
    ///
    /// It is called with the model locked, on any thread, and must not block.
    ///
    /// # Errors
    /// What the machine answered. A model counts failures and continues, as with [`IrqLine::trigger`].
    fn set(&self, high: bool) -> io::Result<()>;
}

/// The host's wall clock, and one alarm on it.
///
/// Times are seconds since 1970, and 0 before. The clock can be set, so the alarm is for a time and not
/// for a duration: when the clock jumps over it, it goes off.
pub trait WallClock: Send {
    /// The time now.
    fn now(&self) -> u64;

    /// Replaces the alarm: once [`now`](Self::now) is `at` or later, the owner of the model is to call it
    /// (for a clock, [`Rtc::on_alarm`](crate::rtc::Rtc::on_alarm)) from its own thread, once. `None`: there
    /// is no alarm. One that fails to be set shows when the guest next reads a register.
    ///
    /// It is called with the model locked, on any thread, and must not block nor call the model.
    fn set_alarm(&self, at: Option<u64>);
}

/// The notifications of a virtio device's queues, for the thread that serves them.
pub trait Doorbells: Send {
    /// Has a queue served soon; nothing happens for a queue that does not exist.
    ///
    /// It is called with the model locked, on any thread, and must not block.
    fn signal(&self, queue: usize);
}

/// Acknowledgements of a virtio device's interrupts that the hypervisor takes by itself: they cost the guest no exit
/// to the process that serves the device.
pub trait Acknowledgements: Send + Sync {
    /// Whether there have been any since the last call. It must not block.
    fn take(&self) -> bool;
}

/// A piece of guest-physical address space as a guest names it: it may lie anywhere and pass the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestRange {
    /// Its first byte.
    pub start: GuestAddress,
    /// Its length in bytes.
    pub length: u64,
}

/// What became of a range that was to be given back, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Discarded {
    /// Given back: data and tags of these bytes read zero from now on.
    pub discarded: u64,
    /// In whole pages of guest memory, and yet not given back, as the host refused.
    pub failed: u64,
}

/// Gives guest memory back to the host.
pub trait Reclaim: Send {
    /// The size of the pages that guest memory is made of, in bytes: a power of two from 4 KiB up. Less
    /// than a whole page cannot be given back.
    fn page_size(&self) -> u64;

    /// Gives back the whole pages of guest memory that lie in `range`, and what was reserved for
    /// them. The request must not be completed before this returns: the guest may use them again at once
    /// then.
    ///
    /// The range is the guest's: parts of it outside guest memory, and parts of pages, are left out.
    fn discard(&mut self, range: GuestRange) -> Discarded;

    /// `bytes` of memory that the guest has free are about to be given back, and the guest can use none of them until
    /// it has its answer. A small guest may have nothing else to allocate from, and should not run meanwhile.
    fn begin_report(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// Ends [`begin_report`](Self::begin_report): the guest has its answer.
    fn end_report(&mut self) {}

    /// The size of the huge pages that guest memory may be made of, in bytes: a power of two above that of its pages.
    /// `None` where [`renew`](Self::renew) is of no use.
    fn huge_page_size(&self) -> Option<u64> {
        None
    }

    /// Has a huge page possible again at each touch of `range`, which consists of whole ones, all given back before,
    /// in whatever pieces: the host keeps tables for the small pages of a huge page that went in pieces. The guest does
    /// not use the range before this returns. When it cannot be done, small pages serve as well.
    fn renew(&mut self, range: GuestRange) {
        let _ = range;
    }
}

/// A source of random bytes.
pub trait Entropy: Send {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// When the host has none to give.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// Limits what a device does in a time.
pub trait Throttle: Send {
    /// Whether something may begin now. If not, the owner of the device has its queues served again when it may.
    fn is_open(&mut self) -> bool;

    /// Counts an operation of so many bytes, which has been let through.
    fn spend(&mut self, bytes: u64);
}

/// Where the frames of a network device come from and go to.
///
/// No method waits for a peer. A port that has lost its peer answers that nothing is there
/// ([`WouldBlock`](io::ErrorKind::WouldBlock)) when it is read, and fails when it is written to.
pub trait NetPort: Send {
    /// The most pieces that a call takes, well below the 1024 of readv(2).
    const MOST_PIECES: usize = 512;

    /// Whether each frame has a `virtio_net_hdr_v1` of 12 bytes before it (5.1.6), as the driver sees it.
    /// Otherwise it has none, and the port has no offloads.
    fn has_header(&self) -> bool;

    /// The features that say which work on frames the port does for the driver, or takes from it: of bits 0,
    /// 1, 7 to 14 and 54 to 56 (5.1.3).
    fn offloads(&self) -> Features;

    /// Reads no frames but such that the driver takes, having acknowledged these features.
    fn set_offloads(&mut self, acked: Features);

    /// Reads one frame into the pieces in turn, at most [`MOST_PIECES`](Self::MOST_PIECES), and what they do not
    /// take into `rest`. Returns its length; what is beyond the end of `rest` is lost, and not counted.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now. Others are counted: the port is to be read again.
    fn receive<B: BitmapSlice>(
        &mut self,
        pieces: &[VolatileSlice<'_, B>],
        rest: &mut [u8],
    ) -> io::Result<usize>;

    /// Sends the bytes of the pieces, at most [`MOST_PIECES`](Self::MOST_PIECES), as one frame.
    ///
    /// # Errors
    /// `WouldBlock` when it cannot be taken now and is to be sent again. After others the frame is lost.
    fn send<B: BitmapSlice>(&mut self, pieces: &[VolatileSlice<'_, B>]) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BrokenLine, CountingLine};

    #[test]
    fn a_shared_line_is_a_line() {
        let count = CountingLine::default();
        let line: Box<dyn IrqLine> = Box::new(Arc::new(count.clone()));

        let result = line.trigger();

        assert!(result.is_ok());
        assert_eq!(count.take(), 1);
    }

    #[test]
    fn a_boxed_line_passes_failures_on() {
        let line: Box<dyn IrqLine> = Box::new(BrokenLine);

        assert!(Box::new(line).trigger().is_err());
    }
}
