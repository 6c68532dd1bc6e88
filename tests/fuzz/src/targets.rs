//! The targets that need only public items.

use crate::Target;

mod agent;
mod balloon;
mod block;
mod board;
mod config;
mod kernel;
mod net;
mod registers;
mod rng;
mod tags;
mod vsock;

/// All of them.
pub const ALL: &[Target] = &[
    Target { name: "agent", run: agent::run, seeds: agent::seeds },
    Target { name: "arguments", run: config::arguments, seeds: config::argument_seeds },
    Target { name: "balloon", run: balloon::run, seeds: balloon::seeds },
    Target { name: "block", run: block::run, seeds: block::seeds },
    Target { name: "board", run: board::run, seeds: board::seeds },
    Target { name: "config", run: config::file, seeds: config::file_seeds },
    Target { name: "gpio", run: registers::gpio, seeds: registers::seeds },
    Target { name: "kernel", run: kernel::run, seeds: kernel::seeds },
    Target { name: "mmio", run: rng::run, seeds: rng::seeds },
    Target { name: "net", run: net::run, seeds: net::seeds },
    Target { name: "rtc", run: registers::rtc, seeds: registers::seeds },
    Target { name: "serial", run: registers::serial, seeds: registers::seeds },
    Target { name: "tags", run: tags::run, seeds: tags::seeds },
    Target { name: "vsock", run: vsock::run, seeds: vsock::seeds },
];
