//! A VM of a snapshot: the configuration that was saved with it, and what another host may have otherwise.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{
    ClockMode, Config, DriveSection, LoggerSection, MachineConfig, MetricsSection,
    NetworkInterfaceSection, RunArgs, SerialSection, TagStorageMode, TagStorageSection,
};

/// The files of a snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotFiles {
    /// The machine, and what its host must have.
    pub state: PathBuf,
    /// Guest memory.
    pub memory: PathBuf,
}

impl SnapshotFiles {
    /// Those in a folder that `tesseractl snapshot` writes and `--restore` reads.
    pub fn in_folder(folder: &Path) -> Self {
        Self { state: folder.join("state"), memory: folder.join("memory") }
    }
}

/// What is to be restored, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RestoreRequest {
    /// The snapshot.
    pub files: SnapshotFiles,
    /// Where its memory comes from.
    pub memory: RestoreMemory,
    /// Whether the guest runs then.
    pub resume: bool,
    /// What differs from the VM that was saved.
    pub changes: RestoreChanges,
}

/// Where the memory of a restored VM comes from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RestoreMemory {
    /// From the file, before the guest runs.
    #[default]
    Eager,
    /// From the file, as the guest touches it.
    Lazy {
        /// Whether it is recorded what the guest touches first.
        record: bool,
    },
    /// From the template of the snapshot, which another process holds.
    Shared,
}

impl RestoreMemory {
    /// As flags, or fields of a request, say it.
    ///
    /// # Errors
    /// When they do not go together.
    pub fn of(lazy: bool, shared: bool, record: bool) -> Result<Self, RestoreChangesError> {
        match (lazy, shared) {
            (false, _) if record => Err(RestoreChangesError::RecordEager),
            (false, false) => Ok(Self::Eager),
            (true, false) => Ok(Self::Lazy { record }),
            (false, true) => Ok(Self::Shared),
            (true, true) => Err(RestoreChangesError::LazyShared),
        }
    }
}

/// What a restored VM may have otherwise than the one that was saved: what is the host's, and not the guest's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RestoreChanges {
    /// Where the serial port goes; the saved VM's place is never taken.
    pub serial: Option<SerialSection>,
    /// Where messages go; the same holds.
    pub logger: Option<LoggerSection>,
    /// Where counters are written; the same holds.
    pub metrics: Option<MetricsSection>,
    /// Other files behind disks, by name.
    pub disks: Vec<DriveSection>,
    /// Other backends of network interfaces, by name.
    pub net: Vec<NetworkInterfaceSection>,
    /// Another Unix socket for the guest's sockets.
    pub vsock: Option<VsockChange>,
    /// Those fields of tag storage that are given.
    pub tag_storage: TagStorageSection,
    /// What the counter does while the VM is paused.
    pub clock: Option<ClockMode>,
    /// Whether it is recorded which pages of guest memory change; the saved VM's word does not count.
    pub track_dirty_pages: bool,
}

/// Another Unix socket for the guest's sockets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VsockChange {
    /// Where processes of the host connect.
    pub path: PathBuf,
    /// The guest's context identifier, which cannot change.
    pub cid: Option<u32>,
}

/// Changes with which a snapshot cannot be restored.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum RestoreChangesError {
    /// A flag for the machine.
    #[error(
        "{0} cannot be given with --restore, as the machine is that of the snapshot: leave it out"
    )]
    Flag(&'static str),
    /// Memory comes from one place.
    #[error(
        "memory that is shared is not read later, as a template has all of it: leave out lazy, or shared"
    )]
    LazyShared,
    /// What is read before is not touched first.
    #[error(
        "a working set is recorded of memory that is read as it is touched: give lazy as well, or do not record it"
    )]
    RecordEager,
    /// A section for the machine, in Firecracker's words.
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    Configured,
    /// A change of what is not there.
    #[error("the snapshot has no {kind} '{id}'; it has {known}")]
    NoSuch {
        /// What is changed.
        kind: &'static str,
        /// Its name.
        id: String,
        /// The names that there are.
        known: String,
    },
    /// A path for sockets of a guest that has none.
    #[error("the snapshot has no vsock device: leave out its path (--vsock, vsock_override)")]
    NoVsock,
    /// Something that the guest has seen.
    #[error("the guest of the snapshot knows its {what} as {saved}: leave out {given}")]
    Fixed {
        /// What it is.
        what: &'static str,
        /// What it was.
        saved: String,
        /// What is asked for.
        given: String,
    },
    /// A descriptor, which means nothing in another process.
    #[error(
        "the network interface {0} had a tap that its process was started with: say what it has now, with --net \
         ...,id={0} or network_overrides"
    )]
    Descriptor(String),
}

impl RunArgs {
    /// What `--restore` asks for, if it is given.
    ///
    /// # Errors
    /// When a flag is given that would change the machine.
    pub fn restore_request(&self) -> Result<Option<RestoreRequest>, RestoreChangesError> {
        let Some(folder) = &self.restore else { return Ok(None) };
        Ok(Some(RestoreRequest {
            files: SnapshotFiles::in_folder(folder),
            memory: RestoreMemory::of(self.lazy, self.shared, self.record_working_set)?,
            resume: !self.paused,
            changes: self.restore_changes()?,
        }))
    }

    fn restore_changes(&self) -> Result<RestoreChanges, RestoreChangesError> {
        // Each by name, so that a new one is put where it belongs.
        let Self {
            kernel,
            initrd,
            cmdline,
            bare_cmdline,
            boot_image,
            memory,
            memory_backing,
            lock_memory,
            track_dirty_pages,
            cpus,
            pmu,
            mte,
            balloon,
            no_balloon,
            rng,
            config,
            clock,
            vsock,
            tag_storage: _,
            broker: _,
            tag_min: _,
            tag_max: _,
            on_exhausted: _,
            disk: _,
            net: _,
            serial: _,
            log: _,
            metrics: _,
            api_sock: _,
            id: _,
            restore: _,
            lazy: _,
            record_working_set: _,
            shared: _,
            paused: _,
            sandbox: _,
            allow: _,
            jail: _,
            leave_sockets: _,
        } = self;
        let of_the_machine = [
            ("--kernel", kernel.is_some()),
            ("--initrd", initrd.is_some()),
            ("--cmdline", cmdline.is_some()),
            ("--bare-cmdline", *bare_cmdline),
            ("--boot-image", *boot_image),
            ("--memory", memory.is_some()),
            ("--memory-backing", memory_backing.is_some()),
            ("--lock-memory", *lock_memory),
            ("--cpus", cpus.is_some()),
            ("--pmu", *pmu),
            ("--mte", mte.is_some()),
            ("--balloon", balloon.is_some()),
            ("--no-balloon", *no_balloon),
            ("--rng", *rng),
            ("--config", config.is_some()),
        ];
        if let Some((flag, _)) = of_the_machine.into_iter().find(|(_, given)| *given) {
            return Err(RestoreChangesError::Flag(flag));
        }
        let mut flags = Config::default();
        self.lay_over(&mut flags);
        Ok(RestoreChanges {
            serial: flags.serial,
            logger: flags.logger,
            metrics: flags.metrics,
            disks: flags.drives,
            net: flags.network_interfaces,
            vsock: vsock.as_ref().map(|flag| flag.to_change()),
            tag_storage: flags.tag_storage.unwrap_or_default(),
            clock: *clock,
            track_dirty_pages: *track_dirty_pages,
        })
    }
}

impl Config {
    /// What a client has configured of a VM that it then restores.
    ///
    /// # Errors
    /// When that is more than what is the host's.
    pub fn restore_changes(self) -> Result<RestoreChanges, RestoreChangesError> {
        let Self { serial, logger, metrics, tag_storage, machine_config, .. } = self.clone();
        let clock = machine_config.and_then(|machine| machine.clock);
        let mut of_the_host = Self::default();
        of_the_host.machine_config =
            clock.map(|clock| MachineConfig { clock: Some(clock), ..MachineConfig::default() });
        of_the_host.serial = serial.clone();
        of_the_host.logger = logger.clone();
        of_the_host.metrics = metrics.clone();
        of_the_host.tag_storage = tag_storage.clone();
        if self != of_the_host {
            return Err(RestoreChangesError::Configured);
        }
        let tag_storage = tag_storage.unwrap_or_default();
        Ok(RestoreChanges { serial, logger, metrics, tag_storage, clock, ..Default::default() })
    }

    /// The configuration of a restored VM, which [`crate::spec::Spec`] then checks as any other.
    ///
    /// Serial port, log and counters are this VM's own. All else is as it was saved, unless it is changed.
    ///
    /// # Errors
    /// When a change is of what the snapshot does not have, or of what its guest has seen.
    pub fn restored(saved: Self, changes: RestoreChanges) -> Result<Self, RestoreChangesError> {
        let mut config = saved;
        (config.serial, config.logger) = (changes.serial, changes.logger);
        config.metrics = changes.metrics;
        for disk in changes.disks {
            change_disk(&mut config.drives, disk)?;
        }
        let interfaces = &mut config.network_interfaces;
        let is_changed = |id: &str| changes.net.iter().any(|change| change.iface_id == id);
        let was_passed = |interface: &&NetworkInterfaceSection| {
            interface.fd.is_some() && !is_changed(&interface.iface_id)
        };
        if let Some(interface) = interfaces.iter().find(was_passed) {
            return Err(RestoreChangesError::Descriptor(interface.iface_id.clone()));
        }
        for change in changes.net {
            change_interface(interfaces, change)?;
        }
        if let Some(VsockChange { path, cid }) = changes.vsock {
            let vsock = config.vsock.as_mut().ok_or(RestoreChangesError::NoVsock)?;
            let fits = cid.is_none_or(|cid| cid == vsock.guest_cid);
            fixed("context identifier (cid)", fits, &vsock.guest_cid, &cid.unwrap_or_default())?;
            vsock.uds_path = path;
        }
        let tags = config.tag_storage.take().unwrap_or_default();
        config.tag_storage = Some(tags.changed(changes.tag_storage));
        let machine = config.machine_config.get_or_insert_default();
        machine.clock = changes.clock.or(machine.clock);
        machine.track_dirty_pages = Some(changes.track_dirty_pages);
        Ok(config)
    }
}

/// Nothing, if what the guest knows stays as it is.
fn fixed(
    what: &'static str,
    fits: bool,
    saved: &impl ToString,
    given: &impl ToString,
) -> Result<(), RestoreChangesError> {
    match fits {
        true => Ok(()),
        false => Err(RestoreChangesError::Fixed {
            what,
            saved: saved.to_string(),
            given: given.to_string(),
        }),
    }
}

/// The one of a list that has a name.
fn named<'a, T>(
    list: &'a mut [T],
    kind: &'static str,
    name: impl Fn(&T) -> &String,
    id: &str,
) -> Result<&'a mut T, RestoreChangesError> {
    match list.iter().position(|item| name(item) == id) {
        Some(at) => Ok(&mut list[at]),
        None => {
            let names: Vec<_> = list.iter().map(|item| name(item).as_str()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(RestoreChangesError::NoSuch { kind, id: id.to_owned(), known })
        }
    }
}

fn change_disk(
    disks: &mut [DriveSection],
    change: DriveSection,
) -> Result<(), RestoreChangesError> {
    let disk = named(disks, "disk", |disk| &disk.drive_id, &change.drive_id)?;
    // The guest has seen it as writable.
    let fits = disk.is_read_only || !change.is_read_only;
    fixed("disk", fits, &format!("{} to write to", disk.drive_id), &"ro")?;
    disk.path_on_host = change.path_on_host;
    disk.direct = change.direct.or(disk.direct);
    Ok(())
}

fn change_interface(
    interfaces: &mut [NetworkInterfaceSection],
    change: NetworkInterfaceSection,
) -> Result<(), RestoreChangesError> {
    let id = &change.iface_id;
    let interface = named(interfaces, "network interface", |interface| &interface.iface_id, id)?;
    if let Some(mac) = &change.guest_mac {
        let saved = interface.guest_mac.clone().unwrap_or_default();
        fixed("address (mac)", saved.eq_ignore_ascii_case(mac), &saved, mac)?;
    }
    if let Some(mtu) = change.mtu {
        let saved = interface.mtu.map_or("none".to_owned(), |mtu| mtu.to_string());
        fixed("MTU", interface.mtu == Some(mtu), &saved, &mtu)?;
    }
    interface.backend = change.backend;
    interface.host_dev_name = change.host_dev_name;
    interface.fd = change.fd;
    interface.socket = change.socket;
    interface.forward = change.forward;
    Ok(())
}

impl TagStorageSection {
    /// The section with those fields replaced that a change has.
    fn changed(self, change: Self) -> Self {
        let other_mode = change.mode.is_some_and(|mode| Some(mode) != self.mode);
        let saved = match change.mode {
            Some(TagStorageMode::Off) => Self::default(),
            // What it says of a wait is of the mode before.
            Some(_) if other_mode => Self { on_exhausted: None, deadline_s: None, ..self },
            // A broker says when, unless something else does.
            None if change.broker.is_some() && self.mode == Some(TagStorageMode::Off) => {
                Self { mode: None, ..self }
            }
            _ => self,
        };
        let sizes = |change: (Option<_>, Option<_>), saved| match change {
            (None, None) => saved,
            given => given,
        };
        let (min_kib, min) = sizes((change.min_kib, change.min), (saved.min_kib, saved.min));
        let (max_kib, max) = sizes((change.max_kib, change.max), (saved.max_kib, saved.max));
        Self {
            mode: change.mode.or(saved.mode),
            broker: change.broker.or(saved.broker),
            min_kib,
            min,
            max_kib,
            max,
            on_exhausted: change.on_exhausted.or(saved.on_exhausted),
            deadline_s: change.deadline_s.or(saved.deadline_s),
        }
    }
}

#[cfg(test)]
mod tests;
