//! The VM's entry in the registry of its user.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::{Error, Request};
use crate::config::CommandLineOnly;
use crate::error::{chain, say};
use crate::registry::{Entry, Publication};
use crate::spec::Spec;

/// The entry of this process's VM, if it has one. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed(Rc<RefCell<Option<Entry>>>);

impl Listed {
    pub(super) fn new(entry: Option<Entry>) -> Self {
        Self(Rc::new(RefCell::new(entry)))
    }

    /// Says of a VM that a client has configured what it was started with.
    pub(super) fn update(&self, spec: &Spec, flags: CommandLineOnly<'_>) {
        let Some(entry) = &mut *self.0.borrow_mut() else { return };
        if let Err(error) = with_publication(flags, Some(spec), |vm| entry.update(vm)) {
            let error = chain(&error);
            say(&format!("`tesseractl list` shows this VM as it was before its start: {error}"));
        }
    }

    /// Ends the entry.
    pub(super) fn remove(&self) {
        drop(self.0.borrow_mut().take());
    }
}

/// Lists the VM among those of its user. One that a client configures says the rest at its start.
///
/// # Errors
/// When a VM of this id runs. Where there is no registry, the VM runs without an entry.
pub(super) fn publish(
    request: &Request<'_>,
    flags: CommandLineOnly<'_>,
) -> Result<Option<Entry>, Error> {
    let spec = match request {
        Request::Start { spec, .. } | Request::Restore { spec, .. } => Some(&**spec),
        Request::Wait(_) => None,
    };
    match with_publication(flags, spec, Entry::publish) {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if error.forbids_start() => Err(error.into()),
        Err(error) => {
            say(&format!("`tesseractl list` does not show this VM: {}", chain(&error)));
            Ok(None)
        }
    }
}

/// What the VM lets others know.
fn with_publication<T>(
    flags: CommandLineOnly<'_>,
    spec: Option<&Spec>,
    publish: impl FnOnce(&Publication<'_>) -> T,
) -> T {
    let vsock = spec.and_then(|spec| spec.vsock.as_ref()).map(|vsock| vsock.to_section().uds_path);
    let serial = spec.map(|spec| spec.serial.to_string());
    publish(&Publication {
        id: flags.id,
        api_sock: flags.api_sock,
        vsock: vsock.as_deref().map(Path::new),
        serial: serial.as_deref(),
    })
}
