#![allow(clippy::unwrap_used)]

use super::*;
use crate::sys::numa::{MemPolicy, NodeSet, set_rule};

const SIZE: Bytes = Bytes::mib(4);

fn attributes(backing: Backing) -> Attributes {
    Attributes { backing, ..Attributes::default() }
}

/// The flags of the mapping that has just these addresses, as smaps has them, and its name.
fn flags_and_name(mapping: &Mapping) -> (Vec<String>, String) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = mapping.as_ptr() as usize;
    let header = format!("{start:x}-{:x} ", start + mapping.len());
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&header));
    let name = lines.next().unwrap().split_ascii_whitespace().nth(5).unwrap_or("").to_owned();
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    (flags.split_ascii_whitespace().map(str::to_owned).collect(), name)
}

#[test]
fn a_mapping_starts_at_a_chunk_and_has_the_length_asked_for() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        for chunks in [1, 2, 33] {
            let size = Bytes::new(CHUNK.get() * chunks);
            let mapping = Mapping::new(size, attributes(backing)).unwrap();
            assert_eq!(mapping.as_ptr().align_offset(CHUNK.get() as usize), 0);
            assert_eq!(mapping.len() as u64, size.get());
        }
    }
}

#[test]
fn more_than_the_address_space_is_an_error() {
    for size in [Bytes::new(u64::MAX - (CHUNK.get() - 1)), Bytes::new(1 << 60)] {
        let error = Mapping::new(size, Attributes::default()).unwrap_err();
        assert!(matches!(error, Error::AddressSpace { .. }), "{error:?}");
    }
}

#[test]
fn room_for_memory_is_aligned_with_a_page_on_both_sides() {
    let page = rustix::param::page_size();
    for alignment in [page, 2 << 20, 32 << 20] {
        for length in [page, 2 << 20, 6 << 20] {
            let reserved = Reserved::new(length, alignment).unwrap();
            let (base, start) = (reserved.base.as_ptr() as usize, reserved.start.as_ptr() as usize);

            assert!(start.is_multiple_of(alignment));
            assert!(start >= base + page);
            assert!(start + length + page <= base + reserved.total);
        }
    }
}

#[test]
fn smaps_shows_attributes_and_backing() {
    for (backing, expected) in [(Backing::Anonymous, ""), (Backing::Memfd, "/memfd:tessera-ram")] {
        let mapping = Mapping::new(SIZE, attributes(backing)).unwrap();

        let (flags, name) = flags_and_name(&mapping);

        assert_eq!(name, expected);
        assert!(flags.iter().any(|flag| flag == "dd"), "dumped: {flags:?}");
        assert!(flags.iter().any(|flag| flag == "dc"), "copied by fork: {flags:?}");
        assert_eq!(flags.iter().any(|flag| flag == "sh"), backing == Backing::Memfd, "{flags:?}");
    }
}

#[test]
fn attributes_survive_a_discard() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        for huge_pages in [false, true] {
            let wanted = Attributes { tags: true, huge_pages, backing };
            let mapping = Mapping::new(SIZE, wanted).unwrap();
            let before = flags_and_name(&mapping);

            mapping.discard(0, CHUNK.get()).unwrap();
            mapping.discard(CHUNK.get(), backing.page_size().get()).unwrap();

            assert_eq!(flags_and_name(&mapping), before);
        }
    }
}

#[test]
fn what_is_not_whole_pages_of_the_memory_is_not_discarded() {
    let page = rustix::param::page_size() as u64;
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let mapping = Mapping::new(SIZE, attributes(backing)).unwrap();
        let size = SIZE.get();
        for (offset, length) in [
            (1, page),
            (0, page - 1),
            (size, page),
            (size - page, 2 * page),
            (0, size + page),
            (u64::MAX - page + 1, page),
            (page, u64::MAX - page + 1),
        ] {
            let error = mapping.discard(offset, length).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{offset:#x} {length:#x}");
        }
        mapping.discard(size, 0).unwrap();
    }
}

#[test]
fn a_refusal_with_tags_names_the_kernel_that_has_them() {
    let page = CHUNK;
    for (backing, since) in [(Backing::Hugetlbfs { page }, "6.13"), (Backing::Memfd, "6.2")] {
        let wanted = Attributes { tags: true, huge_pages: false, backing };
        let error = map_error(SIZE, wanted, Errno::INVAL);
        assert!(matches!(error, Error::Tags { .. }), "{error:?}");
        assert!(error.to_string().contains(since), "{error}");

        let untagged = map_error(SIZE, attributes(backing), Errno::INVAL);
        assert!(matches!(untagged, Error::Map { .. }), "{untagged:?}");
    }
}

#[test]
fn an_exhausted_pool_of_huge_pages_is_an_error_at_once_that_says_how_to_fill_it() {
    let page = CHUNK;
    // 256 GiB more than the pool has now: no host makes that up on the way.
    let count = free_huge_pages(page).unwrap_or(0) + (128 << 10);
    let size = Bytes::new(count * page.get());

    let error = Mapping::new(size, attributes(Backing::Hugetlbfs { page })).unwrap_err();

    match &error {
        Error::HugePages { .. } => {
            let text = error.to_string();
            assert!(text.contains(&format!("takes {count} huge pages of 2 MiB")), "{text}");
            assert!(text.contains("hugepages-2048kB/nr_hugepages"), "{text}");
        }
        // A kernel or container without hugetlbfs.
        Error::File { .. } | Error::NoSuchHugePages { .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hole_is_closed_with_zeroes_that_are_mapped_as_the_rest() {
    let wanted = Attributes { tags: false, huge_pages: true, backing: Backing::Anonymous };
    let mapping = Mapping::new(SIZE, wanted).unwrap();
    let before = flags_and_name(&mapping);
    let hole = CHUNK.get()..2 * CHUNK.get();
    let start = mapping.as_ptr().wrapping_add(hole.start as usize);
    // SAFETY: the part lies in the mapping, and nothing uses it.
    unsafe { munmap(start.cast(), CHUNK.get() as usize) }.unwrap();
    assert!(mapping.has_hole(&hole));

    mapping.close_hole(&hole, Errno::NOMEM).unwrap();

    assert!(!mapping.has_hole(&(0..SIZE.get())));
    assert_eq!(flags_and_name(&mapping), before);
    // SAFETY: the part is mapped again.
    unsafe {
        assert_eq!(start.read(), 0);
        start.write(1);
    }
}

#[test]
fn a_call_that_leaves_no_hole_has_failed_and_the_part_is_as_it_was() {
    let mapping = Mapping::new(SIZE, Attributes::default()).unwrap();
    // SAFETY: the first byte of the mapping, which nothing else uses.
    unsafe { mapping.as_ptr().write(7) };

    assert_eq!(mapping.close_hole(&(0..CHUNK.get()), Errno::NOMEM), Err(Errno::NOMEM));

    // SAFETY: as above.
    assert_eq!(unsafe { mapping.as_ptr().read() }, 7);
}

#[test]
fn what_is_mapped_anew_keeps_its_rule_for_placement_where_the_host_stops_half_way() {
    let mapping = Mapping::new(Bytes::mib(8), Attributes::default()).unwrap();
    let start = mapping.as_ptr().addr() as u64;
    let rule_at = |chunk: u64| Rule::at(start + chunk * CHUNK.get()).unwrap();
    let policy = MemPolicy::First(NodeSet::new([0]));
    match set_rule(start..start + mapping.len() as u64, &policy, false) {
        // A kernel without NUMA nodes has no rules to keep.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return,
        set => set.unwrap(),
    }
    let rule = rule_at(0);
    assert!(rule.is_some_and(|rule| !rule.is_default()));
    let mut pieces = 0;

    let stopped = mapping.keep_rule(&(0..mapping.len() as u64), CHUNK.get(), |piece| {
        pieces += 1;
        if pieces == 3 {
            return Err(Errno::NOMEM.into());
        }
        mapping.replace(&piece)
    });

    assert_eq!(stopped.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    assert_eq!([0, 1, 2, 3].map(rule_at), [rule; 4]);
}
