//! Addresses of load balancers on the LAN: who answers for one, and what is said there. Pure.
//!
//! One host answers for each address ([`owner`]): switches and neighbours learn its MAC from what
//! [`frames`] says to all, and ask again by and by.

pub mod frames;
mod owner;

pub use owner::owner;
