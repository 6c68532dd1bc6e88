//! The guest's sockets, checked.

use std::path::PathBuf;

use super::Error;
use crate::config::VsockSection;

/// Context identifiers that a guest can have. Those below have meanings of their own, as has the greatest number
/// (VMADDR_CID_ANY, vsock(7)).
const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// The guest's sockets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VsockSpec {
    /// The guest's context identifier.
    pub cid: u32,
    /// Where processes of the host connect.
    pub path: PathBuf,
}

impl VsockSpec {
    pub(super) fn new(section: VsockSection) -> Result<Self, Error> {
        let VsockSection { guest_cid: cid, uds_path: path, vsock_id: _ } = section;
        if CIDS.contains(&cid) { Ok(Self { cid, path }) } else { Err(Error::VsockCid(cid)) }
    }

    pub(crate) fn to_section(&self) -> VsockSection {
        // JSON is UTF-8; a path that is not is shown as well as it can be.
        let uds_path = self.path.to_string_lossy().into_owned().into();
        VsockSection { guest_cid: self.cid, uds_path, vsock_id: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_an_identifier_of_a_guest() {
        for (cid, good) in
            [(0, false), (1, false), (2, false), (3, true), (u32::MAX - 1, true), (u32::MAX, false)]
        {
            let section = VsockSection { guest_cid: cid, uds_path: "v".into(), vsock_id: None };
            let spec = VsockSpec::new(section.clone());
            assert_eq!(spec.as_ref().map(VsockSpec::to_section).ok(), good.then_some(section));
            assert_eq!(spec.err(), (!good).then_some(Error::VsockCid(cid)));
        }
    }
}
