//! The last resort: SIGKILL for the process of a VM.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmm::registry::Vm;

use crate::cli::OfVm;
use crate::failure::Failure;
use crate::output::Form;
use crate::target::{Target, listing};
use crate::waiting::Waiting;

/// How long the kernel may take to free the memory of a guest.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kills the process that holds the entry of a VM, waits until it has ended, and removes the sockets it leaves.
///
/// # Errors
/// When the VM is not in the registry, has ended, or does not end.
pub fn kill(of: &OfVm, form: Form) -> Result<(), Failure> {
    let target = Target::find(&of.vm)?;
    let vm = target.listed()?;
    let process = target.process()?;
    process.kill()?;
    let waiting = Waiting::on(format!("{} is to end", target.name()));
    if !process.has_ended(PATIENCE) {
        return Err(Failure::refused(format!(
            "process {} does not end: the kernel holds it, see /proc/{}/stack",
            vm.record.pid, vm.record.pid
        )));
    }
    drop(waiting);
    clean(vm);
    form.outcome("killed")
}

/// Removes what the VM would have removed.
fn clean(vm: &Vm) {
    // Stale entries go when they are seen.
    let _ = listing();
    let record = &vm.record;
    let sockets = [record.api_sock.as_deref(), record.vsock.as_deref(), record.serial_socket()];
    for path in sockets.into_iter().flatten() {
        if is_left_over(path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether this is a socket of this user at which no process listens.
fn is_left_over(path: &Path) -> bool {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return false };
    metadata.file_type().is_socket()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}
