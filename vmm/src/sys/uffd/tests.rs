#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::thread;

use proptest::prelude::*;
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

/// Whether each page of anonymous memory is there.
fn present(memory: &Memory) -> Vec<bool> {
    let mut found = vec![0; SIZE / rustix::param::page_size()];
    // SAFETY: the mapping is there, and the vector has a byte for each of its pages.
    assert_eq!(unsafe { libc::mincore(memory.0.cast(), SIZE, found.as_mut_ptr()) }, 0);
    found.into_iter().map(|page| page & 1 != 0).collect()
}

/// What a page is before.
#[derive(Clone, Copy, Debug)]
struct Page {
    is_armed: bool,
    is_there: bool,
    /// Whether it is in a mapping of another kind than its neighbours.
    is_apart: bool,
}

/// Such memory, and what catches its faults.
fn memory_of(pages: &[Page], uffd: &Uffd) -> Memory {
    let (memory, size) = (Memory::new(), rustix::param::page_size());
    // One touch is to make one page. A kernel without larger ones refuses.
    // SAFETY: the size of pages changes no contents.
    let _ = unsafe { madvise(memory.0.cast(), SIZE, Advice::LinuxNoHugepage) };
    for (at, page) in pages.iter().enumerate() {
        let start = memory.0.wrapping_add(at * size);
        if page.is_there {
            // SAFETY: the page is one of the mapping's.
            unsafe { start.write_volatile(7) };
        }
        if page.is_apart {
            // SAFETY: what is in a core dump changes no contents.
            unsafe { madvise(start.cast(), size, Advice::LinuxDontDump) }.unwrap();
        }
        if page.is_armed {
            let start = start.expose_provenance() as u64;
            uffd.arm(&(start..start + size as u64)).unwrap();
        }
    }
    memory
}

fn some_pages() -> impl Strategy<Value = Vec<Page>> {
    let page = any::<[bool; 3]>().prop_map(|[is_armed, is_there, is_apart]| Page {
        is_armed,
        is_there,
        is_apart,
    });
    proptest::collection::vec(page, SIZE / rustix::param::page_size())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn whatever_is_armed_is_filled_and_nothing_else(pages in some_pages()) {
        if !may_catch_faults() {
            return Ok(());
        }
        let uffd = Uffd::new().unwrap();
        let memory = memory_of(&pages, &uffd);

        uffd.fill(&memory.range(), rustix::param::page_size() as u64).unwrap();

        let expected: Vec<_> = pages.iter().map(|page| page.is_armed || page.is_there).collect();
        prop_assert_eq!(present(&memory), expected);
        for (at, page) in pages.iter().enumerate().filter(|(_, page)| page.is_there) {
            // SAFETY: the page is one of the mapping's, and is there.
            let found = unsafe { memory.0.add(at * rustix::param::page_size()).read_volatile() };
            prop_assert_eq!(found, 7, "{:?}", page);
        }
    }

    #[test]
    fn whatever_is_armed_and_not_there_is_poisoned_and_nothing_else(pages in some_pages()) {
        if !may_catch_faults() {
            return Ok(());
        }
        // A kernel before Linux 6.8: the test beside this one says so.
        let Ok(uffd) = Uffd::with_moves() else { return Ok(()) };
        let (memory, size) = (memory_of(&pages, &uffd), rustix::param::page_size());

        uffd.poison(&memory.range(), size as u64).unwrap();

        for (at, page) in pages.iter().enumerate() {
            let read = read_by_the_kernel(memory.range().start + (at * size) as u64);
            prop_assert_eq!(read.is_err(), page.is_armed && !page.is_there, "{:?}", page);
        }
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
