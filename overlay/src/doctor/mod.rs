//! `weft doctor`: what is wrong with this host's network, why, and what to run.
//!
//! [`gather`] looks (each look may fail, and says so), [`findings`] judges (pure). [`responder`] is
//! the other end of its tests: every daemon answers its peers' small questions through the tunnel.

pub mod echo;
mod facts;
mod findings;
mod gather;
pub mod responder;

pub use facts::{Echo, Facts, Host, StoreFact};
pub use findings::findings;
pub use gather::{Question, gather};
