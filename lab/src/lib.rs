//! A cluster on one machine: namespaces as hosts, an underlay to break, a real etcd, a daemon per host.
//!
//! ```no_run
//! use weft_lab::{CutFrom, Lab};
//!
//! # fn main() -> Result<(), weft_lab::LabError> {
//! let lab = Lab::new("a story").weft("target/debug/weft").hosts(["ash", "birch"]).up()?;
//! let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
//! client.reaches(&server)?;
//! lab.cut("ash", CutFrom::Etcd)?;
//! client.reaches(&server)?;
//! # Ok(()) }
//! ```
//!
//! [`Layout`](layout::Layout) and [`Faults`](faults::Faults) are pure: who is where, and what is
//! broken. A lab's state is its [`Record`](record::Record) on disk and nothing else, so a crashed
//! lab is as easy to remove as a healthy one. Everything blocks and is bounded in time.

mod builder;
pub mod demo;
mod down;
mod error;
mod etcd;
pub mod faults;
mod host;
mod http;
mod lab;
pub mod layout;
pub mod manifests;
mod netns;
mod overlay;
mod place;
mod pod;
mod process;
mod proxy;
pub mod record;
mod status;
pub mod traffic;
mod underlay;
mod wait;

pub use builder::{Builder, labs_dir};
pub use down::{Ending, down, down_all, list};
pub use error::LabError;
pub use etcd::Etcd;
pub use faults::CutFrom;
pub use host::Host;
pub use http::Response;
pub use lab::Lab;
pub use layout::Families;
pub use manifests::Manifests;
pub use place::Place;
pub use pod::Pod;
pub use process::{Exit, Output, ProcessId, Running};
pub use proxy::Proxy;
pub use status::{HostStatus, State};
pub use underlay::Offloads;
pub use wait::{Outcome, TimedOut, throughout, wait_for, within};
