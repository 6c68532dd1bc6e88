//! `tessera broker`: from its command line to its end.

use std::io;
use std::path::PathBuf;

use arch::units::Bytes;
use thiserror::Error;

use super::listen::{self, Server};
use super::state::ServerResources;
use crate::error::{is_denied, say};
use crate::exit_status::ExitStatus;
use crate::folder::folder_of;
use crate::sandbox::{self, Files, SandboxArgs};
use crate::sys::signals::Signals;
use crate::sys::supervisor;
use crate::sys::thread::Role;
use crate::tag_storage::broker::protocol::wire::Terms;
use crate::tag_storage::pool::{Pool, PoolError};
use crate::tag_storage::supply;
use crate::tag_storage::supply::capacity::Wanted;
use crate::tag_storage::supply::lend_policy::LendPolicy;
use crate::tag_storage::supply::{OpenError, Opened, SupplyName};

/// Own the tag storage of this host and share it among its VMs
#[derive(Clone, Debug, clap::Args)]
pub struct BrokerArgs {
    /// Listen on this Unix socket, for its owner and its group
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Where tag storage comes from: `ledger` counts and has nothing physical; `node:N` is the memory of NUMA
    /// node N, which has no CPUs
    #[arg(long, value_name = "SUPPLY", default_value = "ledger")]
    pub supply: SupplyName,
    /// How much tag storage there is; `auto` is all of the node, or what the device tree says, or 1/32 of memory
    #[arg(long, value_name = "auto|SIZE", default_value = "auto")]
    pub capacity: Wanted,
    /// When VMs without MTE live in tag storage that is not reserved, which is to be `node:N`: never; last-resort, when
    /// other memory is used up; balanced, while most free memory is there; eager, first of all
    #[arg(long, value_name = "POLICY", default_value = "never")]
    pub lend: LendPolicy,
    /// How the process is confined.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Why there is no broker.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such supply.
    #[error("the broker has no supply")]
    Supply(#[from] OpenError),
    /// There is no such pool.
    #[error("the broker has no pool")]
    Pool(#[from] PoolError),
    /// No client can be served.
    #[error(transparent)]
    Server(#[from] listen::Error),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The host gives no signals.
    #[error("the broker cannot wait for signals")]
    Signals(#[source] io::Error),
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Supply(OpenError::NothingToLend) | Self::Pool(_) => ExitStatus::Config,
            Self::Supply(error) if is_denied(error) => ExitStatus::NoPermission,
            Self::Supply(_) => ExitStatus::Unavailable,
            Self::Server(listen::Error::Taken { .. }) => ExitStatus::CannotCreate,
            Self::Server(listen::Error::Socket(error)) => error.status(),
            Self::Sandbox(error) => error.status(),
            Self::Server(listen::Error::Events(_)) | Self::Signals(_) => ExitStatus::VmmFault,
        }
    }
}

/// Serves until a signal ends it. Returns that signal's status.
///
/// # Errors
/// When there is nothing to serve, or no way to.
pub fn run(args: &BrokerArgs) -> Result<ExitStatus, Error> {
    let signals = Signals::block().map_err(Error::Signals)?;
    let folder = folder_of(&args.socket).to_owned();
    // For the mark of its successor; and what the kernel shows of borrowers, nodes and memory.
    let files = Files {
        made_in_if_there: vec![folder],
        read: vec!["/proc".into(), "/sys".into()],
        ..Files::default()
    };
    sandbox::begin(&args.sandbox, files)?;
    let resources = resources(args)?;
    let mut server = Server::bind(&args.socket, resources)?;
    say(&greeting(args, &server));
    // The broker is of use without its service manager.
    let _ = supervisor::notify_ready();
    // A process under rules for files may look at the memory of none that is not (Linux security/landlock/task.c), and
    // who has a node's memory looks at that of its borrowers, which they may name whatever is lent.
    if args.supply == SupplyName::Ledger {
        sandbox::restrict_files(Files::default())?;
    }
    sandbox::confine(Role::Broker)?;
    server.serve_until(&signals)?;
    Ok(signals.take().unwrap_or(ExitStatus::Terminated))
}

fn resources(args: &BrokerArgs) -> Result<ServerResources, Error> {
    let Opened { supply, capacity, node } = supply::open(args.supply, args.capacity, args.lend)?;
    let pool = Pool::new(capacity.geometry, capacity.size, supply)?;
    let size = Bytes::new(pool.snapshot().capacity_bytes);
    let terms = Terms { supply: args.supply, lend: args.lend, capacity: size };
    Ok(ServerResources { pool, terms, capacity_source: capacity.source.to_string(), node })
}

fn greeting(args: &BrokerArgs, server: &Server) -> String {
    let report = server.report();
    let size = Bytes::new(report.pool.capacity_bytes);
    format!(
        "the broker serves {:?}: {size} of tag storage ({}; {}), for {} chunks of 2 MiB; lending {}; \
         {} connections at most",
        args.socket,
        report.pool.supply,
        report.capacity_source,
        report.pool.chunks.total,
        args.lend,
        report.traffic.connections_max,
    )
}
