//! The command line of `tessera run`, out of that of `tesseractl run`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::CommandFactory;

use super::Paths;
use super::folder::Folder;
use crate::cli::{Arguments, RunCommand};

/// The verb, in both programs.
const RUN: &str = "run";
/// Options of this program.
const OWN: [&str; 4] = ["tessera", "wait", "timeout", "json"];

/// What is passed on: what the user has written, but for what is this program's, behind what the VM needs to be found.
pub(super) fn passed_on(
    command_line: Vec<OsString>,
    args: &RunCommand,
    folder: &Folder,
    paths: &Paths,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![RUN.into()];
    let mut add = |option: &str, value: OsString| words.extend([option.into(), value]);
    if args.vm.id.is_none() {
        add("--id", folder.name().into());
    }
    if args.vm.api_sock.is_none() {
        add("--api-sock", paths.api_sock.clone().into());
    }
    if paths.vsock.is_none() && paths.takes_vsock {
        add("--vsock", folder.join("vsock").into());
    }
    if !paths.has_serial {
        let mut target = OsString::from("socket:");
        target.push(folder.join("serial"));
        add("--serial", target);
    }
    words.extend(without_own(command_line));
    words
}

/// The words behind the verb without this program's options. They have been parsed: each is in order.
fn without_own(command_line: Vec<OsString>) -> Vec<OsString> {
    let takes_value = options();
    let mut kept = Vec::new();
    // Before the verb there are this program's options only.
    let mut words = command_line.into_iter().skip_while(|word| word != RUN).skip(1);
    while let Some(word) = words.next() {
        let option = word.as_bytes().strip_prefix(b"--").map(OsStr::from_bytes);
        let has_value = word.as_bytes().contains(&b'=');
        let name = option.and_then(OsStr::to_str).and_then(|text| text.split('=').next());
        let name = name.unwrap_or_default().to_owned();
        let value = (!has_value && takes_value.get(&name) == Some(&true)).then(|| words.next());
        if !OWN.contains(&&*name) {
            kept.push(word);
            kept.extend(value.flatten());
        }
    }
    kept
}

/// The options of `run`, and whether the next word is the value of one in any case.
fn options() -> BTreeMap<String, bool> {
    let mut program = Arguments::command();
    program.build();
    let run = program.find_subcommand(RUN);
    let options = run.into_iter().flat_map(clap::Command::get_arguments);
    options
        .filter_map(|option| {
            let takes = option.get_num_args().is_some_and(|count| count.min_values() > 0);
            Some((option.get_long()?.to_owned(), takes && option.get_action().takes_values()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(words: &str) -> String {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        let kept = without_own(words);
        kept.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn all_but_the_options_of_this_program_is_passed_on() {
        for (words, expected) in [
            ("t run --kernel Image --memory 64M", "--kernel Image --memory 64M"),
            ("t --json run --kernel Image", "--kernel Image"),
            ("t run --wait agent --kernel Image --timeout 5 --json", "--kernel Image"),
            ("t run --wait=agent --kernel=Image --timeout=5", "--kernel=Image"),
            // The value of another option.
            (
                "t run --cmdline --wait --kernel --json --rng",
                "--cmdline --wait --kernel --json --rng",
            ),
            ("t run --mte --wait agent --pmu", "--mte --pmu"),
            ("t run --mte require --tessera /bin/tessera", "--mte require"),
            ("t run --id run --disk run", "--id run --disk run"),
        ] {
            assert_eq!(kept(words), expected, "{words}");
        }
    }
}
