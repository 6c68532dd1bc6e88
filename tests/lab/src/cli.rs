//! The command line and its exit codes.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use rustix::process::Pid;
use serde_json::json;

use crate::artifacts::{self, Kernel, SUITE};
use crate::frames::Request;
use crate::guest;
use crate::host::{self, Machine, Outcome, Output, Report};
use crate::hosts;
use crate::image::{self, Choice};
use crate::interrupt::{Interrupt, Interrupted};
use crate::keeper;
use crate::places::{self, Places};
use crate::programs;
use crate::progress::{Progress, tell};
use crate::session::{
    self, Lab, Payload, check_program, command_line, one_line, placed, with_variables,
};
use crate::size::Mib;

/// The nested host ended without the payload's status.
pub(crate) const CRASHED: u8 = 123;
/// The deadline passed, as timeout(1) has it.
pub(crate) const TIMED_OUT: u8 = 124;
/// The lab itself failed: usage, fetching, QEMU.
pub(crate) const FAILED: u8 = 125;
/// Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A session cannot be had.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// A guest cannot be shown.
    #[error(transparent)]
    Guest(#[from] guest::Error),
    /// The image cannot be made.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Programs of Debian's cannot be had.
    #[error(transparent)]
    Programs(#[from] programs::Error),
    /// The lab's folders.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// A host cannot be shared.
    #[error(transparent)]
    Hosts(#[from] hosts::Error),
    /// A host cannot be kept.
    #[error("cannot keep a host: there are no more pipes or threads")]
    Keep(#[source] io::Error),
    /// A number that no process has.
    #[error("{0} is no process: give the number of one that runs")]
    NoProcess(i32),
    /// Signal handlers.
    #[error("cannot listen for Ctrl-C")]
    Signals(#[source] io::Error),
    /// The file for the counters.
    #[error("cannot write the counters to {path}")]
    Counters {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: artifacts::Error,
    },
}

impl Error {
    /// The exit code of a lab that fails so.
    pub(crate) fn exit_code(&self) -> u8 {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            // Transparent errors hide the interrupt from the chain of sources, not from the text.
            if error.is::<Interrupted>() || error.to_string() == Interrupted.to_string() {
                return INTERRUPTED;
            }
            cause = error.source();
        }
        FAILED
    }
}

/// Boots an emulated arm64 host with EL2 and MTE, and runs things in it.
///
/// Exit codes: that of what ran; 123 the nested host crashed; 124 timed out; 125 the lab itself failed;
/// 130 interrupted. TESSERA_CACHE, TESSERA_LAB and TESSERA_MIRROR name the folder for downloads, the
/// folder for products (default target/lab) and the Debian archive.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Cli {
    /// Say nothing but errors
    #[arg(long, short, global = true)]
    quiet: bool,
    /// The folder of the project's arm64 programs (default target/lab/bin)
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Get kernel, modules and busybox from Debian, and make the images; done once
    Fetch(FetchOptions),
    /// Make the Debian image with its kernel and initramfs; done once
    Image(ImageOptions),
    /// Get programs of Debian's with the libraries they need into target/lab/programs/NAME; done once
    Programs(ProgramsOptions),
    /// Run a shell script in the nested host; its exit status is the exit status
    Run {
        /// The script; it finds busybox, tessera, tesseractl, /artifacts/{Image,modules,initrd.cpio} and the files given
        script: PathBuf,
        #[command(flatten)]
        options: HostOptions,
    },
    /// Run a static arm64 program in the nested host; its exit status is the exit status
    Exec {
        /// The program
        binary: PathBuf,
        /// Use a host that others have used, and leave it to others, as long as this process runs
        #[arg(long, value_name = "PID", conflicts_with_all = ["files", "counters", "verbose"])]
        shared_by: Option<i32>,
        #[command(flatten)]
        options: HostOptions,
        /// Its arguments
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Keep a host up for `exec --shared-by`, which starts this
    #[command(hide = true)]
    Keep {
        /// The program that is run on it
        binary: PathBuf,
        /// The process whose end is the host's
        #[arg(long, value_name = "PID")]
        runner: i32,
        #[command(flatten)]
        options: HostOptions,
        /// The folder of its socket
        folder: PathBuf,
    },
    /// Show a guest with MTE: directly where this machine can, else in the nested host
    Guest {
        /// In the nested host, even where this machine could
        #[arg(long)]
        nested: bool,
        /// The guest's processors; nested, the start-up of one is counted in instructions
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        cpus: u32,
    },
    /// Open a shell in a guest with MTE; it ends with the shell
    Shell {
        /// In the nested host, even where this machine could
        #[arg(long)]
        nested: bool,
        /// Open the shell in the nested host itself
        #[arg(long, conflicts_with = "image")]
        host: bool,
        /// Boot the Debian image, which is made where it is missing
        #[arg(long)]
        image: bool,
    },
}

#[derive(Debug, Args)]
struct FetchOptions {
    /// Ask the archive for newer versions
    #[arg(long)]
    refresh: bool,
    /// Get another arm64 kernel package into artifacts/kernels/NAME
    #[arg(long, value_name = "PACKAGE")]
    package: Option<String>,
    /// The suite it comes from: bookworm, trixie, trixie-backports, sid, ...
    #[arg(long, default_value = SUITE, requires = "package")]
    suite: String,
    /// The folder it goes to (default: SUITE-PACKAGE)
    #[arg(long, requires = "package")]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct ImageOptions {
    /// Ask the archive for newer packages
    #[arg(long)]
    refresh: bool,
    /// Install another package of Debian's; may be repeated
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// The size of the disk
    #[arg(long, value_name = "SIZE", default_value_t = image::SIZE)]
    size: Mib,
}

#[derive(Debug, Args)]
struct ProgramsOptions {
    /// The folder's name
    name: String,
    /// A program, by its name
    #[arg(required = true)]
    programs: Vec<String>,
    /// A package that has one of them; may be repeated
    #[arg(long = "package", value_name = "NAME", required = true)]
    packages: Vec<String>,
}

#[derive(Debug, Args)]
struct HostOptions {
    /// Put a file or folder into the host, to /bin where no path is given
    #[arg(long = "file", value_name = "FILE[:/PATH]")]
    files: Vec<String>,
    /// Set an environment variable
    #[arg(long = "env", value_name = "NAME=VALUE")]
    variables: Vec<String>,
    /// Count instructions: 1 ns of the host's clock is one, and every run gives the same figures
    #[arg(long)]
    icount: bool,
    /// Give this much of the memory to a second NUMA node without processors
    #[arg(long, value_name = "SIZE")]
    node1: Option<Mib>,
    /// The host's memory
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    memory: Mib,
    /// The host's processors (default 2; 1 with --icount)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    cpus: Option<u32>,
    /// More words of the host's kernel command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Another kernel for the host
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Give the host a disk that holds this; the file stays as it is, and hosts may share it
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    /// Run the Debian image as the host's system, for Python, curl and packages; it is made where it is missing
    #[arg(long)]
    image: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    timeout: u64,
    /// One more argument of QEMU; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// Show the host's kernel log
    #[arg(long, short)]
    verbose: bool,
    /// Write the counters of the run to a file, as JSON
    #[arg(long, value_name = "FILE")]
    counters: Option<PathBuf>,
}

impl HostOptions {
    /// The machine, and with it the image if the host runs that.
    fn machine(&self, lab: &Lab, programs: &Path) -> Result<Machine, image::Error> {
        let root = match self.image {
            true => Some(image::ensure(lab, programs, None, false)?.disk),
            false => None,
        };
        Ok(Machine {
            root,
            memory: self.memory,
            cpus: self.cpus,
            icount: self.icount,
            node1: self.node1,
            append: self.append.clone(),
            disks: self.disks.clone(),
            qemu: self.qemu.clone(),
            timeout: Duration::from_secs(self.timeout),
            verbose: self.verbose,
        })
    }

    /// The words that make such a host again.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| {
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            words.push(word);
        };
        option("memory", self.memory.to_string().into());
        option("append", self.append.clone().into());
        if let Some(node1) = self.node1 {
            option("node1", node1.to_string().into());
        }
        if let Some(cpus) = self.cpus {
            option("cpus", cpus.to_string().into());
        }
        if let Some(kernel) = &self.kernel {
            option("kernel", kernel.clone().into());
        }
        for disk in &self.disks {
            option("disk", disk.into());
        }
        for argument in &self.qemu {
            option("qemu", argument.into());
        }
        for (given, name) in [(self.icount, "--icount"), (self.image, "--image")] {
            if given {
                words.push(name.into());
            }
        }
        words
    }
}

/// Does what the command line says; returns the exit code.
///
/// # Errors
/// When the lab itself fails; what ran in it only has an exit code.
pub(crate) fn run() -> Result<u8, Error> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do when even this cannot be written.
            let _ = error.print();
            return Ok(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    let lab = Lab {
        places: Places::from_environment()?,
        interrupt: Interrupt::listen().map_err(Error::Signals)?,
        progress: Progress::new(cli.quiet),
    };
    let programs = cli.bin_dir.unwrap_or_else(|| lab.places.programs());
    match cli.command {
        Task::Fetch(options) => fetch(&lab, &options, &programs),
        Task::Image(options) => make_image(&lab, options, &programs),
        Task::Programs(ProgramsOptions { name, packages, programs }) => {
            let folder = programs::ensure(&lab, &name, &packages, &programs)?;
            lab.progress.say(&format!("ready: {}", folder.display()));
            Ok(0)
        }
        Task::Run { script, options } => {
            let text = fs::read_to_string(&script)
                .map_err(|source| session::Error::Payload { path: script, source })?;
            boot(&lab, &options, &programs, &text, None)
        }
        Task::Exec { binary, shared_by, options, arguments } => {
            check_program(&binary)?;
            let path = in_host(&binary);
            match shared_by {
                Some(runner) => share(&lab, &options, &programs, &binary, runner, &arguments),
                None => {
                    let script = command_line(&path, &arguments);
                    boot(&lab, &options, &programs, &script, Some((binary, path)))
                }
            }
        }
        Task::Keep { binary, runner, options, folder } => {
            let machine = Machine { timeout: Duration::MAX, ..options.machine(&lab, &programs)? };
            let files = vec![(binary.clone(), in_host(&binary))];
            let runner = Pid::from_raw(runner).ok_or(Error::NoProcess(runner))?;
            let kernel = options.kernel;
            let host = keeper::Host { machine, kernel, programs, files, folder, runner };
            keeper::keep(&lab, host).map_err(Error::Keep)?;
            Ok(0)
        }
        Task::Guest { nested, cpus } => Ok(guest::show(&lab, &programs, nested, cpus)?),
        Task::Shell { host: true, .. } => Ok(guest::host_shell(&lab, &programs)?),
        Task::Shell { image: true, nested, .. } => Ok(guest::image_shell(&lab, &programs, nested)?),
        Task::Shell { nested, .. } => Ok(guest::shell(&lab, &programs, nested)?),
    }
}

fn fetch(lab: &Lab, options: &FetchOptions, programs: &Path) -> Result<u8, Error> {
    let Some(package) = &options.package else {
        let stamp = lab.fetch(options.refresh, programs)?;
        lab.progress.say(&format!("ready: {}", stamp.describe()));
        return Ok(0);
    };
    let name = options.name.clone().unwrap_or_else(|| format!("{}-{package}", options.suite));
    let kernel = Kernel { package: package.clone(), suite: options.suite.clone() };
    let folder = lab.fetch_kernel(&kernel, &name, options.refresh)?;
    // Standard output may be closed; the folder exists all the same.
    let _ = writeln!(io::stdout(), "{}", folder.display());
    Ok(0)
}

fn make_image(lab: &Lab, options: ImageOptions, programs: &Path) -> Result<u8, Error> {
    let choice = Choice::new(options.packages, options.size);
    let image = image::ensure(lab, programs, Some(choice), options.refresh)?;
    let mut text = String::new();
    for path in [&image.kernel, &image.initrd, &image.disk] {
        text.push_str(&format!("{}\n", path.display()));
    }
    // As above.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(0)
}

/// Where a program is in the host.
fn in_host(binary: &Path) -> String {
    format!("/test/{}", binary.file_name().unwrap_or_default().to_string_lossy())
}

/// Runs the program on a shared host of this configuration.
fn share(
    lab: &Lab,
    options: &HostOptions,
    programs: &Path,
    binary: &Path,
    runner: i32,
    arguments: &[String],
) -> Result<u8, Error> {
    let mut words = options.words();
    words.extend(["--runner".into(), runner.to_string().into()]);
    let mut others = vec![Some(binary), options.kernel.as_deref()];
    others.extend(options.disks.iter().map(|disk| Some(disk.as_path())));
    let image = options.image.then(|| lab.places.image().join(image::STAMP));
    others.push(image.as_deref());
    let files = lab.fingerprint(programs, &others)?;
    let key = hosts::key(&words, &files);
    let script = command_line(&in_host(binary), arguments);
    let line = one_line(&with_variables(&options.variables, &script)?)?;
    let seconds = u32::try_from(options.timeout).unwrap_or(u32::MAX);
    let keeper = || {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--bin-dir").arg(programs).arg("keep").arg(binary).args(&words);
        Ok(command)
    };
    let request = Request::Run(seconds, line);
    Ok(hosts::run(lab, &key, &request, keeper, &mut io::stdout())?)
}

fn boot(
    lab: &Lab,
    options: &HostOptions,
    programs: &Path,
    script: &str,
    program: Option<(PathBuf, String)>,
) -> Result<u8, Error> {
    let mut files: Vec<_> = program.into_iter().collect();
    for text in &options.files {
        files.push(placed(text)?);
    }
    let payload = Payload {
        script: with_variables(&options.variables, script)?,
        files,
        ..Payload::default()
    };
    let machine = options.machine(lab, programs)?;
    let output = Output::To(&mut io::stdout());
    let report = lab.run(&machine, options.kernel.as_deref(), programs, payload, output)?;
    if let Some(path) = &options.counters {
        artifacts::write_json(path, &counters(&report, options.icount))
            .map_err(|source| Error::Counters { path: path.clone(), source })?;
    }
    Ok(conclude(lab, &machine, &report))
}

/// Says how a boot ended; returns the exit code.
pub(crate) fn conclude(lab: &Lab, machine: &Machine, report: &Report) -> u8 {
    let wall = report.wall.as_secs_f64();
    let explain = |why: &str| {
        tell(&format!("lab: {why} after {wall:.1} s; the end of the nested host's log:"));
        for line in &report.tail {
            tell(&format!("  | {line}"));
        }
    };
    match report.outcome {
        Outcome::Ended { status, clock: (start, end) } => {
            let unit = if machine.icount { "instructions" } else { "ns" };
            let took = end.saturating_sub(start);
            lab.progress.say(&format!(
                "exit status {status}; {wall:.1} s in all; the host's clock went from {start} to {end}: {took} {unit}"
            ));
            status
        }
        Outcome::TimedOut => {
            explain("timed out");
            TIMED_OUT
        }
        // A host that panics ends QEMU in good order.
        Outcome::Crashed(status) if status.success() => {
            explain("the nested host crashed or powered off before the end of the script,");
            CRASHED
        }
        Outcome::Crashed(status) => {
            explain(&format!("QEMU failed ({status})"));
            FAILED
        }
    }
}

/// The counters of a boot for programs.
fn counters(report: &Report, icount: bool) -> serde_json::Value {
    let (outcome, status, clock) = match report.outcome {
        host::Outcome::Ended { status, clock } => ("ended", Some(status), Some(clock)),
        host::Outcome::TimedOut => ("timed-out", None, None),
        host::Outcome::Crashed(_) => ("crashed", None, None),
    };
    json!({
        "outcome": outcome,
        "status": status,
        "icount": icount,
        "wall_seconds": report.wall.as_secs_f64(),
        "boot_seconds": report.boot.map(|boot| boot.as_secs_f64()),
        "host_start_ns": clock.map(|clock| clock.0),
        "host_end_ns": clock.map(|clock| clock.1),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_the_dashes_belong_to_the_program() {
        let words = [
            "lab", "exec", "bin", "--icount", "--node1", "128M", "--qemu", "-d", "--", "--exact",
            "x", "-q",
        ];
        let cli = Cli::try_parse_from(words).unwrap();

        let Task::Exec { options, arguments, .. } = cli.command else {
            panic!("not exec");
        };
        assert_eq!(arguments, ["--exact", "x", "-q"]);
        assert_eq!(options.qemu, ["-d"]);
        assert_eq!(options.node1, Some(Mib::new(128)));
        assert!(options.icount && !cli.quiet);
    }

    #[test]
    fn the_words_of_a_host_make_the_same_host() {
        let words = [
            "lab",
            "keep",
            "bin",
            "--memory=8G",
            "--node1",
            "128M",
            "--cpus=4",
            "--kernel",
            "k",
            "--image",
            "--disk=a",
            "--disk",
            "b",
            "--append=-x y",
            "--qemu",
            "-machine",
            "--qemu",
            "gic-version=2",
            "--runner=1",
            "f",
        ];
        let options = |words: &[OsString]| match Cli::try_parse_from(words).unwrap().command {
            Task::Keep { options, .. } => options,
            other => panic!("{other:?}"),
        };
        let first = options(&words.map(OsString::from));
        let again =
            [&words.map(OsString::from)[..3], &first.words(), &["--runner=1".into(), "f".into()]];

        let second = options(&again.concat());

        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }

    #[test]
    fn an_interrupt_deep_in_the_chain_has_its_own_code() {
        let deep = Error::Session(session::Error::Host(host::Error::Interrupted(Interrupted)));
        assert_eq!(deep.exit_code(), INTERRUPTED);
        let other = Error::Session(session::Error::File("x".into()));
        assert_eq!(other.exit_code(), FAILED);
    }

    #[test]
    fn counters_name_the_outcome() {
        let report = Report {
            outcome: Outcome::Ended { status: 3, clock: (10, 20) },
            wall: Duration::from_secs(1),
            boot: None,
            tail: Vec::new(),
        };

        let value = counters(&report, true);

        assert_eq!(value["outcome"], "ended");
        assert_eq!(value["status"], 3);
        assert_eq!(value["host_end_ns"], 20);
    }
}
