//! Fuzz targets: each takes any bytes, as a guest, a client, a peer or a file may give them, and must neither panic nor
//! hang nor contradict itself.
//!
//! What needs only public items is in [`targets`]; the others are in `vmm/src/fuzz.rs`, which is compiled for fuzzing and
//! for that package's tests. `docs/fuzzing.md` says how to run them and how to add one.

pub mod guest;
pub mod input;
#[path = "../../../vmm/src/fuzz/scratch.rs"]
mod scratch;
pub mod targets;

/// What takes any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of the folder of its corpus.
    pub name: &'static str,
    /// What it does to the bytes.
    pub run: fn(&[u8]),
    /// Inputs that lead far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target that this build has.
pub fn all() -> Vec<Target> {
    let mut all = targets::ALL.to_vec();
    all.extend(private());
    all.sort_by_key(|target| target.name);
    all
}

#[cfg(fuzzing)]
fn private() -> impl Iterator<Item = Target> {
    let target = |target: &vmm::fuzz::Target| {
        let vmm::fuzz::Target { name, run, seeds } = *target;
        Target { name, run, seeds }
    };
    vmm::fuzz::TARGETS.iter().map(target)
}

#[cfg(not(fuzzing))]
fn private() -> impl Iterator<Item = Target> {
    std::iter::empty()
}

/// A target that is not one of [`all`]: it fails upon four bytes, so that one can see that a finding is found.
pub const PLANTED: Target = Target {
    name: "planted",
    run: |data| assert!(!data.starts_with(b"boom"), "found what was planted"),
    seeds: || vec![b"b".to_vec()],
};
