//! What guests can give back to this host, and what keeps them from it.

use std::fs;
use std::path::Path;

use arch::layout::{CHUNK, MIN_MEMORY};
use arch::units::Bytes;
use rustix::param::page_size;

use super::Check;
use crate::backends::reporting;
use crate::sys::huge_pages::huge_page_size;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The guests whose units are told: nearly all kernels have pages of 4 KiB.
const GUEST_PAGE: Bytes = Bytes::kib(4);

pub(super) fn checks() -> Vec<Check> {
    let page = Bytes::new(page_size() as u64);
    let huge = huge_page_size().is_some_and(|size| size <= CHUNK);
    vec![page_reporting(page, huge.then_some(Path::new(THP))), pool(Path::new(POOL))]
}

/// In which units free memory comes back. `thp` is the directory of transparent huge pages where guests
/// are given them.
fn page_reporting(page: Bytes, thp: Option<&Path>) -> Check {
    let unit = |memory| {
        let order = reporting::order(memory, GUEST_PAGE, page);
        let order = order.unwrap_or_else(|| reporting::default_order(GUEST_PAGE));
        reporting::unit(order, GUEST_PAGE)
    };
    let (least, most) = (unit(MIN_MEMORY), unit(Bytes::MAX));
    let mut found = format!(
        "free memory comes back in units of {least} (small guests) to {most}, never less than a {page} \
         page; none with --lock-memory, reporting=off, no balloon driver, or page_poison in the guest"
    );
    if thp.is_some_and(fills_up) {
        found += &format!(
            "; khugepaged may fill units below {CHUNK} again (its max_ptes_none is not 0)"
        );
    }
    Check::ok("page reporting", found)
}

/// Whether khugepaged makes huge pages of ranges with holes, filling those with zeroes (Linux
/// Documentation/admin-guide/mm/transhuge.rst, max_ptes_none).
fn fills_up(thp: &Path) -> bool {
    let enabled = fs::read_to_string(thp.join("enabled")).unwrap_or_default();
    !enabled.contains("[never]") && number(&thp.join("khugepaged/max_ptes_none")) != Some(0)
}

/// The pages for --memory-backing hugetlbfs.
fn pool(directory: &Path) -> Check {
    const NAME: &str = "hugetlb pool";
    let total = directory.join("nr_hugepages");
    match (number(&total), number(&directory.join("free_hugepages"))) {
        (Some(0), _) => Check::ok(
            NAME,
            format!("empty (--memory-backing hugetlbfs needs it: echo N > {})", total.display()),
        ),
        (Some(pages), Some(free)) => {
            Check::ok(NAME, format!("{pages} pages of {CHUNK}, {free} of them free"))
        }
        _ => Check::ok(NAME, format!("no pages of {CHUNK}: no --memory-backing hugetlbfs")),
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tempfile::TempDir;

    use super::*;

    fn directory(files: &[(&str, &str)]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn units_are_never_parts_of_the_hosts_pages() {
        for (page, least) in [(4, "128 KiB"), (16, "128 KiB"), (64, "128 KiB"), (512, "512 KiB")] {
            let check = page_reporting(Bytes::kib(page), None);

            let units = format!("units of {least} (small guests) to 2 MiB");
            assert!(check.found.contains(&units), "{check}");
            assert!(!check.found.contains("khugepaged"), "{check}");
        }
    }

    #[test]
    fn khugepaged_is_told_of_where_it_fills_holes() {
        for (enabled, none, told) in [
            ("always [madvise] never", "511", true),
            ("[always] madvise never", "1", true),
            ("always [madvise] never", "0", false),
            ("always madvise [never]", "511", false),
        ] {
            let thp = directory(&[("enabled", enabled), ("khugepaged/max_ptes_none", none)]);

            let check = page_reporting(GUEST_PAGE, Some(thp.path()));

            assert_eq!(check.found.contains("khugepaged"), told, "{enabled} {none}");
        }
    }

    #[test]
    fn a_pool_is_told_with_what_is_free() {
        let full = directory(&[("nr_hugepages", "8\n"), ("free_hugepages", "3\n")]);
        let empty = directory(&[("nr_hugepages", "0\n"), ("free_hugepages", "0\n")]);
        let none = directory(&[]);

        assert_eq!(pool(full.path()).found, "8 pages of 2 MiB, 3 of them free");
        assert!(pool(empty.path()).found.contains("echo N >"));
        assert!(pool(none.path()).found.contains("no --memory-backing hugetlbfs"));
    }
}
