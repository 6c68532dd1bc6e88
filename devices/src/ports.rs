//! What device models need of the machine around them.
//!
//! The VMM implements these traits, over KVM or otherwise; tests implement them with counters.

use std::io;
use std::sync::Arc;

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
    /// What the machine answered. A model counts failures and goes on: a guest cannot be told that
    /// its interrupt controller is gone.
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
