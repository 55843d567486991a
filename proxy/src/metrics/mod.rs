//! What the proxy counts of services' traffic, for `/metrics`.

pub mod connections;
