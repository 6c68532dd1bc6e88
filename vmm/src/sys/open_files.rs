//! How many descriptors this process may have.
#![allow(unsafe_code, reason = "rustix asks for descriptors that are open")]

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many numbers are looked at with one call.
const AT_ONCE: usize = 256;

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
    let have = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // All that there are: no number has to be looked at.
    let enough = if more >= have { have } else { limit_for(more, have)? };
    let current = Some(enough).filter(|limit| *limit != u64::MAX);
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum: current })?)
}

/// The limit, at most `have`, below which so many numbers are free. New descriptors get the lowest of them, and those that
/// are open may be anywhere, as who starts the process can pass any.
///
/// # Errors
/// When the kernel does not say which are open.
fn limit_for(more: u64, have: u64) -> io::Result<u64> {
    let (mut start, mut wanted) = (0, more);
    while wanted > 0 && start < have {
        // No more than may be needed: most of them are free.
        let length = (have - start).min(wanted).min(AT_ONCE as u64);
        for is_open in are_open(start, length as usize)? {
            if wanted == 0 {
                break;
            }
            start += 1;
            wanted -= u64::from(!is_open);
        }
    }
    Ok(start)
}

/// Which of `length` numbers from `start` on are open. Asked of poll(2), as /proc need not be there, and costs an inode for
/// each.
fn are_open(start: u64, length: usize) -> io::Result<impl Iterator<Item = bool>> {
    let no_events = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut numbers = [no_events; AT_ONCE];
    let numbers_asked = &mut numbers[..length.min(AT_ONCE)];
    for (place, number) in numbers_asked.iter_mut().zip(start..) {
        // The kernel has none beyond an int.
        place.fd = libc::c_int::try_from(number).unwrap_or(-1);
    }
    // SAFETY: the kernel reads and writes as many places as there are. It does not wait, and takes no number that is not
    // open for an error.
    let answer =
        unsafe { libc::poll(numbers_asked.as_mut_ptr(), numbers_asked.len() as libc::nfds_t, 0) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(numbers.into_iter().take(length).map(|place| place.revents & libc::POLLNVAL == 0))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// Has a descriptor under a number as well.
    fn at(file: &OwnedFd, number: i32) -> OwnedFd {
        // SAFETY: the number is free, and the descriptor that the kernel gives has no other owner.
        unsafe {
            OwnedFd::from_raw_fd(libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number))
        }
    }

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
        // Others are open between those that are free, and far beyond, as after a start by a program that leaves its own.
        let first = before.as_raw_fd();
        let between = [2, 3, 5].map(|offset| at(&before, first + offset));
        let beyond = at(&before, 700);
        assert_eq!(beyond.as_raw_fd(), 700);

        lower_limit(5).expect("a limit");

        let more: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
        assert_eq!(more.len(), 5);
        drop((before, between, more));
        assert!(raise_limit(u64::MAX) < 64);
        // What is open stays so.
        File::from(beyond).metadata().expect("it is open");
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
