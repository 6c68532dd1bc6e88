//! Fuzz targets of what is not public. The package in tests/fuzz has the others, and the program that runs all of them.
//!
//! They are compiled for fuzzing and for tests alone; `docs/fuzzing.md` says how to add one.

pub(crate) mod scratch;

use crate::{api, backends, snapshot, tag_storage};

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

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "api-requests", run: api::fuzz::requests, seeds: api::fuzz::request_seeds },
    Target { name: "api-bodies", run: api::fuzz::bodies, seeds: api::fuzz::body_seeds },
    Target {
        name: "broker-messages",
        run: tag_storage::broker::protocol::fuzz::messages,
        seeds: tag_storage::broker::protocol::fuzz::message_seeds,
    },
    Target {
        name: "broker-session",
        run: tag_storage::broker::server::fuzz::session,
        seeds: tag_storage::broker::server::fuzz::session_seeds,
    },
    Target {
        name: "net-stream",
        run: backends::net::fuzz::frames,
        seeds: backends::net::fuzz::frame_seeds,
    },
    Target {
        name: "pool",
        run: tag_storage::pool::testing::fuzz::pool,
        seeds: tag_storage::pool::testing::fuzz::pool_seeds,
    },
    Target {
        name: "snapshot-memory",
        run: snapshot::memory_file::fuzz::memory,
        seeds: snapshot::memory_file::fuzz::memory_seeds,
    },
    Target {
        name: "snapshot-state",
        run: snapshot::state_file::fuzz::state,
        seeds: snapshot::state_file::fuzz::state_seeds,
    },
    Target {
        name: "snapshot-working-set",
        run: snapshot::working_set::fuzz::working_set,
        seeds: snapshot::working_set::fuzz::working_set_seeds,
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::path::Path;

    use super::*;

    /// The files of a target, and the inputs that it makes itself.
    fn inputs(target: &Target) -> Vec<Vec<u8>> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let files = fs::read_dir(corpus.join(target.name)).into_iter().flatten();
        let files = files.map(|entry| fs::read(entry.unwrap().path()).unwrap());
        (target.seeds)().into_iter().chain(files).collect()
    }

    #[test]
    fn the_corpus_of_each_target_passes() {
        for target in TARGETS {
            let inputs = inputs(target);
            assert!(inputs.len() > 1, "{} has no inputs", target.name);
            for (number, input) in inputs.iter().enumerate() {
                // What is printed last is what failed.
                println!("{} {number}: {input:?}", target.name);
                (target.run)(input);
            }
        }
    }
}
