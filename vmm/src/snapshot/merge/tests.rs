#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::memory_file::{GuestPages, PageSet, load_memory};
use super::super::testing::{FakeMemory, Filling, Page, chunk, memory, page, state};
use super::super::{MEMORY, STATE, SnapshotId};
use super::*;

/// Snapshots, each in a directory of its own.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        (folder.join(STATE), folder.join(MEMORY))
    }

    fn save(&self, name: &str, memory: &FakeMemory, base: Option<SnapshotId>) -> SnapshotId {
        let (state_path, memory_path) = self.paths(name);
        let mut pair = NewPair::create(&state_path, &memory_path).unwrap();
        pair.save_memory(memory, base, &mut |_| {}).unwrap();
        let id = pair.id();
        let mut state = state(id, memory);
        state.manifest.kind = base.map_or(Kind::Full, |base| Kind::Diff { base });
        state.clock.counter = id.0[0].into();
        pair.commit(&state).unwrap();
        id
    }

    fn open(&self, name: &str) -> Pair {
        let (state, memory) = self.paths(name);
        Pair::open_any(&state, &memory).unwrap()
    }

    fn merge(&self, base: &str, diff: &str, into: &str) -> Result<Saved, Error> {
        self.merge_all(base, &[diff], into)
    }

    fn merge_all(&self, base: &str, diffs: &[&str], into: &str) -> Result<Saved, Error> {
        let (state, memory) = self.paths(into);
        let diffs: Vec<_> = diffs.iter().map(|diff| self.open(diff)).collect();
        merge(&self.open(base), &diffs, &state, &memory, &mut |_| {})
    }

    fn load(&self, name: &str) -> FakeMemory {
        let pair = self.open(name);
        let about = pair.memory.about();
        let memory = FakeMemory::new(about.chunks(), about.page_size, about.tagged);
        load_memory(&memory, &pair.memory, &mut |_| {}).unwrap();
        memory
    }
}

/// What became of a page since the base. A page that is absent afterwards was discarded.
type Change = Option<Page>;

fn changes(pages: usize) -> impl Strategy<Value = Vec<Change>> {
    let all = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Page::Absent)),
        1 => page().prop_map(Some),
    ];
    let pieces = prop::collection::vec((all, 1usize..=pages.min(60)), 0..8);
    // Some chunks are all of a kind.
    (pieces, prop_oneof![Just(None), Just(Some(Page::Absent))]).prop_map(move |(pieces, rest)| {
        let each = pieces.into_iter().flat_map(|(page, count)| std::iter::repeat_n(page, count));
        each.chain(std::iter::repeat(rest)).take(pages).collect()
    })
}

/// Applies changes to a model.
fn apply(pages: &mut [Vec<Page>], changes: &[Vec<Change>]) {
    for (chunk, changes) in pages.iter_mut().zip(changes) {
        for (page, change) in chunk.iter_mut().zip(changes) {
            if let Some(change) = change {
                *page = change.clone();
            }
        }
    }
}

/// The memory of a VM after these changes, as it is saved as a diff.
fn changed(pages: &[Vec<Page>], changes: &[Vec<Change>], like: &FakeMemory) -> FakeMemory {
    let mut memory = FakeMemory::with(pages, like.page_size(), like.has_tags());
    for (chunk, changes) in changes.iter().enumerate() {
        memory.unchanged[chunk] = PageSet::EMPTY;
        let same = changes.iter().enumerate().filter(|(_, change)| change.is_none());
        same.for_each(|(page, _)| memory.unchanged[chunk].insert(page));
    }
    memory
}

type Case = (Vec<Vec<Page>>, Bytes, [Vec<Vec<Change>>; 2]);

fn case() -> impl Strategy<Value = Case> {
    memory().prop_flat_map(|(pages, size)| {
        let each = || prop::collection::vec(changes(pages_per_chunk(size)), pages.len());
        let two = (each(), each()).prop_map(|(first, second)| [first, second]);
        (Just(pages), Just(size), two)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn diffs_merge_in_any_order_to_what_memory_was((pages, size, [first, second]) in case(), tagged: bool) {
        let folder = Folder::new();
        let base = FakeMemory::with(&pages, size, tagged);
        let mut model = pages.clone();
        let full = folder.save("base", &base, None);
        apply(&mut model, &first);
        let one = changed(&model, &first, &base);
        let one_id = folder.save("one", &one, Some(full));
        apply(&mut model, &second);
        let two = changed(&model, &second, &base);
        let two_id = folder.save("two", &two, Some(one_id));

        folder.merge("base", "one", "after one").unwrap();
        folder.merge("after one", "two", "after two").unwrap();
        folder.merge("one", "two", "both").unwrap();
        folder.merge("base", "both", "after both").unwrap();
        folder.merge_all("base", &["one", "two"], "at once").unwrap();

        prop_assert!(folder.load("after one").same(&one));
        prop_assert!(folder.load("after two").same(&two));
        prop_assert!(folder.load("after both").same(&two));
        let file = |name: &str| std::fs::read(folder.paths(name).1).unwrap();
        prop_assert!(file("at once") == file("after two") && file("at once") == file("after both"));
        let (merged, both) = (folder.open("after two").state, folder.open("both").state);
        prop_assert_eq!((merged.id, merged.manifest.kind), (two_id, Kind::Full));
        prop_assert_eq!((both.id, both.manifest.kind), (two_id, Kind::Diff { base: full }));
        prop_assert_eq!(merged.clock.counter, u64::from(two_id.0[0]));
    }

    #[test]
    fn what_did_not_change_takes_no_room(pages in chunk(512)) {
        let folder = Folder::new();
        let mut memory = FakeMemory::with(&[pages], Bytes::kib(4), true);
        let base = folder.save("base", &memory, None);
        memory.unchanged = vec![PageSet::of(0..512)];
        folder.save("diff", &memory, Some(base));

        prop_assert_eq!(folder.paths("diff").1.metadata().unwrap().len(), 128);
        folder.merge("base", "diff", "merged").unwrap();
        prop_assert!(folder.load("merged").same(&memory));
    }
}

fn one_page(byte: u8) -> FakeMemory {
    let page = Page::Present(Filling::One(byte), Filling::One(0x44));
    FakeMemory::with(&[vec![page]], Bytes::kib(4), true)
}

#[test]
fn a_discarded_chunk_is_a_hole_after_the_merge() {
    let folder = Folder::new();
    let base = folder.save("base", &one_page(1), None);
    let discarded = FakeMemory::new(1, Bytes::kib(4), true);
    folder.save("diff", &discarded, Some(base));

    folder.merge("base", "diff", "merged").unwrap();

    assert!(folder.load("merged").same(&discarded));
    assert_eq!(folder.paths("merged").1.metadata().unwrap().len(), 128);
}

#[test]
fn a_merge_may_take_the_place_of_its_base() {
    let folder = Folder::new();
    let base = folder.save("base", &one_page(1), None);
    folder.save("diff", &one_page(2), Some(base));

    folder.merge("base", "diff", "base").unwrap();

    assert!(folder.load("base").same(&one_page(2)));
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let folder = Folder::new();
    let base = folder.save("base", &one_page(1), None);
    folder.save("other", &one_page(1), None);
    let diff = folder.save("diff", &one_page(2), Some(base));
    let size = Bytes::kib(4);
    folder.save("larger", &FakeMemory::new(2, size, true), Some(base));
    folder.save("untagged", &FakeMemory::new(1, size, false), Some(base));
    folder.save("pages", &FakeMemory::new(1, Bytes::kib(16), true), Some(base));
    let fault = |base, diff| folder.merge(base, diff, "merged").unwrap_err().fault;

    assert!(matches!(fault("other", "diff"), Fault::WrongBase { wanted, .. } if wanted == base));
    assert!(matches!(fault("base", "other"), Fault::NoDiff));
    folder.save("second", &one_page(3), Some(diff));
    let out_of_order = folder.merge_all("base", &["second", "diff"], "merged").unwrap_err();
    assert!(matches!(out_of_order.fault, Fault::WrongBase { wanted, .. } if wanted == diff));
    assert_eq!(out_of_order.file, folder.paths("second").1);
    assert!(matches!(fault("base", "larger"), Fault::MemorySize { .. }));
    assert!(matches!(fault("base", "untagged"), Fault::Untagged));
    assert!(matches!(fault("base", "pages"), Fault::PageSize { .. }));
    let (state, memory) = folder.paths("merged");
    assert!(!state.exists() && !memory.exists());
}

#[test]
fn damage_of_either_ends_a_merge() {
    for damaged in ["base", "diff"] {
        let folder = Folder::new();
        let pages = vec![Page::Present(Filling::Random(3), Filling::Random(4)); 2];
        let mut memory = FakeMemory::with(&[pages], Bytes::kib(4), true);
        let base = folder.save("base", &memory, None);
        memory.unchanged[0].insert(1);
        folder.save("diff", &memory, Some(base));
        let path = folder.paths(damaged).1;
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096 + 77] ^= 1;
        std::fs::write(&path, bytes).unwrap();

        let error = folder.merge("base", "diff", "merged").unwrap_err();

        assert!(matches!(error.fault, Fault::Damaged { .. }), "{error:?}");
        assert_eq!(error.file, path);
        assert!(!folder.paths("merged").0.exists());
    }
}

/// A merge of files that are damaged ends with an error, and nothing is left of it; or what was damaged has no meaning.
#[test]
fn no_damage_gets_through_a_merge() {
    let folder = Folder::new();
    let pages = |seed| {
        let mut pages = vec![Page::Present(Filling::Random(seed), Filling::Random(seed + 1)); 3];
        pages.push(Page::Present(Filling::Zero, Filling::Runs(0x10, 99)));
        pages.push(Page::Present(Filling::One(3), Filling::One(0x77)));
        pages
    };
    let base =
        folder.save("base", &FakeMemory::with(&[pages(3), vec![]], Bytes::kib(4), true), None);
    let mut memory = FakeMemory::with(&[pages(5), pages(7)], Bytes::kib(4), true);
    memory.unchanged[0] = PageSet::of(1..512);
    folder.save("diff", &memory, Some(base));
    folder.merge("base", "diff", "right").unwrap();
    let right = std::fs::read(folder.paths("right").1).unwrap();
    let (state, merged) = folder.paths("merged");
    let check = |what: &str| {
        let open = |name: &str| {
            let (state, memory) = folder.paths(name);
            Pair::open_any(&state, &memory)
        };
        let done = open("base")
            .and_then(|base| merge(&base, &[open("diff")?], &state, &merged, &mut |_| {}));
        let left = std::fs::read_dir(merged.parent().unwrap()).unwrap().count();
        match done {
            Ok(_) => {
                assert!(std::fs::read(&merged).unwrap() == right, "{what}");
                std::fs::remove_file(&state).unwrap();
                std::fs::remove_file(&merged).unwrap();
            }
            Err(_) => assert_eq!(left, 0, "{what}"),
        }
    };
    let mut next = 9u64;
    for name in ["base", "diff"] {
        let (state, memory) = folder.paths(name);
        for path in [state, memory] {
            let bytes = std::fs::read(&path).unwrap();
            for tenth in 0..10 {
                let cut = bytes.len() * tenth / 10;
                std::fs::write(&path, &bytes[..cut]).unwrap();
                check(&format!("{} cut at {cut}", path.display()));
            }
            for flip in 0..400 {
                next = next
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // The header, and any bit.
                let bit =
                    if flip < 200 { flip * 5 } else { (next >> 20) as usize % (bytes.len() * 8) };
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, flipped).unwrap();
                check(&format!("{} with bit {bit} flipped", path.display()));
            }
            std::fs::write(&path, &bytes).unwrap();
        }
    }
    check("nothing");
}
