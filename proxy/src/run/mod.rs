//! The daemon.

mod world;

pub use world::{Commits, Committed, Shared, World};
