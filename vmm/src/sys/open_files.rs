//! How many descriptors this process may have.

use std::io;
use std::os::fd::AsRawFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asks for so many; how many the process may have then, which can be less or more.
pub(crate) fn raise_limit(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let have = limit.current.unwrap_or(u64::MAX);
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let more = Rlimit { current: Some(raised), maximum: limit.maximum };
    if raised > have && setrlimit(Resource::Nofile, more).is_ok() { raised } else { have }
}

/// Lets this process have those that it has and so many more, or as many as it may have now if that is less; for good.
///
/// # Errors
/// When the limit cannot be set.
pub(crate) fn lower_limit(more: u64) -> io::Result<()> {
    // A new one is the lowest that is free. Where there is none, no more are had.
    let lowest = eventfd(0, EventfdFlags::CLOEXEC).map(|lowest| lowest.as_raw_fd());
    let lowest = lowest.ok().and_then(|lowest| u64::try_from(lowest).ok()).unwrap_or(u64::MAX);
    let enough = lowest.saturating_add(more);
    let have = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let current = Some(enough.min(have)).filter(|limit| *limit != u64::MAX);
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum: current })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own, as it is for good.
    #[test]
    fn what_is_open_stays_and_so_many_more_can_be_opened() {
        const LOWERED: &str = "TESSERA_TEST_LOWERED";
        if std::env::var_os(LOWERED).is_none() {
            let name = "sys::open_files::tests::what_is_open_stays_and_so_many_more_can_be_opened";
            let mut again = std::process::Command::new(std::env::current_exe().expect("a program"));
            let ended = again.args(["--exact", name]).env(LOWERED, "").status();
            assert!(ended.expect("a process").success());
            return;
        }
        let open = || eventfd(0, EventfdFlags::CLOEXEC);
        let before = open().expect("one");

        lower_limit(5).expect("a limit");

        let more: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
        assert_eq!(more.len(), 5);
        drop((before, more));
        assert!(raise_limit(u64::MAX) < 64);
        // What is lower already stays so.
        let limit = getrlimit(Resource::Nofile).current;
        lower_limit(u64::MAX).expect("a limit");
        assert_eq!(getrlimit(Resource::Nofile).current, limit);
    }

    #[test]
    fn a_limit_is_raised_as_far_as_it_may_be_and_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        let have = before.current.unwrap_or(u64::MAX);

        assert_eq!(raise_limit(1), have);
        let raised = raise_limit(have.saturating_add(1));

        assert!(raised >= have);
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), raised);
        if before.maximum.is_none_or(|maximum| maximum > have) && have < u64::MAX {
            assert_eq!(raised, have + 1);
        }
    }
}
