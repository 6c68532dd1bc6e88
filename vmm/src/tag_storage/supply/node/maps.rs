//! Which mappings of a process have pages on a node.
//!
//! # References
//! proc_pid_numa_maps(5), proc_pid_maps(5)

use std::ops::Range;

/// The addresses of the mappings that have pages on `node`, from `numa_maps`, which has where each begins,
/// and `maps`, which has where it ends. What is in only one of them was mapped or unmapped meanwhile, and
/// is left out.
pub(crate) fn mappings_on(node: u32, numa_maps: &str, maps: &str) -> Vec<Range<u64>> {
    let key = format!("N{node}=");
    let mut all = maps.lines().filter_map(addresses).peekable();
    let mut found = Vec::new();
    for line in numa_maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let start = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
        let (Some(start), true) = (start, words.any(|word| word.starts_with(&key))) else {
            continue;
        };
        // Both lists are in the order of addresses.
        while all.next_if(|mapping| mapping.start < start).is_some() {}
        found.extend(all.next_if(|mapping| mapping.start == start));
    }
    found
}

fn addresses(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)]

    use super::*;

    const NUMA_MAPS: &str = "\
00400000 default file=/bin/tessera mapped=3 N0=3 kernelpagesize_kB=4
ffff80000000 prefer (many):0 anon=1024 dirty=1024 N0=512 N1=512 kernelpagesize_kB=4
ffff90000000 default anon=1 dirty=1 N10=1 kernelpagesize_kB=4
ffffa0000000 prefer:1 anon=7 dirty=7 N1=7 kernelpagesize_kB=4
ffffb0000000 prefer:1 anon=7 dirty=7 N1=7 kernelpagesize_kB=4
";
    const MAPS: &str = "\
00400000-00500000 r-xp 00000000 00:02 17 /bin/tessera
ffff80000000-ffffa0000000 rw-p 00000000 00:00 0
ffffa0000000-ffffa0200000 rw-p 00000000 00:00 0 [heap]
";

    #[test]
    fn mappings_with_pages_on_the_node_are_found_with_their_ends() {
        let found = mappings_on(1, NUMA_MAPS, MAPS);

        assert_eq!(found, [0xffff_8000_0000..0xffff_a000_0000, 0xffff_a000_0000..0xffff_a020_0000]);
        assert_eq!(mappings_on(0, NUMA_MAPS, MAPS).len(), 2);
        assert_eq!(mappings_on(2, NUMA_MAPS, MAPS), []);
    }

    #[test]
    fn nonsense_is_left_out() {
        assert_eq!(mappings_on(1, "x N1=1\n\n7 N1=\n-", "7-\n-\n7\nzz-yy\n\n"), []);
        assert_eq!(mappings_on(1, "", MAPS), []);
    }
}
