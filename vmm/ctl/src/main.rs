//! `tesseractl`: starts VMs, watches and controls them, works in their guests, and looks at a broker.

use std::process::ExitCode;

use clap::Parser;
use tesseractl::cli::{self, Arguments};
use tesseractl::failure::EXIT_USAGE;
use tesseractl::output::say;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing is left to report to if the terminal is gone.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::from(EXIT_USAGE),
                false => ExitCode::SUCCESS,
            };
        }
    };
    match cli::run(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            say(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}
