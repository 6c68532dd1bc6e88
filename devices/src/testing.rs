//! Ports for unit tests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ports::IrqLine;

/// A state as it comes out of a file.
#[allow(clippy::unwrap_used)]
pub(crate) fn through_a_file<S: Serialize + DeserializeOwned>(state: &S) -> S {
    postcard::from_bytes(&postcard::to_allocvec(state).unwrap()).unwrap()
}

/// An interrupt line that counts its edges. Clones count together.
#[derive(Clone, Default)]
pub(crate) struct CountingLine(Arc<AtomicUsize>);

impl CountingLine {
    /// Edges since the last call.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl IrqLine for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// An interrupt line that is cut.
pub(crate) struct BrokenLine;

impl IrqLine for BrokenLine {
    fn trigger(&self) -> io::Result<()> {
        Err(io::Error::other("the line is cut"))
    }
}
