//! VMs that continue from one snapshot and share its memory.

mod holder;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde_json::Value;

use super::run::{Outcome, spawn, start};
use super::snapshot;
use crate::cli::{Arguments, CloneCommand, Command, RunCommand, SaveArgs};
use crate::failure::Failure;
use crate::output::Form;

/// Starts them one after the other; the exit status of the first that does not start, which is the last.
///
/// # Errors
/// When the snapshot cannot be read or held, or a VM cannot be started. Those before it run.
pub fn clone(args: &CloneCommand, form: Form) -> Result<u8, Failure> {
    let program = spawn::program(args.start.tessera.as_deref())?;
    // All of them, before there is one.
    let commands = (1..=args.count).map(|number| command(args, number));
    let commands = commands.collect::<Result<Vec<_>, _>>()?;
    if let Some(into) = &args.into {
        snapshot::save(&SaveArgs::of(&args.source, into, args.start.timeout))?.check()?;
    }
    // Until the last of them has its memory.
    let _held = holder::ensure(&program, args)?;
    let mut answers = Vec::new();
    let mut end = Ok(0);
    for (command, words) in commands {
        match start(&command, words) {
            Ok(Outcome::Started { answer, text }) => {
                if form == Form::Text {
                    form.show(&answer, |_| text)?;
                }
                answers.push(answer);
            }
            Ok(Outcome::Ended(status)) => {
                end = Ok(status);
                break;
            }
            Err(failure) => {
                end = Err(failure);
                break;
            }
        }
    }
    if form == Form::Json {
        form.show(&Value::Array(answers), |_| String::new())?;
    }
    end
}

impl CloneCommand {
    /// The folder of the snapshot.
    fn folder(&self) -> PathBuf {
        let folder = self.into.clone().unwrap_or_else(|| PathBuf::from(&self.source));
        std::path::absolute(&folder).unwrap_or(folder)
    }
}

/// The command line of one VM, as `tesseractl run` has it.
fn command(args: &CloneCommand, number: u16) -> Result<(RunCommand, Vec<OsString>), Failure> {
    let wait = args
        .start
        .wait
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    let mut words: Vec<OsString> = vec!["tesseractl".into(), "run".into()];
    let mut add = |option: &str, value: OsString| words.extend([option.into(), value]);
    add("--restore", args.folder().into());
    add("--wait", wait.into());
    add("--timeout", args.start.timeout.as_secs_f64().to_string().into());
    if let Some(program) = &args.start.tessera {
        add("--tessera", program.into());
    }
    match &args.id {
        Some(id) if args.count > 1 => add("--id", format!("{id}-{number}").into()),
        Some(id) => add("--id", id.into()),
        None => {}
    }
    words.push("--shared".into());
    words.extend(args.options.iter().cloned());
    match Arguments::try_parse_from(&words).map(|arguments| arguments.command) {
        Ok(Command::Run(command)) => Ok((*command, words)),
        Ok(_) => Err(Failure::usage("the options behind -- are those of `tessera run`")),
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Err(Failure::usage(format!("the options behind --: {line}")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn args(words: &str) -> CloneCommand {
        let words = ["tesseractl", "clone"].into_iter().chain(words.split(' '));
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Clone(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn words(of: &str, number: u16) -> String {
        let (_, words) = command(&args(of), number).unwrap();
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_clone_is_a_vm_that_is_restored() {
        assert_eq!(
            words("/one --id web --wait agent -- --net user,id=eth0", 1),
            "tesseractl run --restore /one --wait agent --timeout 60 --id web --shared --net user,id=eth0"
        );
        assert_eq!(
            words("/one --count 3 --id web --tessera /t --timeout 5", 2),
            "tesseractl run --restore /one --wait started --timeout 5 --tessera /t --id web-2 --shared"
        );
        assert_eq!(
            words("vm1 --into /one", 1),
            "tesseractl run --restore /one --wait started --timeout 60 --shared"
        );
        let (parsed, _) = command(&args("/one --count 2"), 2).unwrap();
        assert!(parsed.vm.shared && parsed.vm.id.is_none());
    }

    #[test]
    fn options_that_are_none_are_refused() {
        for options in ["--nonsense", "--restore /two", "word"] {
            let failure = command(&args(&format!("/one -- {options}")), 1).unwrap_err();
            assert!(failure.message.starts_with("the options behind --"), "{failure:?}");
        }
    }
}
