//! The CNI plugin: lets container runtimes attach their pods to the overlay.
//!
//! [`protocol`] reads the call and writes the answer.

pub mod protocol;
