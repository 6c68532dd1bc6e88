//! A chunk of memory aside from the guest's, of the same kind: it is filled, and its pages are moved to the guest.

use arch::layout::CHUNK;

use super::Error;
use super::backing::{Attributes, Backing};
use super::ram::GuestRam;

/// One chunk of memory that no guest sees.
#[derive(Debug)]
pub(crate) struct Aside(GuestRam);

impl Aside {
    /// A chunk of anonymous memory like this; none of it is populated.
    ///
    /// # Errors
    /// When the host cannot give it.
    pub(crate) fn like(ram: &GuestRam) -> Result<Self, Error> {
        let attributes = Attributes { backing: Backing::Anonymous, ..ram.attributes() };
        Ok(Self(GuestRam::aside(CHUNK, attributes)?))
    }

    /// The memory: offsets into it are those into the chunk.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.0
    }
}
