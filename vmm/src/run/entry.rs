//! The VM's entry in the registry of its user.

use super::{Error, Request};
use crate::config::CommandLineOnly;
use crate::error::{chain, say};
use crate::registry::{Entry, Publication};

/// Lists the VM among those of its user. What a client configures later is asked of the control socket.
///
/// # Errors
/// When a VM of this id runs. Where there is no registry, the VM runs without an entry.
pub(super) fn publish(
    request: &Request<'_>,
    flags: CommandLineOnly<'_>,
) -> Result<Option<Entry>, Error> {
    let (vsock, serial) = match request {
        Request::Start { spec, .. } | Request::Restore { spec, .. } => {
            let vsock = spec.vsock.as_ref().map(|vsock| vsock.to_section().uds_path);
            (vsock, Some(spec.serial.to_string()))
        }
        Request::Wait(_) => (None, None),
    };
    let vm = Publication {
        id: flags.id,
        api_sock: flags.api_sock,
        vsock: vsock.as_deref(),
        serial: serial.as_deref(),
    };
    match Entry::publish(&vm) {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if error.forbids_start() => Err(error.into()),
        Err(error) => {
            say(&format!("`tesseractl list` does not show this VM: {}", chain(&error)));
            Ok(None)
        }
    }
}
