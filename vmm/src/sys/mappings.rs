//! How many mappings a process may have, and has.
//!
//! # References
//! Linux Documentation/admin-guide/sysctl/vm.rst, "max_map_count"; proc_pid_maps(5)

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::small_file;

/// The kernel's own value (`DEFAULT_MAX_MAP_COUNT` of include/linux/mm.h).
const DEFAULT: u64 = 65530;

/// The most that the host allows now.
pub(crate) fn most() -> u64 {
    let text = small_file::text(Path::new("/proc/sys/vm/max_map_count"));
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT)
}

/// How many this process has, if that can be read.
pub(crate) fn count() -> Option<u64> {
    let mut maps = File::open("/proc/self/maps").ok()?;
    let mut piece = [0; 4096];
    let mut lines = 0;
    loop {
        match maps.read(&mut piece).ok()? {
            0 => return Some(lines),
            length => {
                let read = piece.get(..length).unwrap_or_default();
                lines += read.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_some_mappings_and_more_may_be() {
        let now = count().unwrap_or_default();
        assert!(now > 0 && now < most(), "{now} of {}", most());
    }
}
