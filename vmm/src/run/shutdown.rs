//! Where those who may end the VM say so.

use std::cell::RefCell;
use std::rc::Rc;

use super::exit_reason::ExitReason;

/// Where those who may end the VM say so; the first one counts.
#[derive(Clone, Debug, Default)]
pub struct ShutdownRequest(Rc<RefCell<Option<ExitReason>>>);

impl ShutdownRequest {
    /// Ends the VM after the present turn of the event loop.
    pub fn with(&self, reason: ExitReason) {
        self.0.borrow_mut().get_or_insert(reason);
    }

    /// How the VM ends, if that has been requested.
    pub(super) fn take(&self) -> Option<ExitReason> {
        self.0.borrow_mut().take()
    }
}
