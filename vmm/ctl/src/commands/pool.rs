//! A broker's tag storage.

use std::path::Path;

use vmm::error::chain;
use vmm::tag_storage::broker::{self, BrokerReport};

use crate::cli::PoolArgs;
use crate::failure::Failure;
use crate::output::{Form, print};
use crate::report;

/// Shows what a broker says of itself.
///
/// # Errors
/// When it cannot be reached or refuses.
pub fn pool(args: &PoolArgs, form: Form) -> Result<(), Failure> {
    let answer = ask(&args.broker)?;
    match args.prometheus {
        true => print(&report::pool_prometheus(&answer)),
        false => form.show(&answer, report::pool),
    }
}

/// Asks a broker.
///
/// # Errors
/// As [`pool`].
pub fn ask(path: &Path) -> Result<BrokerReport, Failure> {
    broker::report(path).map_err(|error| match error {
        broker::Error::Refused(_) => Failure::refused(chain(&error)),
        _ => Failure::unreachable(chain(&error)),
    })
}
