//! Validated disks.

use std::path::PathBuf;

use thiserror::Error;

use super::{RateLimiterSpec, RefillError};
use crate::config::DriveSection;

/// A name's bound, as for that of a VM.
const MAX_ID: usize = 64;

/// A disk of the guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskSpec {
    /// Its name: letters, digits, hyphens and underscores.
    pub id: String,
    /// The raw image or block device.
    pub path: PathBuf,
    /// Whether the guest boots from it. It is the first one then.
    pub root: bool,
    /// The partition to boot from.
    pub partuuid: Option<String>,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
    /// Whether the host's page cache is passed by.
    pub direct: bool,
    /// Limits on what is done to it.
    pub rate_limiter: RateLimiterSpec,
}

/// Disks that make no sense.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum DiskError {
    /// A name that cannot be used.
    #[error(
        "the drive_id '{0}' is not usable: 1 to {MAX_ID} letters, digits, hyphens and underscores"
    )]
    Id(String),
    /// One name for two.
    #[error("two disks are called '{0}': give each a name of its own")]
    SameId(String),
    /// No file is named.
    #[error("the disk '{0}' has no path_on_host: name its raw image or block device")]
    NoPath(String),
    /// Two to boot from.
    #[error("the disks '{0}' and '{1}' are both the root device: leave one of them so")]
    TwoRoots(String, String),
    /// A limit that is none.
    #[error(transparent)]
    Limiter(#[from] RefillError),
}

impl DiskSpec {
    /// Checks the disks of a configuration. The root device comes first, the others in their order.
    ///
    /// # Errors
    /// When they make no sense, whatever the host.
    pub fn all(sections: Vec<DriveSection>) -> Result<Vec<Self>, DiskError> {
        let mut disks: Vec<Self> = Vec::with_capacity(sections.len());
        for section in sections {
            let disk = Self::new(section)?;
            if disks.iter().any(|other| other.id == disk.id) {
                return Err(DiskError::SameId(disk.id));
            }
            if let (Some(other), true) = (disks.iter().find(|other| other.root), disk.root) {
                return Err(DiskError::TwoRoots(other.id.clone(), disk.id));
            }
            disks.push(disk);
        }
        disks.sort_by_key(|disk| !disk.root);
        Ok(disks)
    }

    fn new(section: DriveSection) -> Result<Self, DiskError> {
        let id = section.drive_id;
        let usable = (1..=MAX_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !usable {
            return Err(DiskError::Id(id));
        }
        Ok(Self {
            path: section.path_on_host.ok_or_else(|| DiskError::NoPath(id.clone()))?,
            root: section.is_root_device,
            partuuid: section.partuuid,
            read_only: section.is_read_only,
            direct: section.direct.unwrap_or(false),
            rate_limiter: RateLimiterSpec::new(section.rate_limiter.unwrap_or_default())?,
            id,
        })
    }

    /// The section that describes it.
    pub fn to_section(&self) -> DriveSection {
        DriveSection {
            drive_id: self.id.clone(),
            path_on_host: Some(PathBuf::from(self.path.to_string_lossy().into_owned())),
            is_root_device: self.root,
            partuuid: self.partuuid.clone(),
            is_read_only: self.read_only,
            direct: self.direct.then_some(true),
            rate_limiter: self.rate_limiter.to_section(),
            ..DriveSection::default()
        }
    }

    /// What the kernel is told of its root device, in Firecracker's words.
    pub(super) fn boot_parameters(&self) -> String {
        let device = match &self.partuuid {
            Some(partuuid) => format!("PARTUUID={partuuid}"),
            None => "/dev/vda".to_owned(),
        };
        format!("root={device} {}", if self.read_only { "ro" } else { "rw" })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn section(id: &str) -> DriveSection {
        DriveSection {
            drive_id: id.to_owned(),
            path_on_host: Some("image".into()),
            ..DriveSection::default()
        }
    }

    #[test]
    fn the_root_device_comes_first_and_the_others_stay_in_order() {
        let root = DriveSection { is_root_device: true, ..section("c") };
        let disks = DiskSpec::all(vec![section("b"), section("a"), root]).unwrap();

        let ids: Vec<_> = disks.iter().map(|disk| disk.id.as_str()).collect();
        assert_eq!(ids, ["c", "b", "a"]);
        assert_eq!(disks[0].boot_parameters(), "root=/dev/vda rw");
    }

    #[test]
    fn disks_that_make_no_sense_are_refused() {
        let refused = |sections| DiskSpec::all(sections).unwrap_err();
        let root = |id| DriveSection { is_root_device: true, ..section(id) };

        for id in ["", "a/b", "a b", &"x".repeat(65)] {
            assert_eq!(refused(vec![section(id)]), DiskError::Id(id.to_owned()));
        }
        assert_eq!(refused(vec![section("a"), section("a")]), DiskError::SameId("a".to_owned()));
        let two = DiskError::TwoRoots("a".to_owned(), "b".to_owned());
        assert_eq!(refused(vec![root("a"), root("b")]), two);
        let pathless = DriveSection { path_on_host: None, ..section("a") };
        assert_eq!(refused(vec![pathless]), DiskError::NoPath("a".to_owned()));
    }
}
