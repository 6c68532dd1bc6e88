//! What is in the files of snapshots.

use std::fs;
use std::path::Path;

use serde_json::json;
use vmm::config::SnapshotFiles;
use vmm::error::{chain, printable};
use vmm::snapshot::{Error, Pair, merge};

use super::place::Place;
use crate::cli::MergeArgs;
use crate::failure::Failure;
use crate::output::Form;
use crate::report;
use crate::waiting::Waiting;

/// Shows what a snapshot holds and what its host must have.
///
/// # Errors
/// When it cannot be read, or is none.
pub(super) fn info(folder: &Path, form: Form) -> Result<(), Failure> {
    let files = SnapshotFiles::in_folder(folder);
    let Pair { state, .. } = open(&files)?;
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let answer = json!({
        "id": state.id,
        "manifest": state.manifest,
        "vcpu_count": state.vcpus.len(),
        "state_bytes": length(&files.state),
        "memory_bytes": length(&files.memory),
    });
    form.show(&answer, report::snapshot)
}

/// Makes one snapshot of another one and of diffs.
///
/// # Errors
/// When one of them cannot be read, they do not belong together, or the new one cannot be written.
pub(super) fn merged(args: &MergeArgs, form: Form) -> Result<(), Failure> {
    let base = open(&SnapshotFiles::in_folder(&args.base))?;
    let diffs = args.diffs.iter().map(|folder| open(&SnapshotFiles::in_folder(folder)));
    let diffs = diffs.collect::<Result<Vec<_>, _>>()?;
    let place = Place::prepare(&args.into, args.replace)?;
    let waiting = Waiting::on("the snapshots are merged");
    let files = place.files();
    merge(&base, &diffs, &files.state, &files.memory, &mut |_| {}).map_err(failed)?;
    let size = place.commit()?;
    drop(waiting);
    let answer = json!({ "outcome": "merged", "path": args.into, "bytes": size.get() });
    form.show(&answer, |_| {
        format!("merged into {} ({})\n", args.into.display(), report::size(size.get()))
    })
}

fn open(files: &SnapshotFiles) -> Result<Pair, Failure> {
    Pair::open_any(&files.state, &files.memory).map_err(failed)
}

fn failed(error: Error) -> Failure {
    Failure::refused(printable(&chain(&error)))
}
