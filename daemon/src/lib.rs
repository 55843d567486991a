//! what every weft daemon has: health and readiness with reasons, metrics, signals, logs, the local API.
