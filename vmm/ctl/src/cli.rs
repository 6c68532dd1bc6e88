//! The command line of `tesseractl`: a verb, then the VM.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use arch::units::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use vmm::config::RunArgs;

use crate::bench::{MAX_TEXT, check_note};
use crate::commands;
use crate::commands::fleet::args::FleetCommand;
use crate::failure::Failure;
use crate::guest::args::{AgentArgs, CopyArgs, ExecArgs, ProxyArgs, ShellArgs};
use crate::output::Form;

const AFTER_HELP: &str = "\
VM is the id of a VM, the beginning of one, `pid.N` or N for a VM without an id, or the path of its control
socket. For exec, shell, cp, proxy and agent, vsock:PATH is the Unix socket of a vsock device.

Exit codes:
  0   done
  1   the VM or the broker refused, something did not happen in time, a copy is not complete, or two reports differ
  64  the command line is wrong
  65  a file of figures (bench) is not one, or its figures contradict each other
  69  the VM or the broker cannot be reached, or does not run
`run` ends as `tessera run` does where the VM does not start, `fleet run` as its job does.
`exec` and `shell` end as their command does, with 128 and the number of the signal that ended it:
  125 tesseractl itself failed  126 the command cannot be executed  127 there is no such command";

/// Start VMs, watch and control them, and work in their guests
#[derive(Debug, Parser)]
#[command(name = "tesseractl", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
}

/// The VM that a command is about.
#[derive(Clone, Debug, Args)]
pub struct OfVm {
    /// Its id, the beginning of one, or the path of its control socket
    #[arg(value_name = "VM")]
    pub vm: OsString,
}

/// A verb.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start a VM in the background
    Run(Box<RunCommand>),
    /// Start VMs that continue from one snapshot and share its memory
    Clone(CloneCommand),
    /// List the VMs that run
    #[command(visible_alias = "ls")]
    List,
    /// Show what the VM is and does
    Status(OfVm),
    /// Wait until the VM has started, its agent answers, or it has ended
    Wait(WaitArgs),
    /// Attach to the VM's serial console; Ctrl-] detaches
    Console(OfVm),
    /// Show what happens to the VM, as it happens, until it ends
    Events(OfVm),
    /// Show the messages of a VM that `tesseractl run` has started
    Logs(LogsArgs),
    /// Hold the vCPUs
    Pause(OfVm),
    /// Let the vCPUs run again
    Resume(ResumeArgs),
    /// Save the VM in a folder, which `run --restore DIR` restores, or look at what is there
    Snapshot(SnapshotArgs),
    /// Press the power key and wait until the VM has gone
    Stop(StopArgs),
    /// End the VM's process at once (SIGKILL), and remove what it leaves
    Kill(OfVm),
    /// Run a command in the guest
    Exec(ExecArgs),
    /// Open a shell in the guest
    Shell(ShellArgs),
    /// Copy a file or a folder into the guest or out of it: `cp VM FILE :/root/`, `cp VM :/etc DIR`
    Cp(CopyArgs),
    /// Connect standard input and output to a vsock port of the guest, as ssh's ProxyCommand
    Proxy(ProxyArgs),
    /// Wait for the guest's agent and show what it is
    Agent(AgentArgs),
    /// Show all VMs, live: memory, balloon, tag storage
    Top(TopArgs),
    /// Show the counters of a VM, or of all
    Metrics(MetricsArgs),
    /// Show the memory balloon, or change it
    Balloon(BalloonArgs),
    /// Show what the guest costs the host in memory
    Footprint(OfVm),
    /// Show the tag storage that is reserved for the guest, and whether it waits for more
    TagStorage(OfVm),
    /// Show a broker's tag storage: blocks by state, and the leases of VMs
    Pool(PoolArgs),
    /// Run VMs as jobs of Slurm, which places them by memory and tag storage
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Make a report of what benches have found, or show what has moved between two
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// `run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "All other options are those of `tessera run`, to which they are passed.")]
pub struct RunCommand {
    /// How it is started.
    #[command(flatten)]
    pub start: StartArgs,
    /// The VM's own.
    #[command(flatten)]
    pub vm: RunArgs,
}

/// How VMs are started.
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    /// The program to start [default: that beside tesseractl, or in PATH]
    #[arg(long, value_name = "PATH")]
    pub tessera: Option<PathBuf>,
    /// Wait until the guest's kernel has started, or until its agent answers
    #[arg(long, value_name = "WHAT", default_value = "started")]
    pub wait: Awaited,
    /// How many seconds to wait, for each VM and for the memory that clones share
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// `clone`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Each VM is started as by `tesseractl run --restore DIR --shared`, with the OPTIONS behind `--`. What they share is held
by a process that is started where there is none (`tessera template`).")]
pub struct CloneCommand {
    /// The folder of the snapshot; with --into, the VM that is saved there first
    #[arg(value_name = "DIR|VM")]
    pub source: OsString,
    /// Save the VM in this folder, which is made, and clone that; the VM does then what it did before
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// How many VMs
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub count: u16,
    /// The name of the VM; of several, NAME-1, NAME-2 and so on [default: names that are free]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// How they are started.
    #[command(flatten)]
    pub start: StartArgs,
    /// How many seconds the memory is held when the last VM has gone
    #[arg(long, value_name = "S", default_value = "60")]
    pub linger: u32,
    /// Options of `tessera run` for each VM
    #[arg(last = true, value_name = "OPTIONS")]
    pub options: Vec<OsString>,
}

/// What `run` waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Awaited {
    /// The vCPUs run.
    Started,
    /// The guest's agent answers.
    Agent,
}

/// `wait`.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Which VM.
    #[command(flatten)]
    pub of: OfVm,
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT")]
    pub condition: Condition,
    /// How many seconds to wait
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Condition {
    /// The vCPUs run, or have run
    Started,
    /// The guest's agent answers
    Agent,
    /// The process has ended
    Stopped,
}

/// `logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The id of the VM, which may have ended
    #[arg(value_name = "VM")]
    pub vm: String,
    /// Go on with new messages until the VM ends
    #[arg(short, long)]
    pub follow: bool,
}

/// `snapshot`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SnapshotArgs {
    /// What to do with snapshots.
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,
    /// What to save.
    #[command(flatten)]
    pub save: SaveArgs,
}

/// What is done with snapshots that are there.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Show what a snapshot holds, and what its host must have
    Info {
        /// Its folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Make one snapshot of another and of diffs, what has changed since
    Merge(MergeArgs),
}

/// A VM that is saved.
#[derive(Clone, Debug, Args)]
pub struct SaveArgs {
    /// Its id, the beginning of one, or the path of its control socket
    #[arg(value_name = "VM", required = true)]
    pub vm: Option<OsString>,
    /// The folder for the snapshot, which is made
    #[arg(value_name = "DIR", required = true)]
    pub folder: Option<PathBuf>,
    /// Save only what has changed of memory since the VM was last saved or restored, which `merge` adds to that; the VM
    /// runs with --track-dirty-pages
    #[arg(long, conflicts_with = "replace")]
    pub diff: bool,
    /// Let the VM run then, even if it was paused
    #[arg(long, conflicts_with = "keep_paused")]
    pub resume: bool,
    /// Leave the VM paused
    #[arg(long)]
    pub keep_paused: bool,
    /// Replace the snapshot that the folder has
    #[arg(long)]
    pub replace: bool,
    /// How many seconds to wait for the VM to write its files
    #[arg(long, value_name = "S", default_value = "600", value_parser = seconds)]
    pub timeout: Duration,
}

impl SaveArgs {
    /// A VM that is saved in a folder, and does then what it did before.
    pub fn of(vm: &OsString, folder: &std::path::Path, timeout: Duration) -> Self {
        Self {
            vm: Some(vm.clone()),
            folder: Some(folder.to_owned()),
            resume: false,
            keep_paused: false,
            diff: false,
            replace: false,
            timeout,
        }
    }
}

/// Snapshots that become one.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// The folder of the snapshot that the first diff builds on
    #[arg(value_name = "BASE")]
    pub base: PathBuf,
    /// Those of diffs, in the order in which they were made
    #[arg(value_name = "DIFF", required = true, num_args = 1..)]
    pub diffs: Vec<PathBuf>,
    /// The folder for the new one; with --replace it may be one of them
    #[arg(value_name = "INTO")]
    pub into: PathBuf,
    /// Replace the snapshot that the folder has
    #[arg(long)]
    pub replace: bool,
}

/// `resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// Which VM.
    #[command(flatten)]
    pub of: OfVm,
    /// Have the guest's agent set its time of day to the host's, which a pause does not stop
    #[arg(long)]
    pub set_clock: bool,
    /// How many seconds to wait for the agent
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds, requires = "set_clock")]
    pub timeout: Duration,
}

/// `stop`.
#[derive(Clone, Debug, Args)]
pub struct StopArgs {
    /// Which VM.
    #[command(flatten)]
    pub of: OfVm,
    /// End the VM at once, without asking the guest
    #[arg(long)]
    pub force: bool,
    /// How many seconds to wait for it to go
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,
}

/// `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Show the pool of this broker, too
    #[arg(long, value_name = "PATH")]
    pub broker: Option<PathBuf>,
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    pub interval: Duration,
}

/// `metrics`.
#[derive(Clone, Debug, Args)]
pub struct MetricsArgs {
    /// Its id, the beginning of one, or the path of its control socket
    #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all")]
    pub vm: Option<OsString>,
    /// Those of all VMs, in Prometheus's text format
    #[arg(long, conflicts_with = "json")]
    pub all: bool,
    /// Write them to this file, which is replaced at once: a file NAME.prom of node_exporter's textfile directory
    #[arg(long, value_name = "FILE", requires = "all")]
    pub output: Option<PathBuf>,
}

/// `balloon`.
#[derive(Clone, Debug, Args)]
pub struct BalloonArgs {
    /// Which VM.
    #[command(flatten)]
    pub of: OfVm,
    /// What to change.
    #[command(subcommand)]
    pub command: Option<BalloonCommand>,
}

/// A change of the balloon.
#[derive(Clone, Debug, Subcommand)]
pub enum BalloonCommand {
    /// Ask the guest to give up this much memory, whole MiB; 0 gives all of it back to the guest
    Target {
        /// How much.
        #[arg(value_name = "SIZE", value_parser = whole_mib)]
        size: Bytes,
    },
    /// Give back the free pages that the guest reports, or keep them until it has used them again
    Reporting {
        /// On or off.
        switch: Switch,
    },
    /// Have the VMM choose how much memory the guest is asked for, by how host and guest do, or end that
    Auto {
        /// On or off.
        switch: Switch,
        /// What the guest keeps whatever the VMM chooses, whole MiB
        #[arg(long, value_name = "SIZE", value_parser = whole_mib)]
        floor: Option<Bytes>,
    },
    /// Show the guest's statistics, or set how often it is asked for them
    Stats {
        /// Seconds between two requests; 0 for none
        seconds: Option<u16>,
    },
}

/// On or off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// `pool`.
#[derive(Clone, Debug, Args)]
pub struct PoolArgs {
    /// The socket that the broker was given with --socket
    #[arg(long, value_name = "PATH")]
    pub broker: PathBuf,
    /// Print Prometheus's text format
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
}

/// `bench`.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Write JSON, Markdown and an HTML page with plots
    Report(BenchReportArgs),
    /// Show what has moved between two reports; the exit status is 1 if anything has
    Compare(BenchCompareArgs),
    /// Model hosts with tag storage: the pool of the broker, without VMs; figures go to the standard output
    Model(BenchModelArgs),
}

/// `bench model`.
#[derive(Clone, Debug, Args)]
pub struct BenchModelArgs {
    /// Hosts of 1 TiB that VMs are placed on
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub hosts: u64,
    /// How many of these are modelled, from the first on; takes time for each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub modelled: u64,
    /// Days
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=366))]
    pub days: u64,
    /// What all VMs touch at most together, in percent of the hosts' memory
    #[arg(long, value_name = "PERCENT", default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub load: u64,
    /// Where all numbers come from: the same seed gives the same figures
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Model the host of a report of the bench `lending` instead, and compare; the exit status is 1 if a figure disagrees
    #[arg(long, value_name = "REPORT.json", conflicts_with_all = ["hosts", "modelled", "days", "load", "seed"])]
    pub validate: Option<PathBuf>,
    /// By how many percent the model may be off
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = percent, requires = "validate")]
    pub tolerance: f64,
}

/// `bench report`.
#[derive(Clone, Debug, Args)]
pub struct BenchReportArgs {
    /// Files of figures as `make bench` writes them, or reports
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The folder for the report, which is made
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What stands at the top, for instance `commit=1a2b3c`; as often as wanted
    #[arg(long = "note", value_name = "NAME=TEXT", value_parser = note)]
    pub notes: Vec<(String, String)>,
}

/// `bench compare`.
#[derive(Clone, Debug, Args)]
pub struct BenchCompareArgs {
    /// A report, or a file of figures
    #[arg(value_name = "A.json")]
    pub before: PathBuf,
    /// The one that it is compared with
    #[arg(value_name = "B.json")]
    pub after: PathBuf,
    /// By how many percent a figure may differ without having moved
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent)]
    pub tolerance: f64,
    /// Let what is better or new not count for the exit status
    #[arg(long)]
    pub worse: bool,
}

/// Does what the command line says; the exit status.
///
/// # Errors
/// When it is not done.
pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let form = if arguments.json { Form::Json } else { Form::Text };
    match arguments.command {
        Command::Run(args) => return commands::run::run(&args, form),
        Command::Clone(args) => return commands::clone::clone(&args, form),
        Command::List => commands::list::list(form),
        Command::Status(of) => commands::status::status(&of, form),
        Command::Wait(args) => commands::wait::wait(&args, form),
        Command::Console(of) => commands::console::attach(&of),
        Command::Events(of) => commands::events::follow(&of, form),
        Command::Logs(args) => commands::logs::show(&args),
        Command::Pause(of) => commands::power::pause(&of, form),
        Command::Resume(args) => commands::power::resume(&args, form),
        Command::Snapshot(args) => commands::snapshot::snapshot(&args, form),
        Command::Stop(args) => commands::power::stop(&args, form),
        Command::Kill(of) => commands::kill::kill(&of, form),
        Command::Exec(args) => return Ok(commands::guest::exec(args)),
        Command::Shell(args) => return Ok(commands::guest::shell(args)),
        Command::Cp(args) => return commands::guest::copy(&args),
        Command::Proxy(args) => commands::guest::proxy(&args),
        Command::Agent(args) => commands::guest::agent(&args, form),
        Command::Top(args) => commands::top::top(&args, form),
        Command::Metrics(args) => commands::metrics::metrics(&args, form),
        Command::Balloon(args) => commands::balloon::balloon(&args, form),
        Command::Footprint(of) => commands::status::footprint(&of, form),
        Command::TagStorage(of) => commands::status::tag_storage(&of, form),
        Command::Pool(args) => commands::pool::pool(&args, form),
        Command::Fleet(command) => return commands::fleet::fleet(&command, form),
        Command::Bench(command) => return commands::bench::bench(&command, form),
    }
    .map(|()| 0)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(percent),
        _ => Err("it is not a number of percent, 0 or more".to_owned()),
    }
}

fn note(text: &str) -> Result<(String, String), String> {
    let (name, note) = text.split_once('=').ok_or("it has no `=`: try commit=1a2b3c")?;
    check_note(name, note)
        .map_err(|_| format!("a note is a name and one line of {MAX_TEXT} letters at most"))?;
    Ok((name.to_owned(), note.to_owned()))
}

fn whole_mib(text: &str) -> Result<Bytes, String> {
    let size: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    match size.is_multiple_of(Bytes::mib(1)) {
        true => Ok(size),
        false => Err(format!("{size} is not whole MiB: try {}M", size.as_mib() + 1)),
    }
}
