//! The `weft` binary: command line, configuration and wiring. No logic.
//!
//! A library too, so that the tests reach the command line without a process.

pub mod cli;
