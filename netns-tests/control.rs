//! Stories of the overlay's control plane: leases, the store's bad days, who is in the data path,
//! configuration, and what an operator sees. One program, so that stories that wait do so together.

mod config;
mod leases;
mod membership;
mod ops;
mod seen;
mod store;
