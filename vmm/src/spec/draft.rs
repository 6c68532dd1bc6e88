//! A description that is made piece by piece, and may lack its kernel.

use arch::units::Bytes;

use super::{BalloonSpec, Error, Spec};
use crate::config::{CommandLineOnly, Config};

/// A checked description of a VM that has not started.
#[derive(Clone, Debug)]
pub struct Draft(Spec);

impl Draft {
    /// Checks a configuration as [`Spec::new`] does, but for the kernel, which may come later.
    ///
    /// # Errors
    /// When the configuration makes no sense, whatever the host.
    pub fn new(config: Config, flags: CommandLineOnly<'_>) -> Result<Self, Error> {
        Spec::without_kernel(config, flags).map(Self)
    }

    /// Whether a kernel is named.
    pub fn has_kernel(&self) -> bool {
        self.0.named_kernel().is_some()
    }

    /// The same description as a configuration, defaults filled in.
    pub fn to_config(&self) -> Config {
        self.0.to_config()
    }

    /// The memory balloon.
    pub fn balloon(&self) -> Option<BalloonSpec> {
        self.0.balloon
    }

    /// The guest's memory.
    pub fn memory(&self) -> Bytes {
        self.0.memory
    }

    /// The VM's name.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The description, a kernel that is not named having an empty path.
    pub fn spec_mut(&mut self) -> &mut Spec {
        &mut self.0
    }

    /// The finished description.
    ///
    /// # Errors
    /// When no kernel is named.
    pub fn into_spec(self) -> Result<Spec, Error> {
        match self.has_kernel() {
            true => Ok(self.0),
            false => Err(Error::NoKernel),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::config::{BootSource, MachineConfig};

    #[test]
    fn a_draft_lacks_its_kernel_and_nothing_else() {
        let flags = CommandLineOnly::default();
        let mut config = Config::default();
        let draft = Draft::new(config.clone(), flags).unwrap();
        assert!(!draft.has_kernel());
        assert_eq!(draft.to_config().boot_source.unwrap().kernel_image_path, None);
        assert_eq!(draft.into_spec().unwrap_err(), Error::NoKernel);

        config.machine_config =
            Some(MachineConfig { vcpu_count: Some(0), ..MachineConfig::default() });
        assert_eq!(Draft::new(config.clone(), flags).unwrap_err(), Error::NoCpus);

        let kernel = Some("Image".into());
        config.machine_config = None;
        config.boot_source =
            Some(BootSource { kernel_image_path: kernel, ..BootSource::default() });
        assert_eq!(
            Draft::new(config, flags).unwrap().into_spec().unwrap().kernel,
            Path::new("Image")
        );
    }
}
