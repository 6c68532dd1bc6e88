//! The bytes of a chain, whatever its layout.
//!
//! A driver may cut a request into descriptors as it likes, as long as what the device reads comes before
//! what it writes (2.7.4.2). So a device looks at two streams of bytes, and at no descriptor.

use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::buffer_list::BufferList;
use super::{Broken, Buffer, Chain};

/// A piece of guest memory, for a port that reads or writes it in place.
pub type Slice<'m, M> = VolatileSlice<'m, BS<'m, <M as GuestMemory>::Bitmap>>;

/// A part of a chain, all of it read or all of it written by the device, from its first byte on.
///
/// Its addresses and lengths are the driver's, and not checked before they are used.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stream {
    buffers: BufferList,
    length: u64,
}

impl Chain {
    /// What the device reads of the chain, and what it writes.
    ///
    /// # Errors
    /// [`Broken::Chain`] when the chain does not end as the specification wants it to, and
    /// [`Broken::Form`] when a buffer to read comes after one to write.
    pub fn into_streams(self) -> Result<(Stream, Stream), Broken> {
        let mut buffers = self.into_buffers()?;
        let readable = buffers.iter().take_while(|buffer| !buffer.writable).count();
        if buffers.iter().skip(readable).any(|buffer| !buffer.writable) {
            return Err(Broken::Form("a buffer to read comes after one to write (2.7.4.2)"));
        }
        let written = buffers.split_off(readable);
        Ok((buffers.into(), written.into()))
    }
}

impl From<BufferList> for Stream {
    /// The bytes of these buffers, in order. There are fewer than 65536 of them.
    fn from(buffers: BufferList) -> Self {
        let length = buffers.iter().map(|buffer| u64::from(buffer.length)).sum();
        Self { buffers, length }
    }
}

impl Stream {
    /// The bytes of these buffers, in order. There are fewer than 65536 of them.
    pub fn new(buffers: &[Buffer]) -> Self {
        buffers.iter().copied().collect::<BufferList>().into()
    }

    /// How many bytes are left, below 2^48.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// How many buffers they lie in.
    pub fn buffers(&self) -> usize {
        self.buffers.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes the first `length` bytes off, or all that there are.
    #[must_use]
    pub fn split_off_front(&mut self, length: u64) -> Self {
        let mut front = BufferList::default();
        let mut wanted = length.min(self.length);
        let (mut whole, mut front_length) = (0, 0);
        for buffer in self.buffers.iter_mut() {
            let size = u64::from(buffer.length);
            front_length += size.min(wanted);
            if size > wanted {
                // Less than `size`, which has 32 bits.
                let cut = wanted as u32;
                if cut > 0 {
                    front.push(Buffer { length: cut, ..*buffer });
                    buffer.address.0 = buffer.address.0.wrapping_add(wanted);
                    buffer.length -= cut;
                }
                break;
            }
            front.push(*buffer);
            whole += 1;
            wanted -= size;
        }
        self.buffers.remove_front(whole);
        self.length -= front_length;
        Self { buffers: front, length: front_length }
    }

    /// Takes the last `length` bytes off, or all that there are.
    #[must_use]
    pub fn split_off_back(&mut self, length: u64) -> Self {
        let length = length.min(self.length);
        let mut wanted = length;
        let mut whole = self.buffers.len();
        let mut cut = None;
        for buffer in self.buffers.iter_mut().rev() {
            let size = u64::from(buffer.length);
            if size > wanted {
                // Less than `size`, which has 32 bits.
                let back = wanted as u32;
                buffer.length -= back;
                let address = buffer.address.0.wrapping_add(size - wanted);
                let back = Buffer { address: GuestAddress(address), length: back, ..*buffer };
                cut = Some(back).filter(|back| back.length > 0);
                break;
            }
            whole -= 1;
            wanted -= size;
        }
        let buffers =
            cut.into_iter().chain(self.buffers.split_off(whole).iter().copied()).collect();
        self.length -= length;
        Self { buffers, length }
    }

    /// Takes the first bytes off and copies them to `bytes`; whether there were as many.
    ///
    /// # Errors
    /// [`Broken::Buffer`] when they are not in guest memory.
    pub fn read<M: GuestMemory>(&mut self, memory: &M, bytes: &mut [u8]) -> Result<bool, Broken> {
        let taken = bytes.len() as u64;
        if self.length < taken {
            return Ok(false);
        }
        let mut rest = bytes;
        for Buffer { address, length, .. } in self.behind(0) {
            if rest.is_empty() {
                break;
            }
            let here = rest.len().min(length as usize);
            let (piece, after) = rest.split_at_mut(here);
            memory.read_slice(piece, address).map_err(|_| Broken::Buffer { address, length })?;
            rest = after;
        }
        self.skip(taken);
        Ok(true)
    }

    /// Takes the first bytes off and writes `bytes` there; whether there was room.
    ///
    /// # Errors
    /// [`Broken::Buffer`] when they are not in guest memory.
    pub fn write<M: GuestMemory>(&mut self, memory: &M, bytes: &[u8]) -> Result<bool, Broken> {
        let written = self.write_at(memory, 0, bytes)?;
        if written {
            self.skip(bytes.len() as u64);
        }
        Ok(written)
    }

    /// Takes the first bytes off, of which there are as many.
    fn skip(&mut self, length: u64) {
        self.length -= length;
        let mut left = length;
        let mut whole = 0;
        for buffer in self.buffers.iter_mut() {
            let size = u64::from(buffer.length);
            if size > left {
                buffer.address.0 = buffer.address.0.wrapping_add(left);
                // Less than `size`, which has 32 bits.
                buffer.length -= left as u32;
                break;
            }
            whole += 1;
            left -= size;
        }
        self.buffers.remove_front(whole);
    }

    /// The pieces of guest memory that it is made of, in order, none of them empty.
    ///
    /// # Errors
    /// [`Broken::Buffer`] when one is not in guest memory.
    pub fn slices<'m, M: GuestMemory>(&self, memory: &'m M) -> Result<Vec<Slice<'m, M>>, Broken>
    where
        M::Bitmap: Bitmap,
    {
        let mut slices = Vec::with_capacity(self.buffers.len());
        self.add_slices(memory, 0, &mut slices)?;
        Ok(slices)
    }

    /// Adds the pieces of guest memory behind the first `skipped` bytes to others, as [`slices`](Self::slices).
    ///
    /// # Errors
    /// [`Broken::Buffer`] when one is not in guest memory.
    pub fn add_slices<'m, M: GuestMemory>(
        &self,
        memory: &'m M,
        skipped: u64,
        slices: &mut Vec<Slice<'m, M>>,
    ) -> Result<(), Broken>
    where
        M::Bitmap: Bitmap,
    {
        for Buffer { address, length, writable } in self.behind(skipped) {
            let access = if writable { Permissions::Write } else { Permissions::Read };
            let outside = |_| Broken::Buffer { address, length };
            for slice in memory.get_slices(address, length as usize, access).map_err(outside)? {
                slices.push(slice.map_err(outside)?);
            }
        }
        Ok(())
    }

    /// Writes `bytes` behind the first `offset` bytes; whether there was room.
    ///
    /// # Errors
    /// [`Broken::Buffer`] when they are not in guest memory.
    pub fn write_at<M: GuestMemory>(
        &self,
        memory: &M,
        offset: u64,
        bytes: &[u8],
    ) -> Result<bool, Broken> {
        if self.length < offset.saturating_add(bytes.len() as u64) {
            return Ok(false);
        }
        let mut rest = bytes;
        for Buffer { address, length, .. } in self.behind(offset) {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(rest.len().min(length as usize));
            memory.write_slice(piece, address).map_err(|_| Broken::Buffer { address, length })?;
            rest = after;
        }
        Ok(true)
    }

    /// The buffers without the first bytes and without those that are empty.
    fn behind(&self, mut skipped: u64) -> impl Iterator<Item = Buffer> {
        self.buffers.iter().filter_map(move |buffer| {
            // Less than or equal to its length, which has 32 bits.
            let here = skipped.min(buffer.length.into()) as u32;
            skipped -= u64::from(here);
            let address = GuestAddress(buffer.address.0.wrapping_add(here.into()));
            let length = buffer.length - here;
            (length > 0).then_some(Buffer { address, length, ..*buffer })
        })
    }
}

#[cfg(test)]
mod tests;
