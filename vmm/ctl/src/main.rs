//! `tesseractl`: controls a running VM through its control socket, works in its guest, and looks at a broker.

use std::error::Error as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::protocol::message::{Operation, Summary};
use agent::transfer;
use arch::units::Bytes;
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use tesseractl::client::{Client, DEFAULT_TIMEOUT, Error};
use tesseractl::guest::args::{AgentArgs, CopyArgs, ExecArgs, ProxyArgs, Reach, ShellArgs};
use tesseractl::guest::connect::Vsock;
use tesseractl::guest::copy::{self, Side};
use tesseractl::guest::{self, exec, proxy};
use tesseractl::report;
use vmm::api::model::{BalloonStatsUpdate, BalloonUpdate};
use vmm::error::{chain, printable};
use vmm::tag_storage::broker;

/// The VM refused, or did not do what it was asked.
const EXIT_REFUSED: u8 = 1;
/// The command line is wrong (EX_USAGE of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// The VM cannot be reached (EX_UNAVAILABLE of sysexits.h).
const EXIT_UNREACHABLE: u8 = 69;

/// A signal ended it before it was done, as a shell reports SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   the VM or the broker refused, the VM still runs after `stop`, or a copy is not complete
  64  the command line is wrong
  69  the VM or the broker cannot be reached through the socket
`exec` and `shell` end as their command does, with 128 and the number of the signal that ended it:
  125 tesseractl itself failed  126 the command cannot be executed  127 there is no such command";

/// Control a running tessera VM through its control socket, or look at a host's broker
#[derive(Debug, Parser)]
#[command(name = "tesseractl", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The socket that the VM was given with --api-sock; `pool` needs none
    #[arg(value_name = "SOCK")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show what the VM is and does
    Status,
    /// Hold the vCPUs
    Pause,
    /// Let the vCPUs run again
    Resume,
    /// Press the power key and wait until the VM has gone
    Stop {
        /// End the VM at once, without asking the guest
        #[arg(long)]
        force: bool,
        /// How many seconds to wait for it to go
        #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
        timeout: Duration,
    },
    /// Run a command in the guest
    Exec(ExecArgs),
    /// Open a shell in the guest
    Shell(ShellArgs),
    /// Copy a file or a folder into the guest or out of it: `cp FILE :/root/`, `cp :/etc DIR`
    Cp(CopyArgs),
    /// Connect standard input and output to a vsock port of the guest, as ssh's ProxyCommand
    Proxy(ProxyArgs),
    /// Wait for the guest's agent and show what it is
    Agent(AgentArgs),
    /// Show the VM's counters
    Metrics,
    /// Show the memory balloon, or change it
    Balloon {
        #[command(subcommand)]
        command: Option<BalloonCommand>,
    },
    /// Show what the guest costs the host in memory
    Footprint,
    /// Show a broker's tag storage: blocks by state, and the leases of VMs
    Pool {
        /// The socket that the broker was given with --socket
        #[arg(long, value_name = "PATH")]
        broker: PathBuf,
        /// Print Prometheus's text format
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// Show the tag storage that is reserved for the guest, and whether it waits for more
    TagStorage,
}

#[derive(Clone, Debug, Subcommand)]
enum BalloonCommand {
    /// Ask the guest to give up this much memory, whole MiB; 0 gives all of it back to the guest
    Target {
        #[arg(value_name = "SIZE", value_parser = whole_mib)]
        size: Bytes,
    },
    /// Give back the free pages that the guest reports, or keep them until it has used them again
    Reporting { switch: Switch },
    /// Show the guest's statistics, or set how often it is asked for them
    Stats {
        /// Seconds between two requests; 0 for none
        seconds: Option<u16>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

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
    if let Some(code) = in_guest(&arguments) {
        return code;
    }
    let outcome = match (&arguments.command, &arguments.socket) {
        (Command::Pool { broker, prometheus }, None) => pool(broker, *prometheus, arguments.json),
        (Command::Pool { .. }, Some(_)) => {
            Err((EXIT_USAGE, "`pool` asks a broker, not a VM: leave out SOCK".to_owned()))
        }
        (_, Some(socket)) => {
            run(&arguments, socket).map_err(|error| (exit_code(&error), describe(&error)))
        }
        (_, None) => {
            Err((EXIT_USAGE, "name the VM's socket first: tesseractl SOCK COMMAND".to_owned()))
        }
    };
    let printed = outcome.and_then(|text| {
        print(&text).map_err(|error| (EXIT_REFUSED, format!("cannot print the answer: {error}")))
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            let _ = writeln!(io::stderr(), "tesseractl: {message}");
            ExitCode::from(code)
        }
    }
}

/// Does what was asked; the text for standard output.
fn run(arguments: &Arguments, socket: &Path) -> Result<String, Error> {
    let mut client = Client::connect(socket, DEFAULT_TIMEOUT)?;
    let json = arguments.json;
    let outcome = match &arguments.command {
        Command::Status => return status(&mut client, json),
        // Done before: they need no control socket.
        Command::Pool { .. }
        | Command::Exec(_)
        | Command::Shell(_)
        | Command::Cp(_)
        | Command::Agent(_)
        | Command::Proxy(_) => return Ok(String::new()),
        Command::Metrics => return show(&client.metrics()?, json, report::metrics),
        Command::Footprint => return show(&client.footprint()?, json, report::footprint),
        Command::TagStorage => return show(&client.tag_storage()?, json, report::tag_storage),
        Command::Balloon { command: None } => {
            return show(&client.balloon()?, json, report::balloon);
        }
        Command::Balloon { command: Some(command) } => match *command {
            BalloonCommand::Target { size } => set_target(&mut client, size)?,
            BalloonCommand::Reporting { switch } => set_reporting(&mut client, switch)?,
            BalloonCommand::Stats { seconds: Some(seconds) } => set_interval(&mut client, seconds)?,
            BalloonCommand::Stats { seconds: None } => {
                return show(&client.balloon_statistics()?, json, report::statistics);
            }
        },
        Command::Pause => client.pause().map(|()| "paused".to_owned())?,
        Command::Resume => client.resume().map(|()| "resumed".to_owned())?,
        Command::Stop { force, timeout } => {
            match force {
                true => client.stop()?,
                false => client.press_power_key()?,
            }
            client.wait_gone(*timeout).map(|()| "stopped".to_owned())?
        }
    };
    Ok(match json {
        true => document(&json!({ "outcome": outcome })),
        false => format!("{outcome}\n"),
    })
}

/// Does what works in the guest; `None` for any other command.
fn in_guest(arguments: &Arguments) -> Option<ExitCode> {
    let socket = arguments.socket.as_deref();
    let vsock = |reach: &Reach| Vsock::of(socket, reach.vsock.as_deref());
    let run = |(reach, request): (Reach, _)| exec::run(&vsock(&reach)?, request, reach.timeout());
    let ended = match arguments.command.clone() {
        Command::Exec(args) => {
            run(args.into_request()).map_err(|error| (error.exec_status(), error))
        }
        Command::Shell(args) => {
            run(args.into_request()).map_err(|error| (error.exec_status(), error))
        }
        Command::Proxy(args) => vsock(&args.reach)
            .and_then(|vsock| proxy::run(&vsock, args.port, args.reach.timeout()))
            .map(|()| 0)
            .map_err(|error| (guest_code(&error), error)),
        Command::Cp(args) => vsock(&args.reach)
            .and_then(|vsock| {
                let (from, to) = (Side::new(&args.from), Side::new(&args.to));
                copy::run(&vsock, &from, &to, args.reach.timeout())
            })
            .map(|summary| incomplete(&summary))
            .map_err(|error| (guest_code(&error), error)),
        Command::Agent(args) => vsock(&args.reach)
            .and_then(|vsock| agent(&vsock, &args, arguments.json))
            .map_err(|error| (guest_code(&error), error)),
        _ => return None,
    };
    Some(ExitCode::from(ended.unwrap_or_else(|(code, error)| {
        let _ = writeln!(io::stderr(), "tesseractl: {}", error.line());
        code
    })))
}

/// Shows the guest's agent, or has it set the clock; the exit status.
fn agent(vsock: &Vsock, args: &AgentArgs, as_json: bool) -> Result<u8, guest::Error> {
    let operation = if args.set_clock { Operation::SetClock } else { Operation::Info };
    let (_, accepted) = vsock.operate(operation, args.reach.timeout())?;
    let agent = printable(&accepted.agent);
    let text = match (as_json, accepted.clock_moved_ms) {
        (true, moved) => document(&json!({
            "agent": agent,
            "operations": accepted.operations,
            "clock_moved_ms": moved,
        })),
        (false, Some(moved)) => format!("clock set, by {moved} ms\n"),
        (false, None) => format!("{agent}, operations: {}\n", accepted.operations.unwrap_or(0)),
    };
    print(&text).map_err(|error| guest::Error::Output("the answer", error))?;
    Ok(0)
}

/// The exit status of a copy that was made as far as it could.
fn incomplete(summary: &Summary) -> u8 {
    if summary.failed == 0 {
        return 0;
    }
    let failed = summary.failed;
    let _ = writeln!(io::stderr(), "tesseractl: {failed} entries could not be copied whole");
    EXIT_REFUSED
}

fn guest_code(error: &guest::Error) -> u8 {
    match error {
        guest::Error::Sides | guest::Error::NoSocket => EXIT_USAGE,
        guest::Error::Transfer(transfer::Error::Stopped) => EXIT_INTERRUPTED,
        error if error.is_unreachable() => EXIT_UNREACHABLE,
        _ => EXIT_REFUSED,
    }
}

/// What a broker says of itself, or an exit code and why it says nothing.
fn pool(path: &Path, prometheus: bool, json: bool) -> Result<String, (u8, String)> {
    let report = broker::report(path).map_err(|error| {
        let code = match error {
            broker::Error::Refused(_) => EXIT_REFUSED,
            _ => EXIT_UNREACHABLE,
        };
        (code, chain(&error))
    })?;
    if prometheus {
        return Ok(report::pool_prometheus(&report));
    }
    show(&report, json, report::pool).map_err(|error| (EXIT_REFUSED, describe(&error)))
}

/// An answer, as JSON or as text for people.
fn show<T: Serialize>(answer: &T, json: bool, text: fn(&T) -> String) -> Result<String, Error> {
    Ok(match json {
        true => document(&serde_json::to_value(answer).map_err(Error::Body)?),
        false => text(answer),
    })
}

/// Asks for another target; the guest takes its time.
fn set_target(client: &mut Client, size: Bytes) -> Result<String, Error> {
    let amount_mib = Some(size.as_mib());
    client.patch_balloon(BalloonUpdate { amount_mib, ..BalloonUpdate::default() })?;
    Ok(format!("target {size}"))
}

fn set_reporting(client: &mut Client, switch: Switch) -> Result<String, Error> {
    let free_page_reporting = Some(matches!(switch, Switch::On));
    client.patch_balloon(BalloonUpdate { free_page_reporting, ..BalloonUpdate::default() })?;
    Ok(match switch {
        Switch::On => "reporting on".to_owned(),
        Switch::Off => "reporting off".to_owned(),
    })
}

fn set_interval(client: &mut Client, seconds: u16) -> Result<String, Error> {
    client.patch_balloon_statistics(BalloonStatsUpdate { stats_polling_interval_s: seconds })?;
    Ok(match seconds {
        0 => "statistics off".to_owned(),
        seconds => format!("statistics every {seconds} s"),
    })
}

fn status(client: &mut Client, as_json: bool) -> Result<String, Error> {
    let instance = client.instance()?;
    let version = client.version()?;
    let config = client.vm_config()?;
    Ok(match as_json {
        true => document(&json!({
            "instance": instance,
            "version": version,
            "config": config,
        })),
        false => report::status(&instance, &version, &config),
    })
}

fn document(value: &Value) -> String {
    format!("{value:#}\n")
}

fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // The reader, say `head`, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Refused { .. } | Error::StillRunning(_) | Error::Body(_) => EXIT_REFUSED,
        Error::Unreachable { .. }
        | Error::TimedOut(_)
        | Error::Closed
        | Error::Transport(_)
        | Error::Malformed(_) => EXIT_UNREACHABLE,
    }
}

fn describe(error: &Error) -> String {
    let mut message = printable(&error.to_string());
    if let Some(source) = error.source() {
        message.push_str(&format!(" ({source})"));
    }
    if let Error::StillRunning(_) = error {
        message.push_str("; stop --force ends it without asking the guest; if that fails too, look at the process");
    }
    message
}

fn whole_mib(text: &str) -> Result<Bytes, String> {
    let size: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    match size.is_multiple_of(Bytes::mib(1)) {
        true => Ok(size),
        false => Err(format!("{size} is not whole MiB: try {}M", size.as_mib() + 1)),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
