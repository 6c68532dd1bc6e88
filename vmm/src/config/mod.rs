//! What the user asked for: a JSON file, flags, and the one rule that merges them.
//!
//! The rule: the file is read first, then each flag replaces the file's value of the same field.
//! Nothing else is combined, and nothing is guessed. [`crate::spec::Spec`] then says whether the
//! result makes sense.

mod args;
mod balloon;
mod change;
mod deferred;
mod drive;
mod file;
mod firecracker;
mod network;
mod output;
mod rate_limiter;
mod restore;
mod tag_storage;
mod vsock;

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::exit_status::ExitStatus;

pub use args::RunArgs;
pub use balloon::{BalloonFlag, BalloonSection, BalloonSetting, ParseBalloonError};
pub use change::ConfigChange;
pub use deferred::Deferred;
pub use drive::{CacheType, DiskFlag, DriveSection, IoEngine, ParseDiskError};
pub(crate) use file::Object;
pub use file::{
    BootSource, ClockMode, Config, EntropySection, HugePages, MachineConfig, MemoryBacking,
    MteMode, MteSection, SerialSection,
};
pub use firecracker::{FirecrackerArgs, UnsupportedOption};
pub use network::{NetBackend, NetFlag, NetworkInterfaceSection, ParseNetError};
pub use output::{LogLevel, LoggerSection, MetricsSection};
pub use rate_limiter::{RateLimiterSection, TokenBucketSection};
pub use restore::{
    RestoreChanges, RestoreChangesError, RestoreMemory, RestoreRequest, SnapshotFiles, VsockChange,
};
pub use tag_storage::{
    ExhaustedFlag, OnExhausted, ParseExhaustedError, TagStorageMode, TagStorageSection,
};
pub use vsock::{ParseVsockError, VsockFlag, VsockSection};

/// Why a configuration could not be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any configuration can be.
    #[error("the configuration file {} is over {limit} bytes: it is not a configuration", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// A VM cannot be restored so.
    #[error(transparent)]
    Restore(#[from] RestoreChangesError),
    /// The file is not the JSON that is expected.
    #[error("the configuration file {} cannot be used; see resources/openapi.yaml for the fields", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Read { source, .. } => ExitStatus::for_input(source.kind()),
            Self::TooLarge { .. } | Self::Parse { .. } | Self::Restore(_) => ExitStatus::Config,
        }
    }
}

/// What no configuration file can say.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommandLineOnly<'a> {
    /// Where the configuration file itself is.
    pub config: Option<&'a Path>,
    /// Where the control socket is to be.
    pub api_sock: Option<&'a Path>,
    /// The snapshot that the VM is restored from.
    pub snapshot: Option<&'a SnapshotFiles>,
    /// The VM's name.
    pub id: Option<&'a str>,
    /// Whether the files of sockets stay when the VM has ended.
    pub leave_sockets: bool,
}

impl RunArgs {
    /// The file named by `--config`, if any, with the other flags laid over it.
    ///
    /// # Errors
    /// When the file cannot be read or does not have the expected form.
    pub fn merge(&self) -> Result<Config, Error> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        self.lay_over(&mut config);
        Ok(config)
    }

    /// What is not part of the configuration.
    pub fn command_line_only(&self) -> CommandLineOnly<'_> {
        CommandLineOnly {
            config: self.config.as_deref(),
            api_sock: self.api_sock.as_deref(),
            // Its configuration is known when it is read.
            snapshot: None,
            id: self.id.as_deref(),
            leave_sockets: self.leave_sockets,
        }
    }

    fn lay_over(&self, config: &mut Config) {
        let any = self.kernel.is_some()
            || self.initrd.is_some()
            || self.cmdline.is_some()
            || self.bare_cmdline
            || self.boot_image;
        if any {
            let boot = config.boot_source.get_or_insert_default();
            replace(&mut boot.kernel_image_path, &self.kernel);
            replace(&mut boot.initrd_path, &self.initrd);
            replace(&mut boot.boot_args, &self.cmdline);
            if self.bare_cmdline {
                boot.bare_boot_args = Some(true);
            }
            if self.boot_image {
                boot.boot_image = Some(true);
            }
        }
        self.lay_over_machine(config);
        self.lay_over_tag_storage(config);
        if let Some(flag) = self.balloon {
            config.balloon = std::mem::take(&mut config.balloon).with(flag);
        }
        if self.no_balloon {
            config.balloon = BalloonSetting::None;
        }
        if !self.disk.is_empty() {
            let disks = self.disk.iter().enumerate();
            config.drives = disks.map(|(index, disk)| disk.to_section(index)).collect();
        }
        if !self.net.is_empty() {
            config.network_interfaces = network::sections(&self.net);
        }
        if self.rng {
            config.entropy.get_or_insert_default();
        }
        if let Some(flag) = &self.vsock {
            flag.lay_over(&mut config.vsock);
        }
        if let Some(mode) = self.mte {
            config.mte = Some(MteSection { mode });
        }
        if let Some(serial) = &self.serial {
            config.serial = Some(SerialSection::from_flag(serial));
        }
        if self.log.is_some() {
            replace(&mut config.logger.get_or_insert_default().log_path, &self.log);
        }
        if let Some(path) = &self.metrics {
            let emit_id = config.metrics.take().and_then(|section| section.emit_id);
            config.metrics = Some(MetricsSection { metrics_path: path.clone(), emit_id });
        }
    }

    fn lay_over_tag_storage(&self, config: &mut Config) {
        let any = self.tag_storage.is_some()
            || self.broker.is_some()
            || self.tag_min.is_some()
            || self.tag_max.is_some()
            || self.on_exhausted.is_some();
        if !any {
            return;
        }
        let section = config.tag_storage.get_or_insert_default();
        replace(&mut section.mode, &self.tag_storage);
        replace(&mut section.broker, &self.broker);
        if self.tag_min.is_some() {
            (section.min_kib, section.min) = (None, self.tag_min);
        }
        if self.tag_max.is_some() {
            (section.max_kib, section.max) = (None, self.tag_max);
        }
        if let Some(flag) = self.on_exhausted {
            flag.lay_over(section);
        }
    }

    fn lay_over_machine(&self, config: &mut Config) {
        let any = self.memory.is_some()
            || self.cpus.is_some()
            || self.memory_backing.is_some()
            || self.pmu
            || self.clock.is_some()
            || self.lock_memory
            || self.track_dirty_pages;
        if !any {
            return;
        }
        let machine = config.machine_config.get_or_insert_default();
        replace(&mut machine.vcpu_count, &self.cpus);
        replace(&mut machine.memory_backing, &self.memory_backing);
        replace(&mut machine.clock, &self.clock);
        if let Some(size) = self.memory {
            machine.mem_size_mib = None;
            machine.mem_size = Some(size);
        }
        if self.pmu {
            machine.pmu = Some(true);
        }
        if self.lock_memory {
            machine.lock_memory = Some(true);
        }
        if self.track_dirty_pages {
            machine.track_dirty_pages = Some(true);
        }
    }
}

fn replace<T: Clone>(field: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        field.clone_from(flag);
    }
}

#[cfg(test)]
mod tests;
