//! Stories of the store: against real etcd, against its twin, and the same ones against both.

mod conformance;
mod histories;
mod outages;
mod secure;
mod support;
