//! The options of Firecracker's process, for clients that start one: they become those of `tessera run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use thiserror::Error;

use super::RunArgs;
use crate::sandbox::{SandboxArgs, SandboxMode, SeccompMode};

/// Where Firecracker serves its API unless it is told another place.
const DEFAULT_API_SOCK: &str = "/run/firecracker.socket";

/// The name of a VM that is given none.
const DEFAULT_ID: &str = "anonymous-instance";

/// Run a VM as Firecracker's process would: its options, its API
#[derive(Args, Clone, Debug, Default)]
#[command(disable_version_flag = true)]
pub struct FirecrackerArgs {
    /// Serve the API on this Unix socket [default: /run/firecracker.socket]
    #[arg(long, value_name = "PATH", conflicts_with = "no_api")]
    pub api_sock: Option<PathBuf>,

    /// The VM's name [default: anonymous-instance]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,

    /// Configure the VM by this file, and start it
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Serve no API; the VM needs --config-file
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Write messages to this file or FIFO
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,

    /// Write counters to this file or FIFO
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,

    /// The longest body that the API takes, in bytes; up to 51200
    #[arg(long, value_name = "BYTES")]
    pub http_api_max_payload_size: Option<u64>,

    /// Print the version
    #[arg(short = 'V', long)]
    pub version: bool,

    /// Has no effect: messages have no level
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,

    /// Has no effect: messages have no module
    #[arg(long, value_name = "MODULE")]
    pub module: Option<String>,

    /// Has no effect: messages have no level
    #[arg(long)]
    pub show_level: bool,

    /// Has no effect: messages have no origin
    #[arg(long)]
    pub show_log_origin: bool,

    /// Run without filters of system calls
    #[arg(long)]
    pub no_seccomp: bool,

    /// Has no effect: devices are on the MMIO bus
    #[arg(long)]
    pub enable_pci: bool,

    /// Has no effect: there is no boot timer
    #[arg(long)]
    pub boot_timer: bool,

    /// Has no effect: there is no metadata service
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<u64>,

    /// Has no effect: counters begin with the process
    #[arg(long, value_name = "US", hide = true)]
    pub start_time_us: Option<u64>,

    /// Has no effect: counters begin with the process
    #[arg(long, value_name = "US", hide = true)]
    pub start_time_cpu_us: Option<u64>,

    /// Has no effect: counters begin with the process
    #[arg(long, value_name = "US", hide = true)]
    pub parent_cpu_time_us: Option<u64>,

    /// Refused: the filters are those of the program
    #[arg(long, value_name = "FILE")]
    pub seccomp_filter: Option<PathBuf>,

    /// Refused: there is no metadata service
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,

    /// Refused: it is of Firecracker's format of snapshots
    #[arg(long)]
    pub snapshot_version: bool,

    /// Refused: it is of Firecracker's format of snapshots
    #[arg(long, value_name = "FILE")]
    pub describe_snapshot: Option<PathBuf>,

    /// Ignored, as Firecracker does
    #[arg(last = true, hide = true)]
    pub ignored: Vec<OsString>,
}

/// An option that asks for what this VMM does not have.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{option} cannot be had: {why}")]
pub struct UnsupportedOption {
    option: &'static str,
    why: &'static str,
}

impl FirecrackerArgs {
    /// The same for `tessera run`. `max_body` is the longest body that the API takes, in bytes.
    ///
    /// # Errors
    /// When an option asks for what this VMM does not have.
    pub fn to_run_args(&self, max_body: u64) -> Result<RunArgs, UnsupportedOption> {
        const OTHER_FORMAT: &str =
            "it is of Firecracker's format of snapshots, and those of Tessera have another";
        let unsupported = [
            (
                self.seccomp_filter.is_some(),
                "--seccomp-filter",
                "the filters are those of the program",
            ),
            (self.metadata.is_some(), "--metadata", "there is no metadata service (MMDS)"),
            (self.snapshot_version, "--snapshot-version", OTHER_FORMAT),
            (self.describe_snapshot.is_some(), "--describe-snapshot", OTHER_FORMAT),
            (
                self.http_api_max_payload_size.is_some_and(|size| size > max_body),
                "--http-api-max-payload-size",
                "the API takes bodies up to 51200 bytes",
            ),
        ];
        if let Some((_, option, why)) = unsupported.into_iter().find(|(given, ..)| *given) {
            return Err(UnsupportedOption { option, why });
        }
        let api_sock = self.api_sock.clone().unwrap_or_else(|| DEFAULT_API_SOCK.into());
        Ok(RunArgs {
            api_sock: (!self.no_api).then_some(api_sock),
            id: Some(self.id.clone().unwrap_or_else(|| DEFAULT_ID.to_owned())),
            config: self.config_file.clone(),
            log: self.log_path.clone(),
            metrics: self.metrics_path.clone(),
            // Firecracker leaves them, and clients remove them.
            leave_sockets: true,
            sandbox: SandboxArgs {
                seccomp: if self.no_seccomp { SeccompMode::Off } else { SeccompMode::On },
                sandbox: SandboxMode::On,
            },
            // Its clients name files when they like, and have no option for folders.
            allow: vec!["/".into()],
            ..RunArgs::default()
        })
    }

    /// The options that were given and have no effect.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let given = [
            (self.level.is_some(), "--level"),
            (self.module.is_some(), "--module"),
            (self.show_level, "--show-level"),
            (self.show_log_origin, "--show-log-origin"),
            (self.enable_pci, "--enable-pci"),
            (self.boot_timer, "--boot-timer"),
            (self.mmds_size_limit.is_some(), "--mmds-size-limit"),
        ];
        given.into_iter().filter(|(given, _)| *given).map(|(_, option)| option).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(disable_version_flag = true)]
    struct Process {
        #[command(flatten)]
        args: FirecrackerArgs,
    }

    fn parse(line: &str) -> Result<FirecrackerArgs, clap::Error> {
        let words = std::iter::once("firecracker").chain(line.split_ascii_whitespace());
        Process::try_parse_from(words).map(|process| process.args)
    }

    #[test]
    fn a_process_without_options_waits_at_the_usual_place() {
        let run = parse("").unwrap().to_run_args(51200).unwrap();

        assert_eq!(run.api_sock.unwrap().to_str(), Some("/run/firecracker.socket"));
        assert_eq!(run.id.as_deref(), Some("anonymous-instance"));
        assert_eq!(run.config, None);
        assert!(run.leave_sockets);
        assert_eq!((run.sandbox.sandbox, run.allow), (SandboxMode::On, vec!["/".into()]));
        assert_eq!(run.sandbox.seccomp, SeccompMode::On);
    }

    #[test]
    fn every_option_of_firecracker_is_taken_or_refused_by_name() {
        let line = "--id vm1 --api-sock s --config-file c --log-path l --level Info --show-level --show-log-origin \
                    --module m --metrics-path p --no-seccomp --boot-timer --enable-pci --mmds-size-limit 1 \
                    --http-api-max-payload-size 51200 --start-time-us 1 --start-time-cpu-us 2 \
                    --parent-cpu-time-us 3 -- more --words";
        let args = parse(line).unwrap();
        let run = args.to_run_args(51200).unwrap();

        let paths = [&run.api_sock, &run.config, &run.log, &run.metrics];
        let paths = paths.map(|path| path.as_deref().and_then(|path| path.to_str()));
        assert_eq!(paths, [Some("s"), Some("c"), Some("l"), Some("p")]);
        assert_eq!(args.without_effect().len(), 7);
        assert_eq!(run.sandbox.seccomp, SeccompMode::Off);

        for option in [
            "--seccomp-filter f",
            "--metadata m",
            "--snapshot-version",
            "--describe-snapshot s",
            "--http-api-max-payload-size 51201",
        ] {
            let refused = parse(option).unwrap().to_run_args(51200).unwrap_err();
            assert!(option.starts_with(refused.option), "{refused}");
        }
    }

    #[test]
    fn a_vm_without_an_api_needs_its_configuration() {
        assert!(parse("--no-api").is_err());
        assert!(parse("--no-api --config-file c --api-sock s").is_err());
        let run = parse("--no-api --config-file c").unwrap().to_run_args(51200).unwrap();
        assert_eq!(run.api_sock, None);
    }
}
