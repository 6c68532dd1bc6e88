//! Where those who may end the VM say so.

use std::cell::RefCell;
use std::rc::Rc;

use super::ending::Ending;

/// Where those who may end the VM say so; the first one counts.
#[derive(Clone, Debug, Default)]
pub struct Finish(Rc<RefCell<Option<Ending>>>);

impl Finish {
    /// Ends the VM after the present turn of the event loop.
    pub fn with(&self, ending: Ending) {
        self.0.borrow_mut().get_or_insert(ending);
    }

    /// How the VM ends, if somebody has said so.
    #[cfg(any(target_arch = "aarch64", test))]
    pub(super) fn take(&self) -> Option<Ending> {
        self.0.borrow_mut().take()
    }
}
