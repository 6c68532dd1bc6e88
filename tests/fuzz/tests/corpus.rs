//! The corpora pass on any machine, without libFuzzer.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use fuzz::{Target, all};

fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let files = fs::read_dir(corpus).into_iter().flatten();
    let files = files.map(|entry| fs::read(entry.unwrap().path()).unwrap());
    (target.seeds)().into_iter().chain(files).collect()
}

#[test]
fn the_corpus_of_each_target_passes() {
    for target in all() {
        let inputs = inputs(&target);
        assert!(inputs.len() > 1, "{} has no inputs", target.name);
        for (number, input) in inputs.iter().enumerate() {
            // What is printed last is what failed.
            println!("{} {number}: {input:?}", target.name);
            (target.run)(input);
        }
    }
}

/// Bytes without a plan, so that a target that fails upon nearly everything does not wait for `make fuzz`.
#[test]
fn each_target_takes_changed_inputs() {
    let mut state = 1u64;
    let mut below = |end: usize| {
        // Knuth's generator.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    };
    for target in all() {
        let inputs = inputs(&target);
        for _ in 0..200 {
            let mut input = inputs[below(inputs.len())].clone();
            for _ in 0..below(4) {
                let (at, byte) = (below(input.len() + 1), below(256) as u8);
                match at < input.len() {
                    true => input[at] = byte,
                    false => input.push(byte),
                }
            }
            println!("{}: {input:?}", target.name);
            (target.run)(&input);
        }
    }
}
