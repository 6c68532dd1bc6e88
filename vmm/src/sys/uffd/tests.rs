#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::Uid;

use super::*;
use crate::tag_storage::reservation::testing::may_catch_faults;
use crate::testing::{Means, skip};

const SIZE: usize = 1 << 16;

/// Anonymous memory that nothing has touched.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), SIZE, access, MapFlags::PRIVATE) };
        Self(start.unwrap().cast())
    }

    fn range(&self) -> Range<u64> {
        let start = self.0.expose_provenance() as u64;
        start..start + SIZE as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it.
        unsafe { munmap(self.0.cast(), SIZE) }.unwrap();
    }
}

#[test]
fn a_fault_names_its_address_and_the_thread_that_waits() {
    if !may_catch_faults() {
        return;
    }
    let memory = Memory::new();
    let range = memory.range();
    let uffd = Uffd::new().unwrap();
    uffd.arm(&range).unwrap();
    let touched = range.start + SIZE as u64 / 2;

    let waiting = thread::spawn(move || {
        let page = std::ptr::with_exposed_provenance::<u8>(touched as usize);
        // SAFETY: the address lies in the mapping, which the test keeps until this thread has ended.
        (rustix::thread::gettid(), unsafe { page.read_volatile() })
    });
    poll(&mut [PollFd::new(&uffd, PollFlags::IN)], None).unwrap();
    let mut faults = Vec::new();
    uffd.read(&mut faults).unwrap();
    uffd.disarm(&range).unwrap();

    let (thread, value) = waiting.join().unwrap();
    assert_eq!(faults, [Fault { address: touched, thread: Some(thread) }]);
    assert_eq!(value, 0);
}

/// What a system call answers that reads a byte of this process.
fn read_by_the_kernel(address: u64) -> io::Result<()> {
    let (_read, write) = std::io::pipe().unwrap();
    let byte = std::ptr::with_exposed_provenance::<libc::c_void>(address as usize);
    // SAFETY: the kernel checks the address, and answers EFAULT where it cannot be read.
    match unsafe { libc::write(write.as_raw_fd(), byte, 1) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn what_is_poisoned_cannot_be_read_and_pages_that_are_there_stay() {
    if !may_catch_faults() {
        return;
    }
    let memory = Memory::new();
    let range = memory.range();
    let page = rustix::param::page_size() as u64;
    let uffd = match Uffd::with_moves() {
        Ok(uffd) => uffd,
        // A kernel before Linux 6.8.
        Err(error) => return skip(Means::Userfaultfd, crate::error::chain(&error)),
    };
    uffd.arm(&range).unwrap();
    let there = range.start + page..range.start + 2 * page;
    uffd.fill(&there, page).unwrap();

    uffd.poison(&range, page).unwrap();

    read_by_the_kernel(there.start).unwrap();
    for address in [range.start, there.end, range.end - page] {
        let refused = read_by_the_kernel(address).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
    }
}

#[test]
fn the_descriptor_is_not_inherited() {
    if !may_catch_faults() {
        return;
    }
    let uffd = Uffd::new().unwrap();

    let flags = rustix::io::fcntl_getfd(&uffd).unwrap();

    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn another_event_is_no_fault() {
    let mut message = [0; MESSAGE];
    message[ADDRESS] = 7;

    message[0] = PAGE_FAULT;
    assert_eq!(fault(&message), Some(Fault { address: 7, thread: None }));
    message[0] = PAGE_FAULT + 1;
    assert_eq!(fault(&message), None);
}

#[test]
fn a_user_without_rights_is_told_which_to_give() {
    let result = thread::spawn(|| {
        if rustix::process::geteuid().is_root() {
            let nobody = Uid::from_raw(65534);
            // This thread's alone: the C library would change all of the process's.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        Uffd::new()
    })
    .join()
    .unwrap();

    match result {
        // The host allows it to everybody.
        Ok(_) => {}
        Err(Error::Denied(_)) => {
            let text = result.unwrap_err().to_string();
            for word in [DEVICE, "vm.unprivileged_userfaultfd=1", "reserve strictly"] {
                assert!(text.contains(word), "{text}");
            }
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn each_refusal_of_the_host_has_its_reason() {
    assert!(matches!(refusal(Errno::NOSYS), Error::Missing(_)));
    assert!(matches!(refusal(Errno::PERM), Error::Denied(_)));
    assert!(matches!(refusal(Errno::MFILE), Error::Descriptor(_)));
}

/// What a call on parts is asked for, with these answers, and how it ends.
fn parts(answers: &[Result<u64, Errno>]) -> (Vec<u64>, io::Result<()>) {
    let (mut asked, mut answers) = (Vec::new(), answers.iter());
    let ended = by_parts(&(100..110), |left| {
        asked.push(left.start);
        assert_eq!(left.end, 110);
        *answers.next().unwrap()
    });
    (asked, ended)
}

#[test]
fn what_is_left_of_a_range_is_asked_for_until_nothing_is() {
    let (asked, ended) =
        parts(&[Ok(3), Err(Errno::AGAIN), Ok(6), Err(Errno::BUSY), Err(Errno::AGAIN), Ok(1)]);

    assert_eq!(asked, [100, 103, 103, 109, 109, 109]);
    ended.unwrap();
}

#[test]
fn an_error_or_a_standstill_ends_it() {
    let (asked, ended) = parts(&[Ok(3), Err(Errno::NOMEM)]);
    assert_eq!(asked, [100, 103]);
    assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::ENOMEM));

    let (asked, ended) = parts(&[Err(Errno::AGAIN); TRIES as usize + 1]);
    assert_eq!(asked.len(), TRIES as usize + 1);
    assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn a_part_is_what_the_kernel_says_that_it_has_done() {
    assert_eq!(part(Ok(()), 8, 8), Ok(8));
    assert_eq!(part(Err(Errno::AGAIN), 8, 4), Ok(4));
    for nothing in [0, -i64::from(libc::EAGAIN)] {
        assert_eq!(part(Err(Errno::AGAIN), 8, nothing), Err(Errno::AGAIN));
    }
    assert_eq!(part(Err(Errno::EXIST), 8, 4), Err(Errno::EXIST));
}
