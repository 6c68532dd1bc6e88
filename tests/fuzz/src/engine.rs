//! The program of libFuzzer's.

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;
use std::{env, fs, io};

use fuzz::{PLANTED, Target, all};
use libfuzzer_sys::fuzz_target;

/// The target's name.
const TARGET: &str = "TESSERA_FUZZ_TARGET";
/// Instead of fuzzing, the seeds of all targets are written into this folder, which makes a list of targets as well.
const SEEDS: &str = "TESSERA_FUZZ_SEEDS";

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(
    init: start(),
    |data: &[u8]| {
        if let Some(run) = RUN.get() {
            run(data);
        }
    }
);

fn start() {
    if let Some(folder) = env::var_os(SEEDS) {
        let written =
            all().iter().chain([&PLANTED]).try_for_each(|target| write(target, Path::new(&folder)));
        if let Err(error) = &written {
            eprintln!("cannot write the seeds: {error}");
        }
        exit(written.is_err().into());
    }
    let name = env::var(TARGET).unwrap_or_default();
    let Some(target) = all().into_iter().chain([PLANTED]).find(|target| target.name == name) else {
        eprintln!("set {TARGET} to the name of a target");
        exit(64);
    };
    let _ = RUN.set(target.run);
}

fn write(target: &Target, folder: &Path) -> io::Result<()> {
    let folder = folder.join(target.name);
    fs::create_dir_all(&folder)?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:03}")), seed)?;
    }
    Ok(())
}
