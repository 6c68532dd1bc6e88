//! How the host does, for this process: its memory, and the limits of the control groups that the process is in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arch::units::Bytes;

use super::policy::{Host, is_at_ease, low_mark};
use crate::sys::{cgroup, meminfo, pressure, small_file};

/// Where the kernel tells of the memory of the whole host.
const MEMINFO: &str = "/proc/meminfo";
const PRESSURE: &str = "/proc/pressure/memory";
const STATM: &str = "/proc/self/statm";

/// What is read here beside the files of this process and those of all memory: a file, and a folder of files.
pub const READ: [&str; 2] = [PRESSURE, cgroup::ROOT];

/// What has memory, and waits for it.
#[derive(Debug)]
struct Scope {
    total: Bytes,
    available: Bytes,
    pressure: PathBuf,
}

/// Watches the host.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When each pressure was read last, and what it was then.
    before: Vec<(PathBuf, Instant, Duration)>,
}

impl Watch {
    /// The host now, or the control group that is nearer to being short. `None` where the kernel does not tell.
    pub(super) fn look(&mut self) -> Option<Host> {
        let scopes = scopes()?;
        let stalled = self.stalled(&scopes, Instant::now());
        let tightest = tightest(&scopes)?;
        Some(Host { total: tightest.total, available: tightest.available, stalled })
    }

    /// Forgets what was read before: what happened since is not this VM's.
    pub(super) fn forget(&mut self) {
        self.before.clear();
    }

    /// The worst pressure since the last look, in thousandths of the time. Where much is available, tasks do not wait for
    /// want of that: those of other groups reach limits of their own, and count for the whole host.
    fn stalled(&mut self, scopes: &[Scope], now: Instant) -> u16 {
        let read = |scope: &Scope| {
            Some((scope.pressure.clone(), now, pressure::stalled(&scope.pressure)?))
        };
        let after: Vec<_> = scopes.iter().filter_map(read).collect();
        let before = std::mem::replace(&mut self.before, after);
        let is_tight = |path: &PathBuf| {
            let mut scopes = scopes.iter().filter(|scope| scope.pressure == *path);
            scopes.any(|scope| !is_at_ease(scope.total, scope.available))
        };
        let shares = self.before.iter().filter(|(path, ..)| is_tight(path));
        let shares = shares.filter_map(|(path, at, total)| {
            let (_, since, earlier) = before.iter().find(|(other, ..)| other == path)?;
            Some(share(total.saturating_sub(*earlier), at.saturating_duration_since(*since)))
        });
        shares.max().unwrap_or(0)
    }
}

/// The host and the limited groups.
fn scopes() -> Option<Vec<Scope>> {
    let text = small_file::text(Path::new(MEMINFO))?;
    let total = meminfo::field(&text, "MemTotal")?;
    let available = meminfo::field(&text, "MemAvailable")?;
    let host = Scope { total, available, pressure: PRESSURE.into() };
    let groups = cgroup::limited().into_iter().map(|group| Scope {
        // A limit beyond the host's memory is none.
        total: group.limit.min(total),
        available: group.available.min(available),
        pressure: group.folder.join("memory.pressure"),
    });
    Some(std::iter::once(host).chain(groups).collect())
}

/// The one that has less available beside what makes it short than all others.
fn tightest(scopes: &[Scope]) -> Option<&Scope> {
    let part = |scope: &Scope| {
        let low = low_mark(scope.total).get().max(1);
        u128::from(scope.available.get()) * (1 << 20) / u128::from(low)
    };
    scopes.iter().min_by_key(|scope| part(scope))
}

/// A part of a time in thousandths.
fn share(part: Duration, of: Duration) -> u16 {
    let share = part.as_micros().saturating_mul(1000) / of.as_micros().max(1);
    u16::try_from(share.min(1000)).unwrap_or(1000)
}

/// What this process has in memory, guest memory included. Zero where the kernel does not tell.
///
/// # References
/// proc_pid_statm(5)
pub(super) fn resident() -> Bytes {
    let text = small_file::text(Path::new(STATM)).unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(0);
    Bytes::new(pages.saturating_mul(page))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_tightest_counts() {
        let scope = |total, available| Scope {
            total: Bytes::mib(total),
            available: Bytes::mib(available),
            pressure: PathBuf::new(),
        };
        let scopes = [scope(1000, 500), scope(100, 40), scope(100, 60)];

        assert_eq!(tightest(&scopes).unwrap().available, Bytes::mib(40));
        // A host of 1 TiB is far from short with 40 GiB, a group of 8 GiB is short with 460 MiB.
        let scopes = [scope(1 << 20, 40 << 10), scope(8 << 10, 460)];
        assert_eq!(tightest(&scopes).unwrap().available, Bytes::mib(460));
    }

    #[test]
    fn a_share_is_of_the_time_that_has_passed() {
        let ms = Duration::from_millis;

        assert_eq!(share(ms(25), ms(250)), 100);
        assert_eq!(share(ms(900), ms(250)), 1000);
        assert_eq!(share(ms(0), ms(0)), 0);
    }

    #[test]
    fn pressure_counts_from_the_second_look_on() {
        let folder = tempfile::TempDir::new().unwrap();
        let mut scope = Scope {
            total: Bytes::gib(1),
            available: Bytes::mib(200),
            pressure: folder.path().join("memory.pressure"),
        };
        let stalled = |scope: &Scope, micros: u64| {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={micros}\n");
            std::fs::write(&scope.pressure, text).unwrap();
        };
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);

        stalled(&scope, 5_000_000);
        let first = watch.stalled(std::slice::from_ref(&scope), at(0));
        stalled(&scope, 5_100_000);
        let second = watch.stalled(std::slice::from_ref(&scope), at(1));
        // With a quarter available it is not for want of this memory.
        scope.available = Bytes::mib(256);
        stalled(&scope, 5_200_000);
        let third = watch.stalled(std::slice::from_ref(&scope), at(2));

        assert_eq!((first, second, third), (0, 100, 0));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident() > Bytes::mib(1));
        assert!(Watch::default().look().is_some());
    }
}
