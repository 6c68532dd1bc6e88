//! Disks, as the configuration file and `--disk` describe them.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::RateLimiterSection;
use super::file::{absent, section};

/// Firecracker's `Drive`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DriveSection {
    /// Its name, by which it is changed and counted, and its serial number in the guest.
    pub drive_id: String,
    /// The raw image or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Whether the guest boots from it: it comes first, and the kernel's command line gets `root=`.
    #[serde(default)]
    pub is_root_device: bool,
    /// Whether the guest cannot write to it.
    #[serde(default)]
    pub is_read_only: bool,
    /// The partition to boot from, by its unique identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// `Unsafe` or `Writeback`. A FLUSH of the guest is honoured with either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// `Sync` or `Async`. Either is served by a thread of the disk's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// Limits on what is done to it.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterSection>,
    /// Whether the host's page cache is passed by (O_DIRECT). A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// A vhost-user device, which this VMM lacks.
    #[serde(default, skip_serializing, deserialize_with = "absent")]
    pub socket: (),
}

/// Firecracker's `CacheType`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum CacheType {
    /// The device offers no FLUSH in Firecracker.
    Unsafe,
    /// The device offers FLUSH.
    Writeback,
}

/// Firecracker's `FileEngineType`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum IoEngine {
    /// A call for each request.
    Sync,
    /// io_uring.
    Async,
}

/// The value of `--disk`: a path, and after commas `ro`, `direct` and `id=NAME`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskFlag {
    path: PathBuf,
    read_only: bool,
    direct: bool,
    id: Option<String>,
}

/// A value of `--disk` that makes no sense.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ParseDiskError {
    /// No file is named.
    #[error("a disk needs a file: --disk PATH[,ro][,direct][,id=NAME]")]
    NoPath,
    /// A word after the path that is none of the three.
    #[error(
        "'{0}' is not known of a disk: use ro, direct or id=NAME; a path with a comma needs a configuration file"
    )]
    Word(String),
    /// One word twice.
    #[error("'{0}' is said twice of one disk: leave one out")]
    Twice(String),
}

impl FromStr for DiskFlag {
    type Err = ParseDiskError;

    fn from_str(text: &str) -> Result<Self, ParseDiskError> {
        let (path, words) = text.split_once(',').unwrap_or((text, ""));
        if path.is_empty() {
            return Err(ParseDiskError::NoPath);
        }
        let mut flag = Self { path: path.into(), read_only: false, direct: false, id: None };
        for word in words.split(',').filter(|word| !word.is_empty()) {
            let twice = match word.split_once('=') {
                None if word == "ro" => std::mem::replace(&mut flag.read_only, true),
                None if word == "direct" => std::mem::replace(&mut flag.direct, true),
                Some(("id", id)) => flag.id.replace(id.to_owned()).is_some(),
                _ => return Err(ParseDiskError::Word(word.to_owned())),
            };
            if twice {
                return Err(ParseDiskError::Twice(word.to_owned()));
            }
        }
        Ok(flag)
    }
}

impl DiskFlag {
    /// The section that it stands for. Its place among the disks names it if nothing else does.
    pub(super) fn to_section(&self, index: usize) -> DriveSection {
        DriveSection {
            drive_id: self.id.clone().unwrap_or_else(|| format!("disk{index}")),
            path_on_host: Some(self.path.clone()),
            is_read_only: self.read_only,
            direct: self.direct.then_some(true),
            ..DriveSection::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parsed(text: &str) -> Result<DriveSection, ParseDiskError> {
        text.parse().map(|flag: DiskFlag| flag.to_section(3))
    }

    #[test]
    fn a_flag_is_a_path_and_words() {
        let disk = parsed("a b.img").unwrap();
        assert_eq!(
            (disk.drive_id.as_str(), disk.is_read_only, disk.direct),
            ("disk3", false, None)
        );
        assert_eq!(disk.path_on_host.unwrap(), PathBuf::from("a b.img"));

        let disk = parsed("/dev/vda,direct,id=root,ro").unwrap();
        assert_eq!((disk.drive_id.as_str(), disk.is_read_only), ("root", true));
        assert_eq!(disk.direct, Some(true));
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        assert_eq!(parsed("").unwrap_err(), ParseDiskError::NoPath);
        assert_eq!(parsed(",ro").unwrap_err(), ParseDiskError::NoPath);
        assert_eq!(parsed("a,rw").unwrap_err(), ParseDiskError::Word("rw".to_owned()));
        assert_eq!(parsed("a,ro,ro").unwrap_err(), ParseDiskError::Twice("ro".to_owned()));
        assert_eq!(parsed("a,ro=1").unwrap_err(), ParseDiskError::Word("ro=1".to_owned()));
    }
}
