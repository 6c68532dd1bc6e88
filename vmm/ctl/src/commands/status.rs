//! What one VM says of itself.

use serde_json::json;

use crate::cli::OfVm;
use crate::failure::Failure;
use crate::output::Form;
use crate::report;
use crate::target::Target;

/// State and shape.
///
/// # Errors
/// When the VM cannot be reached or refuses; so for those below.
pub fn status(of: &OfVm, form: Form) -> Result<(), Failure> {
    let target = Target::find(&of.vm)?;
    let mut client = target.client()?;
    let instance = client.instance()?;
    let version = client.version()?;
    let config = client.vm_config()?;
    let answer = json!({ "instance": instance, "version": version, "config": config });
    form.show(&answer, |_| report::status(&instance, &version, &config))
}

/// What the guest costs the host.
///
/// # Errors
/// See [`status`].
pub fn footprint(of: &OfVm, form: Form) -> Result<(), Failure> {
    form.show(&Target::find(&of.vm)?.client()?.footprint()?, report::footprint)
}

/// Tag storage.
///
/// # Errors
/// See [`status`].
pub fn tag_storage(of: &OfVm, form: Form) -> Result<(), Failure> {
    form.show(&Target::find(&of.vm)?.client()?.tag_storage()?, report::tag_storage)
}
