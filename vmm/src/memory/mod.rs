//! Guest memory: what it is made of, what is loaded into it before the guest starts, how it goes back to
//! the host, and how much of the host it takes.

mod backing;
mod boot_image;
mod changes;
mod decompress;
mod error;
pub mod footprint;
mod kernel;
mod load;
mod mapping;
mod mend;
mod page;
mod ram;
pub(crate) mod reclaim;
mod residency;
mod shared;
mod split;
pub(crate) mod tag_checks;
mod tags;
mod template;

pub use backing::{Attributes, Backing};
pub(crate) use boot_image::{BootImage, Parts, make_boot_image};
pub(crate) use changes::Changes;
pub use error::Error;
pub use footprint::Footprint;
pub(crate) use load::open as open_boot_file;
pub use load::{Error as LoadError, Loaded, load};
pub use mend::Mender;
pub use page::SharedPage;
pub use ram::{GuestRam, Region, Regions};
pub(crate) use reclaim::{DiscardHooks, NoHooks, Outcome, Reclaimer, Renewal};
pub(crate) use residency::Residency;
pub use shared::MOST_EXTENTS;
pub(crate) use template::TemplatePart;
pub use template::{TemplateError, TemplateFile};
