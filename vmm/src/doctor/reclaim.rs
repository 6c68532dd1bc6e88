//! What guests can give back to this host, and what keeps them from it.

use std::fs;
use std::path::Path;

use arch::layout::{CHUNK, MIN_MEMORY};
use arch::units::Bytes;
use rustix::param::page_size;

use super::Check;
use crate::backends::reporting;
use crate::memory::GuestRam;
use crate::sys::huge_pages::huge_page_size;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The guests whose units are told: nearly all kernels have pages of 4 KiB.
const GUEST_PAGE: Bytes = Bytes::kib(4);

pub(super) fn checks() -> Vec<Check> {
    let page = Bytes::new(page_size() as u64);
    let size = huge_page_size();
    let thp = size.filter(|size| *size <= CHUNK).map(|_| Path::new(THP));
    let whole = thp.filter(|_| size == Some(CHUNK));
    vec![
        page_reporting(page, thp),
        huge_pages(whole, GuestRam::host_can_collapse),
        pool(Path::new(POOL)),
    ]
}

/// What comes back to guests in huge pages. `thp` is the directory of transparent huge pages where these are as large as a
/// chunk, and `can_collapse` whether the kernel makes such of small ones.
fn huge_pages(thp: Option<&Path>, can_collapse: impl Fn() -> bool) -> Check {
    const NAME: &str = "huge pages";
    // A page of the pool goes back whole or not at all.
    const HUGETLBFS: &str = "hugetlbfs gives back whole pages only";
    let chosen = |name: &str| {
        let text = thp.and_then(|thp| fs::read_to_string(thp.join(name)).ok()).unwrap_or_default();
        let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        word.map(|(word, _)| word.to_owned())
    };
    let is_on = chosen("enabled").is_some_and(|mode| mode != "never");
    if !is_on {
        let found = format!("none of {CHUNK} for guest memory that is not hugetlbfs; {HUGETLBFS}");
        return Check::ok(NAME, found);
    }
    let parts = match can_collapse() {
        true => "in parts as well",
        false => "but not in parts (MADV_COLLAPSE, Linux 6.1)",
    };
    let memfd = match chosen("shmem_enabled").as_deref() {
        None | Some("never" | "deny") => "a memfd has none (its shmem_enabled)",
        Some(_) => "a memfd does not where a part has gone",
    };
    Check::ok(
        NAME,
        format!(
            "anonymous memory that went back comes in huge pages again, {parts}, with tag storage strict, on demand or \
             off, but if it is restored with --lazy on demand only; {memfd}; {HUGETLBFS}"
        ),
    )
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
    fn what_comes_back_in_huge_pages_is_told() {
        for (enabled, shmem, collapses, told, untold) in [
            ("always [madvise] never", "[advise]", true, "in parts as well", "memfd has none"),
            ("[always] madvise never", "[never]", true, "memfd has none", "but not in parts"),
            (
                "[always] madvise never",
                "[always]",
                false,
                "not in parts (MADV_COLLAPSE",
                "has none",
            ),
            ("always madvise [never]", "[always]", true, "none of 2 MiB", "anonymous"),
        ] {
            let thp = directory(&[("enabled", enabled), ("shmem_enabled", shmem)]);

            let check = huge_pages(Some(thp.path()), || collapses);

            assert!(check.found.contains(told) && !check.found.contains(untold), "{check}");
            assert!(check.found.contains("hugetlbfs"), "{check}");
        }
        assert!(huge_pages(None, || true).found.contains("none of 2 MiB"));
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
