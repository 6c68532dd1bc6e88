//! What the device needs of the host.

use std::io;
use std::time::Duration;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Names a stream of the host: a number that is given once.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PeerId(pub u64);

/// What has happened to a stream since the last time. Each fact comes once (as with EPOLLET).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Readiness {
    /// There is data, or the end of it.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
    /// The peer writes nothing more: what is there to read is all there will be.
    pub ended: bool,
    /// The peer neither reads nor writes any more.
    pub gone: bool,
}

/// The host's side: a stream of bytes for each connection, none of which is waited for.
///
/// All calls are made with the device locked, on the thread that serves it, but for [`close`](Self::close),
/// which comes from any thread when a driver resets the device.
pub trait Peers: Send {
    /// The time since some moment, which does not jump.
    fn now(&self) -> Duration;

    /// Connects to what listens for a port of the guest's.
    ///
    /// # Errors
    /// When nothing listens, or does not accept at once.
    fn connect(&mut self, port: u32) -> io::Result<PeerId>;

    /// Tells a peer, which has asked for a connection, that the guest has accepted it, and from which port the
    /// guest sees it come.
    ///
    /// # Errors
    /// When the peer does not take that.
    fn accepted(&mut self, peer: PeerId, port: u32) -> io::Result<()>;

    /// Reads; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing yet: [`Readiness::readable`] follows.
    fn read<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        into: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize>;

    /// Writes.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; others when the peer takes nothing more.
    fn write<B: BitmapSlice>(
        &mut self,
        peer: PeerId,
        from: &[VolatileSlice<'_, B>],
    ) -> io::Result<usize>;

    /// Writes what was buffered.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn write_bytes(&mut self, peer: PeerId, from: &[u8]) -> io::Result<usize>;

    /// Whether [`Readiness::writable`] is wanted, which it is not at first. It comes at once if there is room.
    /// Only a change is said: with epoll each call announces again what is true of the stream.
    fn want_room(&mut self, peer: PeerId, wanted: bool);

    /// The guest sends nothing more, which the peer reads as the end.
    fn end_writes(&mut self, peer: PeerId);

    /// The guest takes nothing more: what the peer writes from then on fails.
    fn end_reads(&mut self, peer: PeerId);

    /// The stream is used no more. What has been written can still be read.
    fn close(&mut self, peer: PeerId);
}
