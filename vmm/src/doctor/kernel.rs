//! The host's kernel, and the defects that its version is known to have.

use rustix::system::uname;

use super::Check;

/// A version, as far as it decides anything.
type Version = (u32, u32);

/// What kernels before a version lack or do wrong, where it touches guests with MTE.
const SINCE: [(Version, &str); 5] = [
    ((5, 13), "KVM gives guests no MTE"),
    ((5, 18), "a guest's panic looks like a reset (no PSCI SYSTEM_RESET2)"),
    ((6, 2), "guests with MTE cannot use shared memory"),
    ((6, 8), "no snapshot can be restored lazily (no UFFDIO_MOVE)"),
    ((6, 13), "guests with MTE cannot use hugetlbfs memory"),
];

/// Kernels before the fix of June 2026 (mainline 2986a6257405, stable from 5.10 on) let a guest with MTE
/// that reads a discarded private page set tags on the shared zero page.
const ZERO_PAGE_FIX: &str = "2026-06-30";

pub(super) fn version() -> Check {
    let name = uname();
    let release = name.release().to_string_lossy();
    let build = name.version().to_string_lossy();
    judge(&release, &build)
}

fn judge(release: &str, build: &str) -> Check {
    const NAME: &str = "kernel";
    let found = format!("Linux {release}");
    let Some(version) = parse(release) else {
        return Check::warn(
            NAME,
            found,
            "its version cannot be read, so its defects are not known",
        );
    };
    let mut defects: Vec<String> = SINCE
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|((major, minor), what)| format!("{what} before {major}.{minor}"))
        .collect();
    match build_date(build) {
        Some(date) if date >= ZERO_PAGE_FIX => {}
        Some(date) => defects.push(format!(
            "built on {date}, so it may lack the zero page fix for MTE guests of June 2026 (2986a6257405)"
        )),
        None => defects.push(
            "its build date is not in `uname -v`: look whether it has the zero page fix for MTE guests of June 2026 (2986a6257405)"
                .to_owned(),
        ),
    }
    if defects.is_empty() {
        return Check::ok(NAME, found);
    }
    Check::warn(NAME, found, format!("{}; a newer kernel helps", defects.join("; ")))
}

fn parse(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The date in a version text such as "#1 SMP Debian 6.12.95-1 (2026-07-05)". ISO dates compare as text.
fn build_date(build: &str) -> Option<&str> {
    build.split(|c: char| !(c.is_ascii_digit() || c == '-')).find(|word| {
        let bytes = word.as_bytes();
        bytes.len() == 10
            && bytes.iter().enumerate().all(|(at, byte)| (*byte == b'-') == (at == 4 || at == 7))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_recent_kernel_has_no_known_defect() {
        let check = judge("6.18.3-1-arm64", "#1 SMP Debian 6.18.3-1 (2026-09-01)");

        assert_eq!(check.outcome, Outcome::Ok, "{check}");
    }

    #[test]
    fn each_old_kernel_is_told_what_it_lacks() {
        for (release, lacks) in [
            ("5.10.0-30-arm64", "no MTE"),
            ("5.15.0", "SYSTEM_RESET2"),
            ("6.1.0-40-arm64", "shared memory"),
            ("6.6.0", "restored lazily"),
            ("6.12.95+deb13-cloud-arm64", "hugetlbfs"),
        ] {
            let check = judge(release, "#1 SMP (2026-09-01)");

            assert_eq!(check.outcome, Outcome::Warn);
            assert!(
                check.advice.as_deref().is_some_and(|advice| advice.contains(lacks)),
                "{check}"
            );
        }
    }

    #[test]
    fn a_build_before_the_zero_page_fix_is_named() {
        let check = judge("6.18.3", "#1 SMP PREEMPT_DYNAMIC Debian 6.18.3-1 (2026-05-01)");

        assert!(check.advice.is_some_and(|advice| advice.contains("2026-05-01")));
    }

    #[test]
    fn odd_version_texts_are_no_panic() {
        for release in ["", "linux", "6", "6.", "99999999999.1", "-1.2", "6.x"] {
            assert_eq!(judge(release, "é").outcome, Outcome::Warn);
        }
    }
}
