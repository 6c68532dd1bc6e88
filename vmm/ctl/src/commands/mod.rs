//! The verbs, one a file.

pub mod balloon;
pub mod bench;
pub mod clone;
pub mod console;
pub mod events;
pub mod fleet;
pub mod guest;
pub mod kill;
pub mod list;
pub mod logs;
pub mod metrics;
pub mod pool;
pub mod power;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod top;
pub mod wait;
