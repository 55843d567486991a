//! Throughput, latency, programming time and scale; results as a table, JSON and SVG.
//!
//! [`report`] is the one form of every measurement, [`stats`] the arithmetic, [`svg`] the charts.

pub mod report;
pub mod stats;
pub mod svg;
