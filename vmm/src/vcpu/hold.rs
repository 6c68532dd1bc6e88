//! vCPUs that are kept out of the guest for a moment.

use std::sync::{Arc, OnceLock, Weak};

use super::thread::VcpuThread;

/// Keeps all vCPUs of a VM out of the guest for a moment, without a pause of the VM: devices and the guest's clock go
/// on. Clones hold the same vCPUs; there are none before [`VcpuSet::give_to`](super::VcpuSet::give_to).
#[derive(Clone, Default)]
pub struct Hold(Arc<OnceLock<Weak<[VcpuThread]>>>);

/// The vCPUs stay out of the guest until this is dropped.
#[must_use]
pub struct Held(Option<Arc<[VcpuThread]>>);

impl Hold {
    /// The first vCPUs count.
    pub(super) fn set(&self, threads: &Arc<[VcpuThread]>) {
        let _ = self.0.set(Arc::downgrade(threads));
    }

    /// Has all vCPUs leave the guest. None is waited for: one that serves an exit may want what the caller has locked.
    pub fn hold(&self) -> Held {
        let threads = self.0.get().and_then(Weak::upgrade);
        for thread in threads.iter().flat_map(|threads| threads.iter()) {
            thread.hold();
        }
        Held(threads)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for thread in self.0.iter().flat_map(|threads| threads.iter()) {
            thread.release();
        }
    }
}

#[cfg(test)]
mod tests;
