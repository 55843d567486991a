//! What is programmed, and what becomes of a packet, told to people and programs. Pure.
//!
//! - [`service`]: what is programmed for each service (`weft services`, `weft proxy --dry-run`), from
//!   the plan;
//! - [`packet`]: where a connection goes and why (`weft explain`), from the simulator;
//! - [`words`]: both as text.

pub mod packet;
pub mod service;
#[cfg(test)]
mod tests;
pub mod words;

pub use packet::{Explanation, explain};
pub use service::{Overview, overview};
