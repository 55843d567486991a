//! `weft doctor`, as far as services go: what is wrong with them on this host, why, and what to run.
//!
//! [`gather`] looks (each look may fail, and says so), [`findings`] judges (pure).

mod facts;
mod findings;
mod gather;

pub use facts::{Facts, Listener};
pub use findings::findings;
pub use gather::gather;
