//! How a process is to be confined. On the command line alone: a configuration may be another person's.

use clap::{Args, ValueEnum};

/// What becomes of system calls that a thread has no need of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum SeccompMode {
    /// They end the process.
    #[default]
    On,
    /// The kernel logs them, and does them.
    Log,
    /// There are no filters.
    Off,
}

/// Whether a process gives up what it has beyond its work.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum SandboxMode {
    /// Capabilities, files and descriptors that it does not need, cores.
    #[default]
    On,
    /// It keeps all that its user has.
    Off,
}

/// How a process is to be confined.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct SandboxArgs {
    /// System calls that a thread has no need of: on ends the process, log has the kernel log them
    #[arg(long, value_name = "on|log|off", default_value = "on")]
    pub seccomp: SeccompMode,

    /// Capabilities and files that the process has no need of: on gives them up
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub sandbox: SandboxMode,
}
