#![allow(clippy::unwrap_used)]

use std::thread;

use arch::layout::RAM_BASE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Uid;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::Backing;
use crate::tag_storage::reservation::testing::{may_catch_faults, ram, ram_of};

const PAGE: u64 = 4096;

fn at(chunk: u64, page: u64) -> GuestAddress {
    GuestAddress(RAM_BASE.0 + chunk * CHUNK.get() + page * PAGE)
}

fn chunks(start: u64, end: u64) -> Range<ChunkIndex> {
    ChunkIndex(start)..ChunkIndex(end)
}

/// Waits for touches.
fn next(uffd: &Uffd) -> Vec<ChunkIndex> {
    poll(&mut [PollFd::new(uffd, PollFlags::IN)], None).unwrap();
    uffd.touches().unwrap()
}

#[test]
fn a_touch_waits_until_its_chunk_is_disarmed_or_filled() {
    if !may_catch_faults() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram_of(8, backing, false);
        let uffd = Uffd::new(ram.clone()).unwrap();
        uffd.arm(&chunks(1, 4)).unwrap();
        assert_eq!(uffd.touches().unwrap(), []);
        ram.write_obj(1u8, at(0, 0)).unwrap();

        thread::scope(|scope| {
            let touch = scope.spawn(|| ram.write_obj(7u8, at(2, 5)).unwrap());
            assert_eq!(next(&uffd), [ChunkIndex(2)]);
            assert!(!touch.is_finished());
            uffd.wake(&one(ChunkIndex(2))).unwrap();
            // It is still not there.
            assert_eq!(next(&uffd), [ChunkIndex(2)]);
            uffd.disarm(&one(ChunkIndex(2))).unwrap();
        });
        thread::scope(|scope| {
            scope.spawn(|| ram.write_obj(8u8, at(3, 511)).unwrap());
            assert_eq!(next(&uffd), [ChunkIndex(3)]);
            uffd.fill(ChunkIndex(3)).unwrap();
        });

        assert_eq!(ram.read_obj::<u8>(at(2, 5)).unwrap(), 7);
        assert_eq!(ram.read_obj::<u8>(at(3, 511)).unwrap(), 8);
        assert_eq!(uffd.touches().unwrap(), []);
    }
}

#[test]
fn filling_leaves_the_pages_that_are_there() {
    if !may_catch_faults() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram_of(4, backing, false);
        for page in [0, 7, 8, 511] {
            ram.write_obj(page as u8 | 1, at(1, page)).unwrap();
        }
        let uffd = Uffd::new(ram.clone()).unwrap();
        // Not armed: nothing to do.
        uffd.fill(ChunkIndex(1)).unwrap();
        uffd.arm(&chunks(0, 2)).unwrap();

        uffd.fill(ChunkIndex(1)).unwrap();
        uffd.fill(ChunkIndex(1)).unwrap();

        for page in 0..512 {
            let expected = if [0, 7, 8, 511].contains(&page) { page as u8 | 1 } else { 0 };
            assert_eq!(ram.read_obj::<u8>(at(1, page)).unwrap(), expected, "page {page}");
        }
        assert_eq!(uffd.touches().unwrap(), []);
    }
}

#[test]
fn arming_and_disarming_twice_is_harmless() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(8);
    let uffd = Uffd::new(ram.clone()).unwrap();

    for _ in 0..2 {
        uffd.arm(&chunks(0, 3)).unwrap();
        uffd.arm(&chunks(1, 2)).unwrap();
        uffd.disarm(&chunks(0, 4)).unwrap();
        uffd.disarm(&chunks(0, 4)).unwrap();
    }

    ram.write_obj(1u8, at(1, 0)).unwrap();
    assert_eq!(uffd.touches().unwrap(), []);
}

#[test]
fn who_waits_goes_on_when_the_descriptor_is_closed() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(4);
    let uffd = Uffd::new(ram.clone()).unwrap();
    uffd.arm(&chunks(0, 2)).unwrap();

    thread::scope(|scope| {
        scope.spawn(|| ram.write_obj(7u8, at(0, 0)).unwrap());
        assert_eq!(next(&uffd), [ChunkIndex(0)]);
        drop(uffd);
    });

    assert_eq!(ram.read_obj::<u8>(at(0, 0)).unwrap(), 7);
}

#[test]
fn the_descriptor_is_not_inherited() {
    if !may_catch_faults() {
        return;
    }
    let uffd = Uffd::new(ram(2)).unwrap();

    let flags = rustix::io::fcntl_getfd(&uffd).unwrap();

    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn chunks_outside_of_memory_are_refused() {
    if !may_catch_faults() {
        return;
    }
    let uffd = Uffd::new(ram(4)).unwrap();

    for range in [
        chunks(0, 3),
        chunks(2, 2),
        chunks(1, 0),
        chunks(1 << 50, 1 << 51),
        one(ChunkIndex(u64::MAX)),
    ] {
        assert!(uffd.arm(&range).is_err(), "{range:?}");
        assert!(uffd.disarm(&range).is_err(), "{range:?}");
    }
    assert!(uffd.populate(ChunkIndex(2)).is_err());
    assert!(uffd.fill(ChunkIndex(u64::MAX)).is_err());
}

#[test]
fn a_message_that_is_no_fault_in_memory_is_left_out() {
    if !may_catch_faults() {
        return;
    }
    let ram = ram(4);
    let uffd = Uffd::new(ram.clone()).unwrap();
    let message = |event: u8, address: u64| {
        let mut message = [0; MESSAGE];
        message[0] = event;
        message[ADDRESS..ADDRESS + 8].copy_from_slice(&address.to_ne_bytes());
        message
    };
    let base = ram.host_address();

    assert_eq!(uffd.touched(&message(PAGE_FAULT, base)), Some(ChunkIndex(0)));
    let last = base + ram.range().size.get() - 1;
    assert_eq!(uffd.touched(&message(PAGE_FAULT, last)), Some(ChunkIndex(1)));
    for address in [0, base - 1, last + 1, u64::MAX] {
        assert_eq!(uffd.touched(&message(PAGE_FAULT, address)), None);
    }
    assert_eq!(uffd.touched(&message(PAGE_FAULT + 1, base)), None);
}

#[test]
fn a_user_without_rights_is_told_which_to_give() {
    let result = thread::spawn(|| {
        if rustix::process::geteuid().is_root() {
            let nobody = Uid::from_raw(65534);
            // This thread's alone: the C library would change all of the process's.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        Uffd::new(ram(2))
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
