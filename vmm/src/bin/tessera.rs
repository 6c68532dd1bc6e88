//! The VMM: `tessera run`, `tessera broker`, `tessera template`, `tessera doctor`; and Firecracker's process and its jailer,
//! under the names `firecracker` and `jailer`.

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
use vmm::jail::firecracker::{self as jailer, JailerArgs};
use vmm::run::{Ended, ExitReason};
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

/// The program under the name `jailer`.
#[derive(Parser)]
#[command(name = "jailer", disable_version_flag = true, about)]
struct JailerProcess {
    #[command(flatten)]
    args: JailerArgs,
}

fn main() -> ExitCode {
    fatal::install();
    panic::set_hook(Box::new(report_panic));
    // No input is known to panic the VMM; if one is found, it ends as any other fault of its own.
    let status = panic::catch_unwind(run_command).unwrap_or(ExitStatus::VmmFault.into());
    fatal::clean_up();
    status
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

fn run_command() -> ExitCode {
    let name = called();
    // Clients have them with a version in the name.
    if name.contains("jailer") {
        return parsed(JailerProcess::try_parse(), |process| put_into_jail(&process.args).into());
    }
    if name.contains("firecracker") {
        return parsed(FirecrackerProcess::try_parse(), |process| {
            firecracker(&process.args).into()
        });
    }
    parsed(Arguments::try_parse(), |args| match args.command {
        Command::Run(args) if args.0.jail.jail.is_some() => run_in_jail(&args.0),
        Command::Run(args) => run(&args.0).into(),
        Command::Broker(args) => serve(&args.0).into(),
        Command::Template(args) => hold(&args.0).into(),
        Command::Firecracker(args) => firecracker(&args.0).into(),
        Command::Jailer(args) => put_into_jail(&args.0).into(),
        Command::Doctor { json } => examine(json).into(),
    })
}

/// The name by which the program was started.
fn called() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    Path::new(&called).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn parsed<T>(args: Result<T, clap::Error>, run: impl FnOnce(T) -> ExitCode) -> ExitCode {
    match args {
        Ok(args) => run(args),
        Err(error) => {
            // Nothing can be done when even this message finds no reader.
            let _ = error.print();
            let is_wrong = error.use_stderr();
            if is_wrong { ExitStatus::Usage.into() } else { ExitStatus::Success.into() }
        }
    }
}

fn firecracker(args: &FirecrackerArgs) -> ExitStatus {
    if args.version {
        let (interface, own) = versions();
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
    ended(vmm::run::run(args))
}

fn run_in_jail(args: &RunArgs) -> ExitCode {
    match vmm::run::run_in_jail(args) {
        Ok(Ended::Supervisor(status)) => status.into(),
        Ok(Ended::Vm(reason)) => ended(Ok(reason)).into(),
        Err(error) => ended(Err(error)).into(),
    }
}

fn ended(end: Result<ExitReason, vmm::run::Error>) -> ExitStatus {
    match end {
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

fn put_into_jail(args: &JailerArgs) -> ExitStatus {
    if args.version {
        let (interface, own) = versions();
        // A reader that has gone misses the version.
        let _ = writeln!(io::stdout(), "Jailer v{interface}\n\nIts options, by Tessera {own}");
        return ExitStatus::Success;
    }
    jailer::run(args).unwrap_or_else(|error| {
        say_last(&chain(&error));
        error.status()
    })
}

/// The version of Firecracker's interface, and of this program.
fn versions() -> (String, String) {
    let version = api::model::Version::current();
    (version.firecracker_version, version.tessera_version)
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
