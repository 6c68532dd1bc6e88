//! Guest memory: its mapping, and what is loaded into it before the guest starts.

mod kernel;
mod load;
mod mapping;
mod ram;
pub mod tag_checks;

pub use load::{Error as LoadError, Loaded, load};
pub(crate) use mapping::huge_page_size;
pub use ram::{Attributes, Error, GuestRam};
