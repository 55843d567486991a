//! The lease protocol as hosts run it: stories on the store's in-memory twin, and on real etcd.

mod admin;
mod etcd;
mod support;
mod twin;
