//! Huge pages of the host, as sysfs shows them.
//!
//! # References
//! Linux Documentation/admin-guide/mm/transhuge.rst, hugetlbpage.rst

use std::path::{Path, PathBuf};

use arch::units::Bytes;

use super::small_file;

/// The size of the host's transparent huge pages, if it has any.
pub(crate) fn huge_page_size() -> Option<Bytes> {
    let text = small_file::text(Path::new("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"))?;
    text.trim().parse().ok().map(Bytes::new)
}

/// The directory of the hugetlb pool for pages of this size.
pub(crate) fn pool(page: Bytes) -> PathBuf {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.get() >> 10).into()
}

/// How many huge pages of a pool are neither used nor reserved, if that can be read.
pub(crate) fn free_huge_pages(page: Bytes) -> Option<u64> {
    let number =
        |name| small_file::text(&pool(page).join(name)).and_then(|text| text.trim().parse().ok());
    let free: u64 = number("free_hugepages")?;
    let reserved: u64 = number("resv_hugepages")?;
    Some(free.saturating_sub(reserved))
}
