//! Templates: the memory of a snapshot, held once for all VMs that continue from it.
//!
//! ```text
//! tessera template DIR (holder):  memory file  ->  memfd, filled once, sealed  ->  a descriptor for reading
//! tessera run --shared (client):  descriptor, checked  ->  private mappings; each page is copied when it is written to
//! ```
//!
//! Which parts of guest memory are mapped, both know from the memory file: [`extents`] of its table. The message between
//! them says only what the template is of, and the client takes it for its own snapshot's or not at all.
//!
//! A boot image is a template of kernel and initrd alone, for VMs that boot: `tessera template --kernel` holds it, and
//! `tessera run --boot-image` maps it. Where the parts of its file are in guest memory, each VM decides.
//!
//! A clone needs its mappings and no longer the holder. It keeps its connection, which tells the holder that it lives.
//!
//! | File | Responsibility |
//! |---|---|
//! | `identity` | what a template is of, as a message |
//! | `boot_files` | which files a boot image is of, as a message |
//! | `boot` | boot images: the holder's side and the VM's |
//! | `extents` | which parts of guest memory it has |
//! | `fill` | its memory, out of a memory file |
//! | `holder` | the socket, and the clients |
//! | `answer` | what a holder answers |
//! | `client` | the side of a VM that is restored |
//! | `run` | the command `tessera template` |

mod answer;
mod boot;
mod boot_files;
mod client;
mod extents;
mod fill;
mod holder;
mod identity;
mod run;

pub use answer::HolderError;
pub use boot::{BootError, SharedBootImage};
pub(crate) use client::connect;
pub use client::{Connection, Error, Template, log_of, wait_for};
pub use run::{TemplateArgs, TemplateError, run};

#[cfg(test)]
mod tests;
