//! The VMM: `tessera run`, `tessera broker`, `tessera template`, `tessera doctor`; and Firecracker's process, under the name `firecracker`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use vmm::api;
use vmm::cli::{Arguments, Command};
use vmm::config::{FirecrackerArgs, RunArgs};
use vmm::doctor::{self, Outcome};
use vmm::error::{chain, say, say_last};
use vmm::exit_status::ExitStatus;
use vmm::sandbox;
use vmm::sys::fatal;
use vmm::tag_storage::broker::{self, BrokerArgs};
use vmm::template::{self, TemplateArgs};

/// The program under the name `firecracker`.
#[derive(Parser)]
#[command(name = "firecracker", disable_version_flag = true, about)]
struct FirecrackerProcess {
    #[command(flatten)]
    args: FirecrackerArgs,
}

fn main() -> ExitCode {
    fatal::install();
    panic::set_hook(Box::new(report_panic));
    // No input is known to panic the VMM; if one is found, it ends as any other fault of its own.
    let status = panic::catch_unwind(run_command).unwrap_or(ExitStatus::VmmFault);
    status.into()
}

/// The standard library's own report would wait for a reader of standard error, in any thread.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name").to_owned();
    let trace = match sandbox::is_filtered() {
        // It is read from files.
        true => String::new(),
        false => backtrace(),
    };
    say(&format!("thread {name} {panic}; please report this{trace}"));
}

fn backtrace() -> String {
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => format!("\n{trace}"),
        _ => String::new(),
    }
}

fn run_command() -> ExitStatus {
    if is_called("firecracker") {
        return parsed(FirecrackerProcess::try_parse(), |process| firecracker(&process.args));
    }
    parsed(Arguments::try_parse(), |args| match args.command {
        Command::Run(args) => run(&args.0),
        Command::Broker(args) => serve(&args.0),
        Command::Template(args) => hold(&args.0),
        Command::Firecracker(args) => firecracker(&args.0),
        Command::Doctor { json } => examine(json),
    })
}

/// Whether the program was started under a name.
fn is_called(name: &str) -> bool {
    let called = std::env::args_os().next();
    called.is_some_and(|called| Path::new(&called).file_name().is_some_and(|file| file == name))
}

fn parsed<T>(args: Result<T, clap::Error>, run: impl FnOnce(T) -> ExitStatus) -> ExitStatus {
    match args {
        Ok(args) => run(args),
        Err(error) => {
            // Nothing can be done when even this message finds no reader.
            let _ = error.print();
            if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Success }
        }
    }
}

fn firecracker(args: &FirecrackerArgs) -> ExitStatus {
    if args.version {
        let version = api::model::Version::current();
        let (interface, own) = (version.firecracker_version, version.tessera_version);
        // A reader that has gone misses the version.
        let _ =
            writeln!(io::stdout(), "Firecracker v{interface}\n\nIts interface, by Tessera {own}");
        return ExitStatus::Success;
    }
    match args.to_run_args(api::MAX_BODY as u64) {
        Ok(run_args) => {
            let ignored = args.without_effect();
            if !ignored.is_empty() {
                say(&format!("without effect: {}", ignored.join(", ")));
            }
            match run(&run_args) {
                // A reboot of the guest is how Firecracker's guests end.
                ExitStatus::GuestReset => ExitStatus::Success,
                status => status,
            }
        }
        Err(error) => {
            say_last(&chain(&error));
            ExitStatus::Usage
        }
    }
}

fn run(args: &RunArgs) -> ExitStatus {
    match vmm::run::run(args) {
        Ok(reason) => {
            let (status, message) = reason.report();
            if let Some(message) = message {
                say_last(&message);
            }
            status
        }
        Err(error) => {
            say_last(&chain(&error));
            error.status()
        }
    }
}

fn serve(args: &BrokerArgs) -> ExitStatus {
    broker::run(args).unwrap_or_else(|error| {
        say_last(&chain(&error));
        error.status()
    })
}

fn hold(args: &TemplateArgs) -> ExitStatus {
    template::run(args).unwrap_or_else(|error| {
        say_last(&chain(&error));
        error.status()
    })
}

fn examine(json: bool) -> ExitStatus {
    let report = doctor::examine();
    let text = match json {
        true => serde_json::to_string_pretty(&report).unwrap_or_default(),
        false => report.to_string(),
    };
    // A reader that has gone does not change what was found.
    let _ = writeln!(io::stdout(), "{text}");
    match report.outcome {
        Outcome::Fail => ExitStatus::DoctorFailed,
        Outcome::Ok | Outcome::Warn => ExitStatus::Success,
    }
}
