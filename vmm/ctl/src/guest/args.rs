//! The arguments of the commands that work in a guest.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use agent::protocol::message::{Exec, Size};
use agent::protocol::text::Text;
use clap::Args;

use super::connect::BOOT_TIMEOUT;
use crate::terminal;

/// The size of a terminal for which there is none here.
const SIZE: Size = Size { rows: 24, columns: 80 };

/// How the guest is reached.
#[derive(Clone, Debug, Args)]
pub struct Reach {
    /// Its id, the beginning of one, the path of its control socket, or vsock:PATH
    #[arg(value_name = "VM")]
    pub vm: OsString,
    /// How many seconds to wait for the guest: it may still boot
    #[arg(long, value_name = "S", default_value_t = BOOT_TIMEOUT.as_secs_f64(), value_parser = seconds)]
    timeout: f64,
}

impl Reach {
    /// How long to wait.
    pub fn timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.timeout).unwrap_or(Duration::MAX)
    }
}

/// How a command is run.
#[derive(Clone, Debug, Args)]
pub struct Manner {
    /// A variable for its environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(Text, Text)>,
    /// Where it runs [default: the user's home]
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,
    /// As whom: a name or a number of the guest [default: the agent's user, root]
    #[arg(long, value_name = "USER")]
    user: Option<OsString>,
    /// Kill it and its process group when this program ends or loses the guest
    #[arg(long)]
    die_with_client: bool,
}

/// `exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    manner: Manner,
    /// Give it a terminal
    #[arg(long)]
    tty: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// `shell`.
#[derive(Clone, Debug, Args)]
pub struct ShellArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    manner: Manner,
}

/// `agent`.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// How the guest is reached.
    #[command(flatten)]
    pub reach: Reach,
    /// Set the guest's clock to the host's, for instance when a VM was restored
    #[arg(long)]
    pub set_clock: bool,
}

/// `cp`.
#[derive(Clone, Debug, Args)]
pub struct CopyArgs {
    /// How the guest is reached.
    #[command(flatten)]
    pub reach: Reach,
    /// A file or a folder; `:/PATH` is the guest's, `-` is standard input
    #[arg(value_name = "SRC")]
    pub from: OsString,
    /// Where it goes, as with cp -r: into a folder, else under this name; `-` is standard output
    #[arg(value_name = "DST")]
    pub to: OsString,
}

/// `proxy`.
#[derive(Clone, Debug, Args)]
pub struct ProxyArgs {
    /// How the guest is reached.
    #[command(flatten)]
    pub reach: Reach,
    /// The guest's port
    #[arg(value_name = "PORT")]
    pub port: u32,
}

impl ExecArgs {
    /// How the guest is reached, and what it is asked.
    pub fn into_request(self) -> (Reach, Exec) {
        let arguments = self.command.into_iter().map(text).collect();
        (self.reach, self.manner.request(arguments, self.tty))
    }
}

impl ShellArgs {
    /// How the guest is reached, and what it is asked: the login shell, with a terminal if there is one here.
    pub fn into_request(self) -> (Reach, Exec) {
        let has_terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        (self.reach, self.manner.request(Vec::new(), has_terminal))
    }
}

impl Manner {
    fn request(self, arguments: Vec<Text>, tty: bool) -> Exec {
        let mut environment = self.env;
        // Programs ask it what their terminal can do.
        if let Some(term) = std::env::var_os("TERM").filter(|_| tty) {
            environment.insert(0, ("TERM".into(), text(term)));
        }
        Exec {
            arguments,
            environment,
            directory: self.cwd.map(text),
            user: self.user.map(text),
            terminal: tty.then(|| terminal::size().unwrap_or(SIZE)),
            die_with_client: self.die_with_client,
        }
    }
}

fn text(word: OsString) -> Text {
    Text::new(word.into_vec())
}

fn variable(word: &str) -> Result<(Text, Text), String> {
    match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("it is not NAME=VALUE".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    Ok(seconds)
}
