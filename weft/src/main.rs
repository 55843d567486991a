//! The `weft` binary: command line, configuration and wiring. No logic.

fn main() {}
