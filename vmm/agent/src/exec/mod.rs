//! Commands: started with pipes or a terminal, their streams carried, their end reported.

mod pipe;
mod relay;
mod spawn;

pub(crate) use relay::Relay;
pub(crate) use spawn::spawn;
