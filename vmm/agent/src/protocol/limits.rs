//! The numbers of the protocol, each with its reason. Both sides hold the other to them.

/// The version of the protocol. The first frames of a connection ([`super::message::Greeting`] and
/// [`super::message::Refusal`]) keep their form in every version.
pub const VERSION: u32 = 1;

/// The port of AF_VSOCK at which the agent listens; below 1024 a port needs a capability.
pub const PORT: u32 = 1024;

/// The longest payload of a frame: what virtio-vsock carries in one packet
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` in Linux). It also bounds arguments and environment of a command.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// How much standard input may be on its way to a command that does not read: as much as a pipe holds.
/// With it the agent never stops reading frames, so that a signal is never behind input.
pub const INPUT_WINDOW: u32 = 64 << 10;

/// How much output of a command waits in the agent for a slow client; then the command waits, too.
pub const OUTPUT_BUFFER: usize = 256 << 10;

/// Operations at a time. Each has a thread, some ten descriptors and up to half a MiB of buffers.
pub const MAX_OPERATIONS: usize = 256;

/// Arguments, and variables of the environment, of one command: the frame bounds their bytes.
pub const MAX_WORDS: usize = 4096;

/// The longest path of a tree (PATH_MAX of Linux).
pub const MAX_PATH: usize = 4096;

/// How deep a tree may be: the sender has a descriptor open for each folder on its way.
pub const MAX_DEPTH: usize = 256;

/// The most files with several names of which a sender remembers the first; later ones are sent as files
/// of their own.
pub const MAX_LINKS: usize = 1 << 16;

/// The most messages about single files of a tree that are sent; the rest is counted.
pub const MAX_NOTICES: u64 = 100;

/// What may follow the end of an archive in its stream: padding.
pub const MAX_PADDING: u64 = 64 << 10;
