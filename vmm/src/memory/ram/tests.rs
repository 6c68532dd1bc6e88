#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestMemory};

use super::*;

const SIZE: Bytes = Bytes::mib(4);

fn ram(backing: Backing) -> GuestRam {
    GuestRam::new(SIZE, Attributes { backing, ..Attributes::default() }).unwrap()
}

#[test]
fn a_transport_can_own_a_clone_of_guest_memory() {
    fn owned<S: Deref<Target: GuestMemory + Sized> + Send + 'static>(memory: S) -> S {
        memory
    }
    let first = ram(Backing::Anonymous);
    let second = owned(first.clone());
    first.write_slice(b"seen by both", RAM_BASE).unwrap();
    drop(first);

    let mut bytes = [0; 12];
    second.read_slice(&mut bytes, RAM_BASE).unwrap();

    assert_eq!(&bytes, b"seen by both");
}

#[test]
fn every_backing_is_zero_at_first_and_keeps_what_is_written() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram(backing);
        let last = GuestAddress(ram.range().end().0 - 1);
        for at in [RAM_BASE, last] {
            assert_eq!(ram.read_obj::<u8>(at).unwrap(), 0);
            ram.write_obj(7u8, at).unwrap();
            assert_eq!(ram.read_obj::<u8>(at).unwrap(), 7);
        }
        assert_eq!(ram.backing(), backing);
    }
}

#[test]
fn addresses_of_guest_and_host_go_together() {
    let ram = ram(Backing::Anonymous);
    let at = GuestAddress(RAM_BASE.0 + 12345);

    let host = ram.get_host_address(at).unwrap() as u64;

    assert_eq!(host, ram.host_address() + 12345);
    assert!(ram.host_range().contains(&host));
    assert!(ram.get_host_address(ram.range().end()).is_err());
}

#[test]
fn locked_memory_is_resident_and_is_not_discarded_or_the_limit_is_named() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = ram(backing);

        match ram.lock() {
            Ok(()) => {
                assert!(ram.is_locked());
                let footprint = crate::memory::Footprint::of(&ram).unwrap();
                assert_eq!(footprint.resident, SIZE);
                let discarded = ram.discard(ram.range()).unwrap_err();
                assert_eq!(discarded.raw_os_error(), Some(libc::EINVAL));
            }
            Err(error) => {
                assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
                assert!(!ram.is_locked());
                ram.discard(ram.range()).unwrap();
            }
        }
    }
}

#[test]
fn a_discard_before_guest_memory_is_refused() {
    let page = Backing::Anonymous.page_size();
    let before = MemoryRange::new(GuestAddress(RAM_BASE.0 - page.get()), page);

    let error = ram(Backing::Anonymous).discard(before).unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

proptest! {
    #[test]
    fn a_slice_lies_in_guest_memory_or_is_refused(
        offset in prop_oneof![0..SIZE.get() + 10, any::<u64>()],
        count in prop_oneof![0..SIZE.get() as usize + 10, any::<usize>()],
    ) {
        let ram = ram(Backing::Anonymous);
        let region = ram.iter().next().unwrap();

        let slice = region.get_slice(MemoryRegionAddress(offset), count);

        let fits = u128::from(offset) + count as u128 <= u128::from(SIZE.get());
        prop_assert_eq!(slice.is_ok(), fits);
        if let Ok(slice) = slice {
            let start = slice.ptr_guard().as_ptr() as u64;
            prop_assert_eq!(start, ram.host_address() + offset);
            prop_assert_eq!(slice.len(), count);
        }
    }
}

#[test]
fn tags_of_memory_that_is_not_there_or_has_none_are_refused() {
    let ram = ram(Backing::Anonymous);
    let mut packed = [0; 128];

    assert!(ram.read_tags(0, &mut packed).is_err(), "it has no tags");
    assert!(ram.write_tags(u64::MAX - 4095, &packed).is_err());
    assert!(ram.fill_tags(ram.range().size.get(), 4096, Tag::ZERO).is_err());
}

#[test]
fn a_process_that_may_map_no_more_still_gives_back_what_is_a_templates() {
    let size = 2 * CHUNK.get();
    let page = rustix::param::page_size() as u64;
    let template = GuestRam::of_template(Bytes::new(size), Attributes::default()).unwrap();
    template.write_slice(&vec![7; size as usize], RAM_BASE).unwrap();
    let file = TemplateFile::new(template.into_template().unwrap(), Bytes::new(size)).unwrap();
    let ram = GuestRam::new(Bytes::new(size), Attributes::default()).unwrap();
    let all = TemplatePart { at: 0..size, offset: 0 };
    ram.share(&file, std::slice::from_ref(&all)).unwrap();
    let pages: Vec<u64> = (1..40).step_by(2).map(|at| at * page).collect();
    let mut others = Vec::with_capacity(1 << 16);
    // Each takes some mappings, so that a few are left.
    let refused = loop {
        match GuestRam::new(Bytes::new(size), Attributes::default()) {
            Ok(other) => others.push(other),
            Err(error) => break error,
        }
    };

    let gone: u64 = pages
        .iter()
        .map(|at| MemoryRange::new(GuestAddress(RAM_BASE.0 + at), Bytes::new(page)))
        .map(|range| ram.discard(range).unwrap().get())
        .sum();

    drop(others);
    assert!(gone < pages.len() as u64 * page, "there was no bound: {refused}");
    let first = |at: u64| ram.read_obj::<u8>(GuestAddress(RAM_BASE.0 + at)).unwrap();
    for at in (0..40).map(|at| at * page) {
        assert_eq!(first(at), if pages.contains(&at) { 0 } else { 7 }, "{at:#x}");
    }
}
