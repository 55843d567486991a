//! How a lab is doing: its machines, their subnets and pods, for `weft ps`.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::record::{PodRecord, Record};
use crate::{Host, Lab, LabError};

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostStatus {
    /// Its lab.
    pub lab: String,
    /// Its name.
    pub host: String,
    /// How its daemon is.
    pub state: State,
    /// Its IPv4 address on the underlay.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address on the underlay.
    pub ipv6: Ipv6Addr,
    /// The subnets it has leased, as its subnet file says.
    pub subnets: Vec<String>,
    /// Its pods.
    pub pods: Vec<PodRecord>,
    /// Its namespace, as `ip netns` knows it.
    pub netns: String,
}

/// How a host's daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The host is powered off.
    Off,
    /// No daemon runs.
    NoDaemon,
    /// It answers, and its peers are programmed.
    Ready,
    /// It runs and is not ready; what it says of that.
    NotReady(String),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::NoDaemon => f.write_str("no daemon"),
            Self::Ready => f.write_str("ready"),
            // The first line of an answer says no more than that; the reasons follow.
            Self::NotReady(why) => match why.lines().find(|line| *line != "not ready") {
                Some(reason) => write!(f, "not ready: {reason}"),
                None => f.write_str("not ready"),
            },
        }
    }
}

impl Lab {
    /// How each of its hosts is doing.
    pub fn status(&self) -> Result<Vec<HostStatus>, LabError> {
        let record = self.record()?;
        Ok(self.hosts().iter().map(|host| status(self, host, &record)).collect())
    }
}

fn status(lab: &Lab, host: &Host, record: &Record) -> HostStatus {
    let pods = record.pods.iter().filter(|pod| pod.host == host.name()).cloned();
    let off = record.off.contains(host.name());
    let subnets = match host.subnet_env() {
        // A file that is there says what was leased last, even while the daemon is down.
        Ok(variables) if !off => ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
            .iter()
            .filter_map(|variable| variables.get(*variable).cloned())
            .collect(),
        _ => vec![],
    };
    HostStatus {
        lab: lab.name().to_owned(),
        host: host.name().to_owned(),
        state: if off { State::Off } else { state(host) },
        ipv4: host.v4(),
        ipv6: host.v6(),
        subnets,
        pods: pods.collect(),
        netns: host.netns().to_owned(),
    }
}

fn state(host: &Host) -> State {
    if host.overlay().is_none() {
        return State::NoDaemon;
    }
    match host.api("/readyz") {
        Ok(answer) if answer.status == 200 => State::Ready,
        Ok(answer) => State::NotReady(answer.body.trim().to_owned()),
        Err(error) => State::NotReady(error.chain()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_shown() {
        for (said, shown) in [
            (
                "not ready\nlease not ready: drained\nstore degraded: away",
                "not ready: lease not ready: drained",
            ),
            ("not ready", "not ready"),
            ("cannot get /readyz: refused", "not ready: cannot get /readyz: refused"),
        ] {
            assert_eq!(State::NotReady(said.into()).to_string(), shown);
        }
    }
}
