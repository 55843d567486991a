//! Throughput, latency, programming time and scale; results as a table, JSON and SVG.
//!
//! [`overlay`] compares the ways between pods and times the control plane; [`proxy`] compares the ways
//! to a service's endpoints and times the programming of services. [`session`] is how every
//! bench runs, in the [`regime`]s of the wires; [`report`] is the one form of every measurement,
//! [`stats`] the arithmetic, [`svg`] the charts; [`traffic`] and [`cpu`] measure.

mod claims;
pub mod cpu;
mod error;
pub mod overlay;
pub mod proxy;
pub mod regime;
pub mod report;
pub mod session;
pub mod stats;
pub mod svg;
pub mod traffic;

pub use error::BenchError;
pub use session::{Audience, Outcome};
