//! The configuration file: Firecracker's sections and field names where the two overlap, ours beside
//! them. `GET /vm/config` answers with the same form, so what it says can be fed back.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use arch::units::Bytes;
use clap::ValueEnum;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{
    BalloonSetting, DriveSection, Error, LoggerSection, MetricsSection, NetworkInterfaceSection,
    RateLimiterSection, TagStorageSection, VsockSection, network,
};

/// No configuration comes near this size; a file that does is something else.
const MAX_FILE: u64 = 1 << 20;

/// A configuration as the user wrote it: every field optional, nothing checked yet.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Kernel, initrd and command line.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// vCPUs and memory.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub machine_config: Option<MachineConfig>,
    /// Where the serial port goes.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialSection>,
    /// Whether the guest has MTE. A section of Tessera's own.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub mte: Option<MteSection>,
    /// When and from whom tag storage is reserved. A section of Tessera's own.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub tag_storage: Option<TagStorageSection>,
    /// The memory balloon.
    #[serde(default, skip_serializing_if = "BalloonSetting::is_default")]
    pub balloon: BalloonSetting,
    /// Disks.
    #[serde(default, deserialize_with = "sections", skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveSection>,
    /// A source of random numbers for the guest.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropySection>,
    /// Sockets between guest and host.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSection>,

    /// The network interfaces.
    #[serde(default, deserialize_with = "network::list", skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterfaceSection>,
    /// Where messages go.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerSection>,
    /// Where counters are written.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSection>,

    // Firecracker writes these sections into every configuration it reports, empty where the device is
    // absent. Empty is accepted for that reason; anything else names a device that this VMM lacks.
    #[serde(default, skip_serializing)]
    pmem: Absent,
    #[serde(default, skip_serializing)]
    cpu_config: Absent,
    #[serde(default, skip_serializing)]
    mmds_config: Absent,
    #[serde(default, skip_serializing)]
    memory_hotplug: Absent,
}

impl Config {
    /// Whether a kernel is named.
    pub fn has_kernel(&self) -> bool {
        let kernel = self.boot_source.as_ref().and_then(|boot| boot.kernel_image_path.as_deref());
        kernel.is_some_and(|kernel| kernel != Path::new(""))
    }
}

/// What the guest boots.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_image_path: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// Whether the guest gets `boot_args` as they are. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bare_boot_args: Option<bool>,
    /// Whether kernel and initrd are those that a process holds for several VMs. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_image: Option<bool>,
}

/// The size of the machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u32>,
    /// Guest memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// Guest memory as `--memory` gave it; it replaces `mem_size_mib`.
    #[serde(skip)]
    pub mem_size: Option<Bytes>,
    /// A CPU template, of which there is only none.
    #[serde(default, skip_serializing, deserialize_with = "no_template")]
    pub cpu_template: (),
    /// Simultaneous multithreading: there is none on arm64, so only `false` is accepted.
    #[serde(default, deserialize_with = "only_false")]
    pub smt: bool,
    /// Whether it is recorded which pages of guest memory change, for Diff snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// How guest memory uses huge pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// What guest memory is made of. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_backing: Option<MemoryBacking>,
    /// Whether the vCPUs have performance monitors. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pmu: Option<bool>,
    /// Whether guest memory is populated at the start and kept from swap. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_memory: Option<bool>,
    /// What the guest's counter does while it is paused. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockMode>,
}

/// The guest's virtual counter while the guest is paused.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClockMode {
    /// It stops: the guest sees no gap, and its time of day falls behind.
    #[default]
    Stop,
    /// It advances with the host's: the guest sees a gap as long as the pause.
    Advance,
}

/// Huge pages behind guest memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum HugePages {
    /// None: pages of the host's ordinary size.
    None,
    /// Transparent huge pages, 2 MiB wherever the host can give them.
    #[default]
    Transparent,
    /// Pages of 2 MiB from the host's hugetlb pool.
    #[serde(rename = "2M")]
    TwoMib,
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Transparent => "Transparent",
            Self::TwoMib => "2M",
        })
    }
}

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MemoryBacking {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd, mapped shared: other processes can be given it.
    Memfd,
    /// Pages of 2 MiB from the host's hugetlb pool.
    Hugetlbfs,
}

impl fmt::Display for MemoryBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Memfd => "memfd",
            Self::Hugetlbfs => "hugetlbfs",
        })
    }
}

/// Firecracker's `EntropyDevice`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EntropySection {
    /// Limits on what the guest takes.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterSection>,
}

/// Whether the guest has MTE.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MteSection {
    /// See [`MteMode`].
    pub mode: MteMode,
}

/// What to do about MTE.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MteMode {
    /// The guest has MTE, or the VM is refused.
    Require,
    /// The guest has MTE where the host can give it, and the VMM says which.
    #[default]
    Auto,
    /// The guest has no MTE.
    Off,
}

/// Where the serial port goes: Firecracker's field for a file, or Tessera's for anything.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SerialSection {
    /// A file that takes the guest's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// `stdio`, `file:PATH`, `socket:PATH` or `none`, as for `--serial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl SerialSection {
    /// The section that `--serial VALUE` stands for.
    pub fn from_flag(value: &str) -> Self {
        Self { serial_out_path: None, target: Some(value.to_owned()) }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read, is too large, or is not the JSON expected.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
            .map_err(unreadable)?;
        if text.len() as u64 > MAX_FILE {
            return Err(Error::TooLarge { path: path.to_owned(), limit: MAX_FILE });
        }
        serde_json::from_slice(&text)
            .map(|Object(config)| config)
            .map_err(|source| Error::Parse { path: path.to_owned(), source })
    }
}

/// A JSON object and nothing else: serde would also take an array, its items in the order of the fields.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfObject<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfObject<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(OfObject(PhantomData)).map(Self)
    }
}

pub(super) fn section<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(section)| section))
}

/// A list of sections; `null` is an empty one.
pub(super) fn sections<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let sections = Option::<Vec<Object<T>>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(sections.into_iter().map(|Object(section)| section).collect())
}

/// A section of Firecracker's for something this VMM does not have: `null` and `[]` say so too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Absent;

impl<'de> Deserialize<'de> for Absent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => Ok(Self),
            serde_json::Value::Array(items) if items.is_empty() => Ok(Self),
            _ => Err(D::Error::custom(
                "this VMM has no such device or service: leave the section out",
            )),
        }
    }
}

/// Firecracker's name for no CPU template, or null.
fn no_template<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("None") => Ok(()),
        Some(_) => Err(D::Error::custom(
            "there are no CPU templates, as the guest's CPU is the host's: leave cpu_template out",
        )),
    }
}

pub(super) fn absent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    Absent::deserialize(deserializer).map(|_| ())
}

pub(super) fn only_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match bool::deserialize(deserializer)? {
        false => Ok(false),
        true => Err(D::Error::custom("only false is supported")),
    }
}
