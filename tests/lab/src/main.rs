//! `lab`: boots an emulated arm64 host with EL2 and MTE on any machine, and runs scripts, programs and
//! guests in it. What it boots comes from Debian's packages.

mod artifacts;
mod child;
mod cli;
mod console;
mod deb;
mod debian;
mod frames;
mod guest;
mod host;
mod hosts;
mod image;
mod images;
mod initramfs;
mod interrupt;
mod keeper;
mod modules;
mod places;
mod programs;
mod progress;
mod session;
mod size;
mod stanza;
mod summary;
mod trailer;

use std::error::Error as _;
use std::process::ExitCode;

use crate::progress::tell;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell(&format!("lab: error: {error}"));
            let mut source = error.source();
            while let Some(cause) = source {
                tell(&format!("lab:   because: {cause}"));
                source = cause.source();
            }
            ExitCode::from(error.exit_code())
        }
    }
}
