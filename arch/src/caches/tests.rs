#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn files<'a>(level: &'a str, kind: &'a str, size: &'a str, shared: &'a str) -> IndexFiles<'a> {
    IndexFiles {
        level: Some(level),
        kind: Some(kind),
        size: Some(size),
        line_size: Some("64\n"),
        sets: Some("256\n"),
        shared: Some(shared),
    }
}

/// A CPU of a server: L1 and L2 of its own, L3 shared.
fn server(cpu: u32) -> Vec<Cache> {
    let own = format!("{cpu}\n");
    [
        files("1\n", "Data\n", "64K\n", &own),
        files("1\n", "Instruction\n", "32K\n", &own),
        files("2\n", "Unified\n", "1024K\n", &own),
        files("3\n", "Unified\n", "32768K\n", "0-3\n"),
    ]
    .map(|files| Cache::parse(&files).unwrap())
    .to_vec()
}

fn clidr(kinds: &[u64]) -> Clidr {
    Clidr::new(kinds.iter().rev().fold(0, |value, kind| value << 3 | kind))
}

#[test]
fn a_server_has_three_levels_of_which_the_last_is_shared() {
    let topology = CacheTopology::new(&[server(0), server(1)]).unwrap();

    let geometry = |kib| Some(Geometry { size: Bytes::kib(kib), line: 64, sets: 256 });
    let none = Level { data: None, instruction: None, unified: None, shared: false };
    assert_eq!(
        topology.levels(),
        [
            Level { data: geometry(64), instruction: geometry(32), ..none },
            Level { unified: geometry(1024), ..none },
            Level { unified: geometry(32768), shared: true, ..none },
        ]
    );
}

#[test]
fn threads_of_one_core_do_not_make_its_caches_shared() {
    let caches = [files("1", "Unified", "32K", "0,4"), files("2", "Unified", "512K", "0,4")];
    let caches = caches.map(|files| Cache::parse(&files).unwrap()).to_vec();

    assert!(!CacheTopology::new(&[caches]).unwrap().levels()[1].shared);
}

#[test]
fn the_first_level_is_never_shared() {
    let mut caches = server(0);
    caches[1].cpus = "0-1".to_owned();

    assert!(!CacheTopology::new(&[caches]).unwrap().levels()[0].shared);
}

#[test]
fn what_is_behind_a_shared_cache_is_shared() {
    let mut caches = server(0);
    caches[2].cpus = "0-1".to_owned();
    caches[3].cpus = "0".to_owned();

    let topology = CacheTopology::new(&[caches]).unwrap();

    assert_eq!(
        topology.levels().iter().map(|level| level.shared).collect::<Vec<_>>(),
        [false, true, true]
    );
}

#[test]
fn each_file_that_is_missing_is_named() {
    let whole = files("1", "Data", "64K", "0");
    let cases = [
        (IndexFiles { level: None, ..whole }, "level"),
        (IndexFiles { kind: None, ..whole }, "type"),
        (IndexFiles { size: None, ..whole }, "size"),
        (IndexFiles { line_size: None, ..whole }, "coherency_line_size"),
        (IndexFiles { sets: None, ..whole }, "number_of_sets"),
        (IndexFiles { shared: None, ..whole }, "shared_cpu_list"),
    ];
    for (files, file) in cases {
        assert_eq!(Cache::parse(&files), Err(Unknown::Missing { file }));
    }
}

#[test]
fn text_that_makes_no_sense_is_refused() {
    let whole = files("1", "Data", "64K", "0");
    let cases = [
        IndexFiles { level: Some("0"), ..whole },
        IndexFiles { level: Some("8"), ..whole },
        IndexFiles { level: Some("-1"), ..whole },
        IndexFiles { kind: Some("Trace"), ..whole },
        IndexFiles { size: Some("64"), ..whole },
        IndexFiles { size: Some("0K"), ..whole },
        IndexFiles { size: Some("4194304K"), ..whole },
        IndexFiles { line_size: Some("+64"), ..whole },
        IndexFiles { sets: Some("99999999999"), ..whole },
        IndexFiles { sets: Some(""), ..whole },
    ];
    for files in cases {
        assert!(matches!(Cache::parse(&files), Err(Unknown::Text { .. })), "{files:?}");
    }
}

#[test]
fn a_host_that_lists_nothing_is_unknown() {
    assert_eq!(CacheTopology::new(&[]), Err(Unknown::Unlisted));
    assert_eq!(CacheTopology::new(&[vec![], vec![]]), Err(Unknown::Unlisted));
}

#[test]
fn a_cpu_that_lists_nothing_is_left_out() {
    assert!(CacheTopology::new(&[vec![], server(1)]).is_ok());
}

#[test]
fn cpus_with_different_caches_are_refused() {
    let mut little = server(4);
    little.truncate(3);

    assert_eq!(CacheTopology::new(&[server(0), little]), Err(Unknown::Different));
}

#[test]
fn levels_that_do_not_follow_each_other_are_refused() {
    let mut gap = server(0);
    gap.remove(2);
    let mut twice = server(0);
    twice.push(twice[2].clone());
    let mut both = server(0);
    both[1].kind = Kind::Unified;
    let beginning = server(0).split_off(2);

    for caches in [gap, twice, both, beginning] {
        assert_eq!(CacheTopology::new(&[caches]), Err(Unknown::Levels));
    }
}

#[test]
fn separate_caches_behind_the_first_level_are_refused() {
    let mut caches = server(0);
    caches[2].kind = Kind::Data;

    assert_eq!(CacheTopology::new(&[caches]), Err(Unknown::Separate { level: 2 }));
}

#[test]
fn a_clidr_has_its_kinds() {
    let clidr = clidr(&[3, 4, 2, 1, 0, 4]);

    let kinds: Vec<Kind> = (0..9).map(|level| clidr.kind(level)).collect();

    let [none, unified] = [Kind::None, Kind::Unified];
    let expected =
        [none, Kind::Separate, unified, Kind::Data, Kind::Instruction, none, none, none, none];
    assert_eq!(kinds, expected);
}

#[test]
fn a_clidr_agrees_where_it_shows_the_same_or_ends_before() {
    let topology = CacheTopology::new(&[server(0)]).unwrap();

    for agrees in [&[3][..], &[3, 4], &[3, 4, 4]] {
        assert_eq!(topology.check(clidr(agrees)), Ok(()));
    }
}

#[test]
fn a_clidr_that_kvm_has_made_up_may_disagree() {
    let topology = CacheTopology::new(&[server(0)]).unwrap();
    // CTR_EL0.IDC and DIC; IDC alone; more levels than there are; none at all.
    let cases = [
        (&[4][..], 1, Kind::Unified, Kind::Separate),
        (&[1, 4], 1, Kind::Instruction, Kind::Separate),
        (&[3, 4, 4, 4], 4, Kind::Unified, Kind::None),
        (&[], 1, Kind::None, Kind::Separate),
    ];
    for (kinds, level, guest, host) in cases {
        assert_eq!(topology.check(clidr(kinds)), Err(Unknown::Clidr { level, guest, host }));
    }
}

#[test]
fn a_reason_is_one_line_and_says_what_differs() {
    let topology = CacheTopology::new(&[server(0)]).unwrap();

    let reason = topology.check(clidr(&[4])).unwrap_err().to_string();

    assert_eq!(
        reason,
        "the guest's CPUs show a unified cache at level 1 (CLIDR_EL1), where the host's have \
         separate caches"
    );
}

proptest! {
    #[test]
    fn no_text_panics(texts: [Option<String>; 6], value: u64) {
        let [level, kind, size, line_size, sets, shared] = texts.each_ref().map(Option::as_deref);
        let files = IndexFiles { level, kind, size, line_size, sets, shared };
        if let Ok(cache) = Cache::parse(&files) {
            let _ = CacheTopology::new(&[vec![cache]]).map(|topology| topology.check(Clidr::new(value)));
        }
        let _ = CacheTopology::new(&[server(0)]).map(|topology| topology.check(Clidr::new(value)));
    }
}
