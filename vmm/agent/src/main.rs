//! The agent in a guest.

fn main() {}
