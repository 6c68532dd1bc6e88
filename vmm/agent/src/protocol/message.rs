//! The payloads that are JSON. Fields that a side does not know are ignored.

use serde::{Deserialize, Serialize};

use super::limits::VERSION;
use super::text::Text;

/// What makes a connection one of this protocol.
pub const PROTOCOL: &str = "tessera-agent";

/// The part of [`Hello`] that is the same in all versions.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Greeting {
    /// [`PROTOCOL`].
    pub protocol: String,
    /// The client's [`VERSION`].
    pub version: u32,
}

/// The first frame.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hello {
    /// As in [`Greeting`].
    pub protocol: String,
    /// As in [`Greeting`].
    pub version: u32,
    /// What is wanted.
    pub operation: Operation,
}

impl Hello {
    /// A request in this version.
    pub fn new(operation: Operation) -> Self {
        Self { protocol: PROTOCOL.to_owned(), version: VERSION, operation }
    }
}

/// What a connection is for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Run a command.
    Exec(Exec),
    /// Take a file or a tree.
    CopyIn(CopyIn),
    /// Send a file or a tree.
    CopyOut(CopyOut),
    /// Say what the agent is.
    Info,
    /// Set the system's clock from the real-time clock, which is the host's.
    SetClock,
}

/// A command.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Exec {
    /// The program and its arguments; none for the user's login shell.
    pub arguments: Vec<Text>,
    /// Variables beside those that each command has.
    pub environment: Vec<(Text, Text)>,
    /// Where it runs; the user's home where there is none.
    pub directory: Option<Text>,
    /// A name or a number; the agent's own where there is none.
    pub user: Option<Text>,
    /// A terminal for it, else it has pipes.
    pub terminal: Option<Size>,
    /// Its process group is killed when the client has gone.
    pub die_with_client: bool,
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A file or a tree for the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CopyIn {
    /// Where it goes.
    pub destination: Text,
    /// What comes.
    pub source: Source,
}

/// A file or a tree of the guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CopyOut {
    /// Its path.
    pub source: Text,
}

/// What is copied.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Source {
    /// What it is called in a destination that is a folder; empty for none.
    pub name: Text,
    /// What it is.
    pub kind: SourceKind,
}

/// What kind of thing is copied.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// One file: the stream is its content.
    File {
        /// Its permissions; those of a new file where there are none.
        mode: Option<u32>,
        /// When it was modified: seconds and nanoseconds since 1970.
        modified: Option<(i64, u32)>,
        /// How long it is, for showing only.
        size: Option<u64>,
    },
    /// A folder: the stream is an archive.
    Tree,
}

/// The agent's consent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Accepted {
    /// The agent's program.
    pub agent: String,
    /// The number of the command's process.
    pub process: Option<u32>,
    /// What will be sent.
    pub source: Option<Source>,
    /// By how many milliseconds the system's clock was set forward.
    pub clock_moved_ms: Option<i64>,
    /// Operations that are served now, this one included.
    pub operations: Option<u32>,
}

/// Why an operation is not done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// Of which kind.
    pub reason: Reason,
    /// What a user needs to know.
    pub message: String,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The versions do not fit.
    Version,
    /// There are as many operations as the agent serves at a time.
    Busy,
    /// The request makes no sense.
    Malformed,
    /// There is no such program.
    NotFound,
    /// The program cannot be executed.
    NotExecutable,
    /// Anything else.
    #[serde(other)]
    Failed,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What was sent, or received.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Summary {
    /// The digest of the stream, in hexadecimal.
    pub sha256: String,
    /// The length of the stream.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// Those that were left out as they are neither.
    pub skipped: u64,
    /// Those that could not be read.
    pub failed: u64,
}

/// A message about one entry of a tree.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Notice {
    /// What a user needs to know.
    pub message: String,
}
