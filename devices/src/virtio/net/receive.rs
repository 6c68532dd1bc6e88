//! receiveq (5.1.6.3, 5.1.6.4): frames from the port to the driver.

use std::io::ErrorKind;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemory, VolatileSlice};

use super::counters::count;
use super::{HEADER, LONGEST, NUM_BUFFERS, Net, Progress};
use crate::ports::NetPort;
use crate::virtio::{Broken, Head, Ring, Slice, Stream};

/// A buffer of the driver's for a frame, or for a part of one.
struct Room {
    head: Head,
    stream: Stream,
}

/// What receiving remembers between frames.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// Bytes of the last frame with its header. The next one is probably as large: buffers are taken for it, and
    /// what does not fit them goes through `rest`.
    expected: usize,
    rest: Vec<u8>,
    /// A frame without room, the first bytes of `rest`. It waits for buffers.
    pub(super) held: Option<usize>,
}

/// Buffers that have been taken and not completed.
#[derive(Default)]
struct Rooms {
    list: Vec<Room>,
    bytes: u64,
    /// The buffers of a frame, while it is completed.
    used: Vec<(Head, u32)>,
}

impl Rooms {
    /// Takes buffers until there are `wanted` bytes, or no more buffers. Whether there are so many.
    fn gather<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        wanted: usize,
    ) -> Result<bool, Broken> {
        while self.bytes < wanted as u64 {
            let Some(chain) = ring.take()? else { return Ok(false) };
            let head = chain.head();
            let (read, stream) = chain.into_streams()?;
            if !read.is_empty() {
                return Err(Broken::Form("a buffer for frames is one to read (5.1.6.3)"));
            }
            if stream.len() < HEADER as u64 {
                return Err(Broken::Form("a buffer for frames has no room for a header (5.1.6.3)"));
            }
            self.bytes += stream.len();
            self.list.push(Room { head, stream });
        }
        Ok(true)
    }

    /// The guest memory of the buffers from number `first` on, without its first `skipped` bytes.
    fn slices<'m, M: GuestMemory>(
        &self,
        first: usize,
        skipped: usize,
        memory: &'m M,
    ) -> Result<Vec<Slice<'m, M>>, Broken> {
        let mut slices = Vec::with_capacity(self.list.len() - first);
        let mut skipped = skipped as u64;
        for room in &self.list[first..] {
            room.stream.add_slices(memory, skipped, &mut slices)?;
            skipped = skipped.saturating_sub(room.stream.len());
        }
        Ok(slices)
    }

    /// Gives the driver a frame of `length` bytes with its header. There is room for it, and all of it is there
    /// but for what the device says in the header; the first `made` bytes of that are the device's.
    fn complete<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        length: usize,
        made: usize,
    ) -> Result<(), Broken> {
        self.used.clear();
        let mut left = length as u64;
        for room in &self.list {
            let written = room.stream.len().min(left);
            left -= written;
            // At most LONGEST.
            self.used.push((room.head, written as u32));
            if left == 0 {
                break;
            }
        }
        let Some(first) = self.list.first() else { return Ok(()) };
        let mut header = [0; HEADER];
        // At most the size of a queue.
        header[NUM_BUFFERS..].copy_from_slice(&(self.used.len() as u16).to_le_bytes());
        let from = if made == 0 { NUM_BUFFERS } else { 0 };
        first.stream.write_at(ring.memory(), from as u64, &header[from..])?;
        ring.complete_together(&self.used)?;
        for room in self.list.drain(..self.used.len()) {
            self.bytes -= room.stream.len();
        }
        Ok(())
    }
}

impl<P: NetPort> Net<P> {
    /// A turn of receiveq: at most as many buffers as it is long.
    ///
    /// # Errors
    /// When the driver has broken the device.
    pub fn receive<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<Progress, Broken> {
        ring.disable_notifications()?;
        let mut rooms = Rooms::default();
        // Frames that are dropped take no buffer: a port that gives no others must not keep the thread.
        let mut progress = Progress::More;
        for _ in 0..ring.size() {
            let waits = match self.receiver.held {
                Some(frame) => self.deliver(ring, &mut rooms, frame)?,
                None => self.read(ring, &mut rooms)?,
            };
            if let Some(waits) = waits {
                progress = waits;
                break;
            }
        }
        if progress == Progress::Driver {
            // The next notification is for a buffer after those that are here and too few. One that came before
            // notifications were enabled is announced by none (2.7.10).
            if ring.enable_notifications()? {
                progress = Progress::More;
            } else {
                count(&self.counters.rx_starved, 1);
            }
        }
        // No more than were taken in this turn.
        ring.put_back(rooms.list.len() as u16);
        Ok(progress)
    }

    /// How many bytes of the header the port does not give.
    fn made(&self) -> usize {
        if self.port.has_header() { 0 } else { HEADER }
    }

    /// Reads a frame and gives it to the driver. `None`: there may be another.
    fn read<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        rooms: &mut Rooms,
    ) -> Result<Option<Progress>, Broken> {
        // Without the feature a frame lies in one buffer.
        let wanted = if self.mergeable { self.receiver.expected.max(1) } else { 1 };
        if !rooms.gather(ring, wanted)? && rooms.list.is_empty() {
            return Ok(Some(if ring.is_exhausted() { Progress::More } else { Progress::Driver }));
        }
        let made = self.made();
        let mut slices = rooms.slices(0, made, ring.memory())?;
        // A frame for more pieces is held, and copied to them.
        let direct = slices.len() <= P::MOST_PIECES;
        if !direct {
            slices.clear();
        }
        let rest = &mut self.receiver.rest;
        rest.resize(LONGEST, 0);
        let frame = match self.port.receive(&slices, rest) {
            Ok(frame) => frame,
            Err(error) => {
                let failed = error.kind() != ErrorKind::WouldBlock;
                count(&self.counters.rx_failures, failed.into());
                return Ok(Some(Progress::Port));
            }
        };
        let length = frame.saturating_add(made);
        let fits = length as u64 <= rooms.bytes;
        // The buffers stay for the next frame then.
        if length <= HEADER {
            count(&self.counters.rx_failures, 1);
            return Ok(None);
        }
        if length > LONGEST || !fits && !self.mergeable {
            count(&self.counters.rx_oversized, 1);
            return Ok(None);
        }
        self.receiver.expected = length;
        if !direct {
            self.receiver.held = Some(frame);
            return Ok(None);
        }
        if fits {
            self.finish(ring, rooms, length)?;
            return Ok(None);
        }
        // It is more than the room, and less than LONGEST.
        let over = length - rooms.bytes as usize;
        let (before, room) = (rooms.list.len(), frame - over);
        if rooms.gather(ring, length)? {
            scatter(&rest[..over], &rooms.slices(before, 0, ring.memory())?);
            self.finish(ring, rooms, length)?;
            return Ok(None);
        }
        rest.copy_within(..over, room);
        collect(&slices, &mut rest[..room]);
        self.receiver.held = Some(frame);
        Ok(self.lack(ring, rooms))
    }

    /// Gives the driver the frame of so many bytes that is held. `None`: there may be another.
    fn deliver<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        rooms: &mut Rooms,
        frame: usize,
    ) -> Result<Option<Progress>, Broken> {
        let made = self.made();
        let length = frame + made;
        if !rooms.gather(ring, length)? {
            return Ok(self.lack(ring, rooms));
        }
        scatter(&self.receiver.rest[..frame], &rooms.slices(0, made, ring.memory())?);
        self.receiver.held = None;
        self.finish(ring, rooms, length)?;
        Ok(None)
    }

    /// What a frame waits for that is held, as there are too few buffers. It is dropped when a whole queue of
    /// them is too few.
    fn lack<M: GuestMemory>(&mut self, ring: &Ring<'_, M>, rooms: &Rooms) -> Option<Progress> {
        if !ring.is_exhausted() {
            return Some(Progress::Driver);
        }
        if rooms.list.len() < usize::from(ring.size()) {
            return Some(Progress::More);
        }
        self.receiver.held = None;
        self.receiver.expected = 0;
        count(&self.counters.rx_oversized, 1);
        Some(Progress::More)
    }

    fn finish<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        rooms: &mut Rooms,
        length: usize,
    ) -> Result<(), Broken> {
        rooms.complete(ring, length, self.made())?;
        count(&self.counters.rx_frames, 1);
        count(&self.counters.rx_bytes, (length - HEADER) as u64);
        Ok(())
    }
}

/// Copies the bytes to the pieces in turn.
fn scatter<B: BitmapSlice>(mut bytes: &[u8], pieces: &[VolatileSlice<'_, B>]) {
    for piece in pieces {
        let (here, after) = bytes.split_at(piece.len().min(bytes.len()));
        piece.copy_from(here);
        bytes = after;
    }
}

/// Fills the bytes from the pieces in turn.
fn collect<B: BitmapSlice>(pieces: &[VolatileSlice<'_, B>], mut bytes: &mut [u8]) {
    for piece in pieces {
        let (here, after) = bytes.split_at_mut(piece.len().min(bytes.len()));
        piece.copy_to(here);
        bytes = after;
    }
}
