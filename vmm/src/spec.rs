//! A validated description of one VM: everything that can be checked without asking the host.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use arch::fdt::MAX_COMMAND_LINE;
use arch::layout;
use arch::units::Bytes;
use linux_loader::cmdline::{self, Cmdline};
use thiserror::Error;

use crate::config::{
    BalloonSetting, BootSource, ClockMode, CommandLineOnly, Config, EntropySection, HugePages,
    LoggerSection, MachineConfig, MemoryBacking, MetricsSection, MteMode, MteSection,
    SerialSection, SnapshotFiles, TagStorageMode, TagStorageSection,
};
use crate::folder::folder_of;
use crate::vm_id::{RULE, is_vm_id};

mod balloon;
mod disk;
mod draft;
mod network;
mod rate_limiter;
mod tag_storage;
mod vsock;

pub use balloon::{
    BalloonSpec, Error as BalloonError, default_floor as default_balloon_floor,
    floor as balloon_floor, target as balloon_target,
};
pub use disk::{DiskError, DiskSpec};
pub use draft::Draft;
pub use network::{NetBackendSpec, NetError, NetSpec, PortForward};
pub use rate_limiter::{BucketChange, BucketSpec, RateLimiterChange, RateLimiterSpec, RefillError};
pub use tag_storage::{ReservationMode, TagStorageSpec};
pub use vsock::VsockSpec;

/// Memory of a guest for which none was asked.
const DEFAULT_MEMORY: Bytes = Bytes::mib(512);

/// The widest guest-physical address of any host, in bits; the host at hand may have fewer.
const ANY_HOST_IPA_BITS: u8 = 52;

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// The whole command line that the guest gets.
    pub command_line: String,
    /// Whether the VMM adds nothing to it.
    pub bare_command_line: bool,
    /// Whether kernel and initrd are those that a process holds for several VMs.
    pub boot_image: bool,
    /// Guest memory: a multiple of [`layout::CHUNK`], at least [`layout::MIN_MEMORY`].
    pub memory: Bytes,
    /// Huge pages behind guest memory.
    pub huge_pages: HugePages,
    /// What guest memory is made of; [`HugePages::TwoMib`] if and only if it is hugetlbfs.
    pub backing: MemoryBacking,
    /// Whether guest memory is populated at the start and kept from swap.
    pub lock_memory: bool,
    /// Whether it is recorded which pages of guest memory change.
    pub track_dirty_pages: bool,
    /// The memory balloon.
    pub balloon: Option<BalloonSpec>,
    /// Its disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// The guest's source of random numbers, and limits on it.
    pub rng: Option<RateLimiterSpec>,
    /// Whether the files of sockets stay when the VM has ended.
    pub leave_sockets: bool,
    /// Sockets between guest and host.
    pub vsock: Option<VsockSpec>,
    /// The guest's network interfaces.
    pub net: Vec<NetSpec>,
    /// Number of vCPUs, 1 or more. The host's maximum is checked when the VM is created.
    pub cpus: u32,
    /// Whether the vCPUs have performance monitors.
    pub pmu: bool,
    /// What the guest's counter does while it is paused.
    pub clock: ClockMode,
    /// Whether the guest has MTE.
    pub mte: MteMode,
    /// How tag storage is reserved, if it is. A guest that turns out to have no MTE needs none.
    pub tag_storage: Option<TagStorageSpec>,
    /// The broker that the guest borrows from if it has no MTE: its memory may be in tag storage that is not
    /// reserved.
    pub lender: Option<PathBuf>,
    /// Where the serial port goes.
    pub serial: SerialTarget,
    /// The file or FIFO that takes messages in the place of standard error.
    pub log: Option<PathBuf>,
    /// The file or FIFO that takes the counters.
    pub metrics: Option<MetricsSpec>,
    /// The VM's name.
    pub id: String,
}

/// What a VM does with a path that its description names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PathUse {
    /// It reads a file or a disk.
    Read,
    /// It writes to a disk, and reads it.
    Write,
    /// It connects to a socket, and does so again when its listener has been replaced.
    Connect,
    /// It makes a socket: which one.
    Listen(&'static str),
    /// It writes to a file, and makes it: which one.
    Make(&'static str),
}

/// Where the counters are written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetricsSpec {
    /// The file or FIFO.
    pub path: PathBuf,
    /// Whether each object has the VM's name.
    pub with_id: bool,
}

/// Where the guest's serial port goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SerialTarget {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    /// A file takes the output; there is no input.
    File(PathBuf),
    /// A Unix socket on which one client at a time is attached.
    Socket(PathBuf),
    /// Output is dropped; there is no input.
    None,
}

/// A configuration that makes no sense on any host.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum Error {
    /// No kernel was named.
    #[error(
        "no kernel: give --kernel FILE, or boot-source.kernel_image_path in the configuration file"
    )]
    NoKernel,
    /// Guest memory that is too little, too much or odd.
    #[error(transparent)]
    Memory(#[from] layout::Error),
    /// A size in MiB that no machine has.
    #[error("mem_size_mib {0} is beyond any machine's memory")]
    MemoryOverflow(u64),
    /// Two kinds of memory in one configuration.
    #[error(
        "huge_pages {huge_pages} and memory backing {backing} exclude each other: leave one of them out, \
         or ask for both huge_pages 2M and hugetlbfs"
    )]
    BackingConflict {
        /// What `huge_pages` says.
        huge_pages: HugePages,
        /// What `memory_backing` or `--memory-backing` says.
        backing: MemoryBacking,
    },
    /// Only anonymous memory can be mapped over in part.
    #[error(
        "only anonymous memory can have parts of a boot image, and this is {0}: leave out --boot-image or \
         --memory-backing"
    )]
    BootImageBacking(MemoryBacking),
    /// Locked memory is copied at once.
    #[error(
        "locked memory is all the VM's own from the start: leave out --boot-image or --lock-memory"
    )]
    BootImageLocked,
    /// Disks that make no sense.
    #[error(transparent)]
    Disks(#[from] DiskError),
    /// A balloon that this guest cannot have.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// Something is said of tag storage that is not reserved.
    #[error(
        "no tag storage is reserved, so --broker, --tag-min, --tag-max and --on-exhausted have no meaning: \
         leave them out, or give --tag-storage strict or demand"
    )]
    TagStorageOff,
    /// A borrower has no lease.
    #[error(
        "a guest without MTE reserves no tag storage, it borrows: leave out --tag-min, --tag-max and \
         --on-exhausted"
    )]
    TagStorageBorrower,
    /// A strict reservation never runs out.
    #[error(
        "with --tag-storage strict a running guest has all its tag storage, so --on-exhausted has no \
         meaning: leave it out, or give --tag-storage demand"
    )]
    TagStorageStrict,
    /// Locked memory is touched at once.
    #[error(
        "locked memory is all in use from the start, so that nothing is left to reserve on demand: give \
         --tag-storage strict, or leave out --lock-memory"
    )]
    TagStorageLocked,
    /// A guest without tags needs none.
    #[error(
        "--tag-storage {0} is for a guest with MTE, and this one has none (--mte off): leave one of them out"
    )]
    TagStorageWithoutMte(TagStorageMode),
    /// More is set aside than the VM may have.
    #[error("--tag-min {min} is more than --tag-max {max}: lower it")]
    TagStorageLimits {
        /// What is set aside.
        min: Bytes,
        /// The most.
        max: Bytes,
    },
    /// A size in KiB that no tag storage has.
    #[error("{0} KiB of tag storage is more than any machine has")]
    TagStorageOverflow(u64),
    /// No vCPUs.
    #[error("a VM needs at least one vCPU: give --cpus 1 or more")]
    NoCpus,
    /// The command line does not fit the guest kernel's buffer.
    #[error(
        "the kernel command line has {length} bytes, {added} of them added by tessera (`{prefix}`); \
         arm64 Linux takes at most {MAX_COMMAND_LINE}: shorten it"
    )]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// How many of them the VMM added.
        added: usize,
        /// What the VMM added.
        prefix: String,
    },
    /// The command line has a character that no kernel command line can hold.
    #[error("the kernel command line has a character that is not printable ASCII: remove it")]
    CommandLineCharacter,
    /// A serial target that is not one of the four.
    #[error("serial target '{0}' is not known: use stdio, file:PATH, socket:PATH or none")]
    SerialTarget(String),
    /// Two serial targets in one configuration.
    #[error("the serial section has both serial_out_path and target: keep one")]
    SerialConflict,
    /// One path for two things.
    #[error("{} is named both as {first} and as {second}: give each a path of its own", path.display())]
    PathConflict {
        /// The path.
        path: PathBuf,
        /// The first use.
        first: &'static str,
        /// The second use.
        second: &'static str,
    },
    /// A context identifier that no guest can have.
    #[error(
        "{0} is no context identifier of a guest: give 3 to 4294967294 (guest_cid, or cid= of --vsock)"
    )]
    VsockCid(u32),
    /// A network interface that makes no sense.
    #[error(transparent)]
    Net(#[from] NetError),

    /// Limits on the entropy source that make no sense.
    #[error("the rate limiter of the entropy source cannot be had")]
    EntropyLimits(#[source] RefillError),
    /// A name that is empty, long, or has odd characters.
    #[error("the id '{0}' is not usable: {RULE}")]
    Id(String),
}

impl fmt::Display for SerialTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
            Self::None => f.write_str("none"),
        }
    }
}

impl SerialTarget {
    fn parse(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "none" => Ok(Self::None),
            _ => Err(Error::SerialTarget(text.to_owned())),
        }
    }

    fn from_section(section: SerialSection) -> Result<Self, Error> {
        match (section.serial_out_path, section.target) {
            (Some(_), Some(_)) => Err(Error::SerialConflict),
            (Some(path), None) => Ok(Self::File(path)),
            (None, Some(target)) => Self::parse(&target),
            (None, None) => Ok(Self::Stdio),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Socket(path) => Some(path),
            Self::Stdio | Self::None => None,
        }
    }
}

impl Spec {
    /// How many virtio devices it has, of which each has an interrupt.
    pub fn virtio_devices(&self) -> u32 {
        let one = [self.balloon.is_some(), self.rng.is_some(), self.vsock.is_some()];
        let ones = one.into_iter().filter(|is_there| *is_there).count();
        u32::try_from(ones + self.disks.len() + self.net.len()).unwrap_or(u32::MAX)
    }

    /// Checks a configuration, and what comes from the command line alone.
    ///
    /// # Errors
    /// When the configuration makes no sense, whatever the host.
    pub fn new(config: Config, flags: CommandLineOnly<'_>) -> Result<Self, Error> {
        Draft::new(config, flags)?.into_spec()
    }

    /// The same, where a kernel that is not named has an empty path.
    fn without_kernel(config: Config, flags: CommandLineOnly<'_>) -> Result<Self, Error> {
        let boot = config.boot_source.unwrap_or_default();
        let bare_command_line = boot.bare_boot_args.unwrap_or(false);
        let boot_image = boot.boot_image.unwrap_or(false);
        let machine = config.machine_config.unwrap_or_default();
        let memory = memory(&machine)?;
        let (huge_pages, backing) = backing(&machine)?;
        let mte = config.mte.map_or(MteMode::default(), |section| section.mode);
        let lock_memory = machine.lock_memory.unwrap_or(false);
        let tag_storage = config.tag_storage.unwrap_or_default();
        let disks = DiskSpec::all(config.drives)?;
        let boot_args = boot.boot_args.as_deref().unwrap_or("");
        let id = valid_id(flags.id.unwrap_or("tessera"))?;
        let lender = tag_storage.broker.clone().filter(|_| mte != MteMode::Require);
        let spec = Self {
            kernel: boot.kernel_image_path.unwrap_or_default(),
            initrd: boot.initrd_path,
            command_line: command_line(boot_args, disks.first(), bare_command_line)?,
            bare_command_line,
            boot_image,
            memory,
            huge_pages,
            backing,
            lock_memory,
            track_dirty_pages: machine.track_dirty_pages.unwrap_or(false),
            balloon: BalloonSpec::new(
                config.balloon,
                memory,
                lock_memory || huge_pages == HugePages::TwoMib,
            )?,
            disks,
            rng: config
                .entropy
                .map(|section| RateLimiterSpec::new(section.rate_limiter.unwrap_or_default()))
                .transpose()
                .map_err(Error::EntropyLimits)?,
            leave_sockets: flags.leave_sockets,
            vsock: config.vsock.map(VsockSpec::new).transpose()?,
            net: network::interfaces(config.network_interfaces, flags.id)?,
            cpus: machine.vcpu_count.unwrap_or(1),
            pmu: machine.pmu.unwrap_or(false),
            clock: machine.clock.unwrap_or_default(),
            mte,
            tag_storage: TagStorageSpec::new(tag_storage, mte, lock_memory)?,
            lender,
            serial: SerialTarget::from_section(config.serial.unwrap_or_default())?,
            log: config.logger.and_then(|section| section.log_path),
            metrics: config.metrics.map(|section| MetricsSpec {
                path: section.metrics_path,
                with_id: section.emit_id.unwrap_or(false),
            }),
            id,
        };
        if spec.cpus == 0 {
            return Err(Error::NoCpus);
        }
        if boot_image {
            spec.check_boot_image()?;
        }
        check_paths(&spec.named_paths(flags))?;
        Ok(spec)
    }

    /// Whether such memory can have parts of a boot image.
    fn check_boot_image(&self) -> Result<(), Error> {
        if self.backing != MemoryBacking::Anonymous {
            return Err(Error::BootImageBacking(self.backing));
        }
        if self.lock_memory {
            return Err(Error::BootImageLocked);
        }
        Ok(())
    }

    /// The kernel; none in a draft that lacks it.
    fn named_kernel(&self) -> Option<&Path> {
        Some(self.kernel.as_path()).filter(|kernel| *kernel != Path::new(""))
    }

    /// The same description as a configuration, defaults filled in.
    pub fn to_config(&self) -> Config {
        // JSON is UTF-8; a path that is not is shown as well as it can be.
        let shown = |path: &Path| PathBuf::from(path.to_string_lossy().into_owned());
        let mut config = Config::default();
        config.boot_source = Some(BootSource {
            kernel_image_path: self.named_kernel().map(shown),
            initrd_path: self.initrd.as_deref().map(shown),
            boot_args: Some(self.command_line.clone()),
            bare_boot_args: self.bare_command_line.then_some(true),
            boot_image: self.boot_image.then_some(true),
        });
        config.machine_config = Some(MachineConfig {
            vcpu_count: Some(self.cpus),
            mem_size_mib: Some(self.memory.as_mib()),
            // The default has no word of Firecracker's, whose clients do not expect another one.
            huge_pages: Some(self.huge_pages).filter(|pages| *pages != HugePages::Transparent),
            memory_backing: Some(self.backing),
            lock_memory: Some(self.lock_memory),
            track_dirty_pages: Some(self.track_dirty_pages),
            pmu: self.pmu.then_some(true),
            clock: Some(self.clock).filter(|clock| *clock != ClockMode::default()),
            ..MachineConfig::default()
        });
        config.serial = Some(SerialSection::from_flag(&self.serial.to_string()));
        config.mte = Some(MteSection { mode: self.mte });
        config.tag_storage = Some(match &self.tag_storage {
            Some(tag_storage) => tag_storage.to_section(),
            None => TagStorageSection {
                mode: Some(TagStorageMode::Off),
                broker: self.lender.as_deref().map(shown),
                ..TagStorageSection::default()
            },
        });
        config.balloon = match self.balloon {
            Some(balloon) => BalloonSetting::Section(balloon.to_section()),
            None => BalloonSetting::None,
        };
        config.drives = self.disks.iter().map(DiskSpec::to_section).collect();
        config.entropy =
            self.rng.map(|limits| EntropySection { rate_limiter: limits.to_section() });
        config.vsock = self.vsock.as_ref().map(VsockSpec::to_section);
        config.network_interfaces = self.net.iter().map(NetSpec::to_section).collect();
        let logger = |log| LoggerSection { log_path: Some(log), ..LoggerSection::default() };
        config.logger = self.log.as_deref().map(shown).map(logger);
        config.metrics = self.metrics.as_ref().map(|metrics| MetricsSection {
            metrics_path: shown(&metrics.path),
            emit_id: metrics.with_id.then_some(true),
        });
        config
    }

    /// Checks that a snapshot of the VM would replace nothing that it uses.
    ///
    /// # Errors
    /// When it would.
    pub fn check_snapshot(&self, files: &SnapshotFiles) -> Result<(), Error> {
        let SnapshotFiles { state, memory } = files;
        let written = [("the snapshot's state", state), ("the snapshot's memory", memory)];
        let mut named = self.named_paths(CommandLineOnly::default());
        named.extend(written.map(|(name, path)| (name, path.as_path(), true)));
        check_paths(&named)
    }

    /// The paths that it names, each with what it is for.
    pub fn paths_mut(&mut self) -> Vec<(PathUse, &mut PathBuf)> {
        let Self { kernel, initrd, disks, serial, vsock, log, metrics, .. } = self;
        let kernel = Some(kernel).filter(|kernel| **kernel != Path::new(""));
        let mut paths: Vec<_> =
            kernel.into_iter().chain(initrd).map(|path| (PathUse::Read, path)).collect();
        paths.extend(disks.iter_mut().map(|disk| match disk.read_only {
            true => (PathUse::Read, &mut disk.path),
            false => (PathUse::Write, &mut disk.path),
        }));
        match serial {
            SerialTarget::File(path) => paths.push((PathUse::Make("the serial target"), path)),
            SerialTarget::Socket(path) => {
                paths.push((PathUse::Listen("the console's socket"), path))
            }
            SerialTarget::Stdio | SerialTarget::None => {}
        }
        let vsock = vsock.as_mut().map(|vsock| &mut vsock.path);
        paths.extend(vsock.map(|path| (PathUse::Listen("the socket of --vsock"), path)));
        paths.extend(log.as_mut().map(|path| (PathUse::Make("the log"), path)));
        let metrics = metrics.as_mut().map(|metrics| &mut metrics.path);
        paths.extend(metrics.map(|path| (PathUse::Make("the file of counters"), path)));
        let broker = self.tag_storage.as_mut().and_then(|tags| tags.broker.as_mut());
        let peers = self.net.iter_mut().filter_map(|net| match &mut net.backend {
            NetBackendSpec::Stream(path) => Some(path),
            _ => None,
        });
        let connected = broker.into_iter().chain(self.lender.as_mut()).chain(peers);
        paths.extend(connected.map(|path| (PathUse::Connect, path)));
        paths
    }

    /// The files that it names, each with what it is and whether it is written.
    fn named_paths<'a>(
        &'a self,
        flags: CommandLineOnly<'a>,
    ) -> Vec<(&'static str, &'a Path, bool)> {
        let inputs = [
            ("the kernel", self.named_kernel()),
            ("the initrd", self.initrd.as_deref()),
            ("the configuration file", flags.config),
            ("the snapshot's state", flags.snapshot.map(|files| files.state.as_path())),
            ("the snapshot's memory", flags.snapshot.map(|files| files.memory.as_path())),
        ];
        let outputs = [
            ("the serial target", self.serial.path()),
            ("the socket of --vsock", self.vsock.as_ref().map(|vsock| vsock.path.as_path())),
            ("the control socket", flags.api_sock),
            ("the log", self.log.as_deref()),
            ("the file of counters", self.metrics.as_ref().map(|metrics| metrics.path.as_path())),
        ];
        let inputs = inputs.into_iter().filter_map(|(name, path)| Some((name, path?, false)));
        let outputs = outputs.into_iter().filter_map(|(name, path)| Some((name, path?, true)));
        let disks = self.disks.iter().map(|disk| ("a disk", disk.path.as_path(), !disk.read_only));
        let sockets = self.net.iter().filter_map(NetSpec::socket);
        let sockets = sockets.map(|path| ("the socket of a network interface", path, false));
        inputs.chain(disks).chain(sockets).chain(outputs).collect()
    }
}

/// An output over an input, or over another output, would destroy one of them.
fn check_paths(named: &[(&'static str, &Path, bool)]) -> Result<(), Error> {
    let found: Vec<_> = named.iter().map(|(_, path, _)| Found::at(path)).collect();
    for (at, (&(second, path, written), file)) in named.iter().zip(&found).enumerate() {
        for (&(first, _, other_written), other) in named.iter().zip(&found).take(at) {
            if (written || other_written) && file.is_same(other) {
                return Err(Error::PathConflict { path: path.to_owned(), first, second });
            }
        }
    }
    Ok(())
}

/// A path, and the device and inode of what is there.
struct Found<'a> {
    path: &'a Path,
    inode: Option<(u64, u64)>,
}

impl<'a> Found<'a> {
    fn at(path: &'a Path) -> Self {
        let inode = path.metadata().ok().map(|found| (found.dev(), found.ino()));
        Self { path, inode }
    }

    /// Whether two paths name one file: by another spelling, through a link of either kind, or both in the
    /// place where neither has been created yet.
    fn is_same(&self, other: &Self) -> bool {
        match (self.inode, other.inode) {
            (None, None) => {
                let is_one_place =
                    || self.place().is_some_and(|place| other.place() == Some(place));
                self.path == other.path || is_one_place()
            }
            (one, other) => one == other,
        }
    }

    fn place(&self) -> Option<PathBuf> {
        let directory = folder_of(self.path).canonicalize().ok()?;
        Some(directory.join(self.path.file_name()?))
    }
}

fn valid_id(id: &str) -> Result<String, Error> {
    if is_vm_id(id) { Ok(id.to_owned()) } else { Err(Error::Id(id.to_owned())) }
}

fn memory(machine: &MachineConfig) -> Result<Bytes, Error> {
    let size = match (machine.mem_size, machine.mem_size_mib) {
        (Some(size), _) => size,
        (None, Some(mib)) => Bytes::checked_mib(mib).ok_or(Error::MemoryOverflow(mib))?,
        (None, None) => DEFAULT_MEMORY,
    };
    Ok(layout::ram(size, ANY_HOST_IPA_BITS)?.size)
}

/// Huge pages and backing, each of which says something of the other.
fn backing(machine: &MachineConfig) -> Result<(HugePages, MemoryBacking), Error> {
    use {HugePages as Pages, MemoryBacking as Backing};
    match (machine.huge_pages, machine.memory_backing) {
        (None | Some(Pages::TwoMib), Some(Backing::Hugetlbfs)) | (Some(Pages::TwoMib), None) => {
            Ok((Pages::TwoMib, Backing::Hugetlbfs))
        }
        (Some(huge_pages), Some(backing))
            if huge_pages == Pages::TwoMib || backing == Backing::Hugetlbfs =>
        {
            Err(Error::BackingConflict { huge_pages, backing })
        }
        (huge_pages, backing) => Ok((huge_pages.unwrap_or_default(), backing.unwrap_or_default())),
    }
}

/// Puts before the user's parameters the root device, if one of the disks is that, and those that let the VMM tell
/// a panic from a reboot, unless they are to be
/// the whole command line: a guest that is no Linux may take the first word for its own.
///
/// A panic with `panic=-1` restarts the guest at once, and `reboot=panic_warm` makes that restart a
/// PSCI SYSTEM_RESET2. An orderly reboot is one too only if the guest has been told to reboot warm or soft
/// (`reboot=w`, `reboot=s`, /sys/kernel/reboot/mode; kernel/reboot.c, drivers/firmware/psci). Later
/// parameters win, so a user's own `panic=` or `reboot=panic_...` stands.
fn command_line(user: &str, first_disk: Option<&DiskSpec>, bare: bool) -> Result<String, Error> {
    let user = user.trim();
    // What follows a lone `--` is for the guest's init, not for its kernel (init/main.c).
    let kernel_words = || user.split_ascii_whitespace().take_while(|word| *word != "--");
    let given = |name: &str, part: &str| {
        kernel_words().any(|word| word.starts_with(name) && word.contains(part))
    };
    // A `reboot=` without a `panic_` mode says nothing of panics, and does not replace ours.
    let root = first_disk.filter(|disk| disk.root).map(DiskSpec::boot_parameters);
    let added: Vec<&str> = [
        ("panic=", "", Some("panic=-1")),
        ("reboot=", "panic_", Some("reboot=panic_warm")),
        ("root=", "", root.as_deref()),
    ]
    .into_iter()
    .filter(|(name, part, _)| !bare && !given(name, part))
    .filter_map(|(.., parameter)| parameter)
    .collect();
    let prefix = added.join(" ");
    let whole = format!("{prefix} {user}");
    let whole = whole.trim();
    let too_long = || Error::CommandLineTooLong {
        length: whole.len(),
        added: whole.len() - user.len(),
        prefix: prefix.clone(),
    };
    // Its capacity counts the final zero.
    let mut line = Cmdline::new(MAX_COMMAND_LINE + 1).map_err(|_| too_long())?;
    line.insert_str(whole).map_err(|error| match error {
        cmdline::Error::TooLarge => too_long(),
        _ => Error::CommandLineCharacter,
    })?;
    let line = line.as_cstring().map_err(|_| Error::CommandLineCharacter)?;
    line.into_string().map_err(|_| Error::CommandLineCharacter)
}

#[cfg(test)]
mod tests;
