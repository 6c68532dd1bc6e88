//! The guest's sockets, as the configuration file and `--vsock` describe them.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::VsockChange;

/// The guest's context identifier unless another is given: the first that is a guest's (vsock(7)).
pub(crate) const DEFAULT_CID: u32 = 3;

/// Firecracker's `Vsock`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSection {
    /// The guest's context identifier. It may be left out, which Firecracker does not allow.
    #[serde(default = "default_cid")]
    pub guest_cid: u32,
    /// Where processes of the host connect.
    pub uds_path: PathBuf,
    /// A name of the device, which Firecracker still takes and has no use for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

fn default_cid() -> u32 {
    DEFAULT_CID
}

/// The value of `--vsock`: `PATH`, and perhaps `,cid=N`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VsockFlag {
    path: PathBuf,
    cid: Option<u32>,
}

impl VsockFlag {
    /// What the flag changes of a VM that is restored.
    pub(super) fn to_change(&self) -> VsockChange {
        VsockChange { path: self.path.clone(), cid: self.cid }
    }

    /// The section with what the flag names.
    pub(super) fn lay_over(&self, section: &mut Option<VsockSection>) {
        let from_file = section.as_ref().map(|section| section.guest_cid);
        *section = Some(VsockSection {
            guest_cid: self.cid.or(from_file).unwrap_or(DEFAULT_CID),
            uds_path: self.path.clone(),
            vsock_id: None,
        });
    }
}

/// Why the value of `--vsock` is none.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum ParseVsockError {
    /// There is no path.
    #[error("there is no path: write --vsock PATH or --vsock PATH,cid=N")]
    NoPath,
    /// What follows the path is no identifier.
    #[error("'{0}' is no context identifier: write a number of 3 or more after cid=")]
    Cid(String),
}

impl FromStr for VsockFlag {
    type Err = ParseVsockError;

    /// A path may have commas; the last part is an identifier only if it says so.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, cid) = match text.rsplit_once(",cid=") {
            Some((path, cid)) => {
                let cid = cid.parse().map_err(|_| ParseVsockError::Cid(cid.to_owned()))?;
                (path, Some(cid))
            }
            None => (text, None),
        };
        if path.is_empty() {
            return Err(ParseVsockError::NoPath);
        }
        Ok(Self { path: path.into(), cid })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn flag(path: &str, cid: Option<u32>) -> Result<VsockFlag, ParseVsockError> {
        Ok(VsockFlag { path: path.into(), cid })
    }

    #[test]
    fn a_flag_has_a_path_and_perhaps_an_identifier() {
        for (text, expected) in [
            ("v.sock", flag("v.sock", None)),
            ("/run/a,b", flag("/run/a,b", None)),
            ("v.sock,cid=7", flag("v.sock", Some(7))),
            ("a,cid=1,cid=9", flag("a,cid=1", Some(9))),
            ("", Err(ParseVsockError::NoPath)),
            (",cid=3", Err(ParseVsockError::NoPath)),
            ("v,cid=", Err(ParseVsockError::Cid(String::new()))),
            ("v,cid=-1", Err(ParseVsockError::Cid("-1".into()))),
            ("v,cid=4294967296", Err(ParseVsockError::Cid("4294967296".into()))),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn a_flag_replaces_what_it_names() {
        let file = VsockSection { guest_cid: 9, uds_path: "a".into(), vsock_id: Some("v".into()) };
        for (text, before, path, cid) in [
            ("b", None, "b", 3),
            ("b", Some(file.clone()), "b", 9),
            ("b,cid=4", Some(file), "b", 4),
        ] {
            let mut section = before;
            text.parse::<VsockFlag>().unwrap().lay_over(&mut section);
            let section = section.unwrap();
            assert_eq!((section.uds_path, section.guest_cid), (path.into(), cid), "{text}");
        }
    }
}
