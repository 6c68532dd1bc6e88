//! Runs fuzz targets. Compiled with `--cfg fuzzing` it is a program of libFuzzer's for the target that the environment
//! names; else it starts that program for one target after the other, and prints what came of it. `make fuzz` does both.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod engine;
#[cfg(not(fuzzing))]
mod figures;
#[cfg(not(fuzzing))]
mod runner;

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    runner::main()
}
