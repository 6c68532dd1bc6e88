//! The limits on memory of this process's control groups, version 2: its own and those that it is in.
//!
//! # References
//! Linux Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files"; cgroups(7), "/proc files"

use std::path::{Path, PathBuf};

use arch::units::Bytes;

use super::small_file;

/// Where they are mounted, as by systemd.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Groups that are looked at, from the innermost out. Those of a service or of a container are in six at most.
const MOST: usize = 16;

/// Bytes of `memory.stat` that are read: what is looked for stands in its first twenty lines.
const START_OF_STAT: usize = 1024;

/// A group whose memory is limited.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Limited {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// What it may have: the lower one of `memory.high`, beyond which the kernel throttles it, and `memory.max`,
    /// beyond which it kills.
    pub(crate) limit: Bytes,
    /// How much of that it can still have, what its caches of files give up included.
    pub(crate) available: Bytes,
}

/// Those groups of this process that have a limit. They are looked up anew each time: a service manager may move
/// the process, and change limits.
pub(crate) fn limited() -> Vec<Limited> {
    let own = small_file::text(Path::new("/proc/self/cgroup"));
    own.as_deref().and_then(path).map(|own| above(Path::new(ROOT), own)).unwrap_or_default()
}

/// The path of a group in the only hierarchy that version 2 has.
fn path(own: &str) -> Option<&str> {
    own.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The limited ones of a group and of those that it is in. The root has no limit.
fn above(root: &Path, own: &str) -> Vec<Limited> {
    let folder = root.join(own.trim_end_matches('/'));
    // A group outside of this process's namespace is shown by "..", and cannot be looked at.
    let groups = folder.ancestors().take_while(|folder| *folder != root).take(MOST);
    match own.split('/').any(|part| part == "..") {
        true => Vec::new(),
        false => groups.filter_map(look).collect(),
    }
}

fn look(folder: &Path) -> Option<Limited> {
    let read = |name: &str| small_file::text(&folder.join(name));
    // "max" is none.
    let bytes = |name: &str| read(name)?.trim().parse().ok().map(Bytes::new);
    let limit = [bytes("memory.high"), bytes("memory.max")].into_iter().flatten().min()?;
    let current = bytes("memory.current")?;
    let stat = small_file::start::<START_OF_STAT>(&folder.join("memory.stat")).unwrap_or_default();
    let free = limit.saturating_sub(current).get();
    let available = Bytes::new(free.saturating_add(clean(&stat).get())).min(limit);
    Some(Limited { folder: folder.to_owned(), limit, available })
}

/// The caches of files that can be dropped without a write to a disk: of a memfd and of a tmpfs they cannot.
fn clean(stat: &str) -> Bytes {
    let field = |name: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let kept = field("shmem").saturating_add(field("file_dirty"));
    Bytes::new(field("file").saturating_sub(kept))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const STAT: &str = "anon 1000\nfile 500\nkernel 70\nshmem 100\nfile_mapped 3\nfile_dirty 50\nfile_writeback 0\n";

    /// A hierarchy in which each group has these files.
    fn hierarchy(groups: &[(&str, &[(&str, &str)])]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (group, files) in groups {
            let folder = root.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in *files {
                fs::write(folder.join(name), text).unwrap();
            }
        }
        root
    }

    #[test]
    fn the_path_is_that_of_version_2() {
        assert_eq!(path("0::/system.slice/vm.service\n"), Some("system.slice/vm.service"));
        assert_eq!(path("1:memory:/a\n0::/\n"), Some(""));
        assert_eq!(path("1:memory:/a\n"), None);
    }

    #[test]
    fn each_limit_on_the_way_to_the_root_counts() {
        let root = hierarchy(&[
            ("", &[("memory.max", "5\n"), ("memory.current", "1\n")]),
            (
                "a",
                &[
                    ("memory.high", "9000\n"),
                    ("memory.max", "9500\n"),
                    ("memory.current", "8000\n"),
                ],
            ),
            (
                "a/b",
                &[("memory.high", "max\n"), ("memory.max", "max\n"), ("memory.current", "7\n")],
            ),
            (
                "a/b/c",
                &[("memory.max", "4096\n"), ("memory.current", "2000\n"), ("memory.stat", STAT)],
            ),
        ]);

        let found = above(root.path(), "a/b/c");

        let limited = |group: &str, limit, available| Limited {
            folder: root.path().join(group),
            limit: Bytes::new(limit),
            available: Bytes::new(available),
        };
        assert_eq!(found, [limited("a/b/c", 4096, 2096 + 350), limited("a", 9000, 1000)]);
    }

    #[test]
    fn a_group_beyond_its_limit_has_nothing_left() {
        let files: &[_] =
            &[("memory.high", "10"), ("memory.current", "30"), ("memory.stat", "anon 30\n")];
        let root = hierarchy(&[("a", files)]);

        assert_eq!(above(root.path(), "a").first().unwrap().available, Bytes::ZERO);
    }

    #[test]
    fn what_cannot_be_read_is_no_limit() {
        let root = hierarchy(&[("a", &[("memory.max", "much"), ("memory.current", "1")])]);

        for own in ["", "a", "nothing", "../a", "a/../a"] {
            assert_eq!(above(root.path(), own), [], "{own}");
        }
    }
}
