//! How many mappings a process may have.
//!
//! # References
//! Linux Documentation/admin-guide/sysctl/vm.rst, "max_map_count"

use std::path::Path;

use super::small_file;

/// The kernel's own value (`DEFAULT_MAX_MAP_COUNT` of include/linux/mm.h).
const DEFAULT: u64 = 65530;

/// The most that the host allows now.
pub(crate) fn most() -> u64 {
    let text = small_file::text(Path::new("/proc/sys/vm/max_map_count"));
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT)
}
