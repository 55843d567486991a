//! throughput, latency, programming time and scale; results as a table, JSON and SVG.
