//! What surrounds the rules, so that they work on a host: its addresses and the changes of them, a
//! route to cluster addresses where there is none, kernel settings, and tracked flows to endpoints that
//! are gone.
//!
//! - [`addresses`]: which of the host's addresses count;
//! - [`routes`]: the way to cluster addresses on hosts without a default route;
//! - [`network`]: the watch that feeds the one and keeps the other;
//! - [`settings`]: what the kernel's settings have to be;
//! - [`flows`]: forgets UDP flows whose endpoint is gone;
//! - [`release`]: whether the kernel is new enough.

pub mod addresses;
pub mod flows;
pub mod network;
pub mod release;
pub mod routes;
pub mod settings;
