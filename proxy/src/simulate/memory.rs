//! Session affinity: which endpoint a client had last.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::model::PortName;

/// Who went where, and when. One entry per service port and client's address: the client's port and
/// the address by which it reached the service do not matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    entries: HashMap<(PortName, IpAddr), (SocketAddr, Duration)>,
}

impl Memory {
    /// A new connection of the client went to that endpoint; `now` on any clock that goes forward.
    pub fn record(&mut self, port: &PortName, client: IpAddr, endpoint: SocketAddr, now: Duration) {
        self.entries.insert((port.clone(), client), (endpoint, now));
    }

    /// The endpoint of the client's last new connection, if that is not longer than `timeout` ago.
    pub fn recall(
        &self,
        port: &PortName,
        client: IpAddr,
        timeout: Duration,
        now: Duration,
    ) -> Option<SocketAddr> {
        let (endpoint, when) = self.entries.get(&(port.clone(), client))?;
        (now.saturating_sub(*when) < timeout).then_some(*endpoint)
    }
}
