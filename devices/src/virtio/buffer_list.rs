//! The buffers of a chain, in order.

use std::ops::{Deref, DerefMut};
use std::slice;

use super::Buffer;

/// A list of buffers. Most chains of a network have one, for which nothing is allocated: a frame that the driver gets
/// can lie in dozens of them.
#[derive(Clone, Debug)]
pub(super) enum BufferList {
    One(Buffer),
    Many(Vec<Buffer>),
}

impl BufferList {
    pub(super) fn push(&mut self, buffer: Buffer) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, buffer]),
            Self::Many(list) if list.is_empty() && list.capacity() == 0 => {
                *self = Self::One(buffer)
            }
            Self::Many(list) => list.push(buffer),
        }
    }

    /// Removes the first `count` buffers, of which there are as many.
    pub(super) fn remove_front(&mut self, count: usize) {
        match self {
            Self::One(_) if count > 0 => *self = Self::default(),
            Self::One(_) => {}
            Self::Many(list) => drop(list.drain(..count)),
        }
    }

    /// Removes the buffers from this one on, and returns them.
    pub(super) fn split_off(&mut self, first: usize) -> Self {
        match self {
            _ if first == self.len() => Self::default(),
            _ if first == 0 => std::mem::take(self),
            Self::One(_) => Self::default(),
            Self::Many(list) => list.drain(first..).collect(),
        }
    }
}

impl Default for BufferList {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Deref for BufferList {
    type Target = [Buffer];

    fn deref(&self) -> &[Buffer] {
        match self {
            Self::One(buffer) => slice::from_ref(buffer),
            Self::Many(list) => list,
        }
    }
}

impl DerefMut for BufferList {
    fn deref_mut(&mut self) -> &mut [Buffer] {
        match self {
            Self::One(buffer) => slice::from_mut(buffer),
            Self::Many(list) => list,
        }
    }
}

impl FromIterator<Buffer> for BufferList {
    fn from_iter<I: IntoIterator<Item = Buffer>>(buffers: I) -> Self {
        let mut list = Self::default();
        buffers.into_iter().for_each(|buffer| list.push(buffer));
        list
    }
}

impl PartialEq for BufferList {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for BufferList {}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn list(addresses: impl IntoIterator<Item = u64>) -> BufferList {
        let buffer = |address| Buffer { address: GuestAddress(address), length: 1, writable: true };
        addresses.into_iter().map(buffer).collect()
    }

    #[test]
    fn lists_of_any_length_are_cut_anywhere() {
        for length in 0..5 {
            for cut in 0..=length {
                let mut front = list(0..length);
                let back = front.split_off(cut as usize);
                assert_eq!((front, back), (list(0..cut), list(cut..length)));

                let mut rest = list(0..length);
                rest.remove_front(cut as usize);
                assert_eq!(rest, list(cut..length));
                rest.push(list([9])[0]);
                assert_eq!(rest, list((cut..length).chain([9])));
            }
        }
    }
}
