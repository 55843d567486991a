//! Which endpoints of a service port this host may use (kube-proxy's endpoint selection, KEP-1669
//! for terminating endpoints, KEP-4444 and KEP-3015 for hints).

use std::net::SocketAddr;

use crate::host::Host;
use crate::model::Endpoint;

/// The endpoints of one service port in one family that this host may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Candidates {
    /// For the policy Cluster: ready ones, as far as hints allow; if none is ready anywhere, those
    /// that terminate and still serve.
    pub(super) cluster: Vec<SocketAddr>,
    /// For the policy Local: ready ones on this host; if there is none, those on this host that
    /// terminate and still serve, whatever is ready elsewhere.
    pub(super) local: Vec<SocketAddr>,
    /// Those on this host that are ready: what health checks count.
    pub(super) local_ready: Vec<SocketAddr>,
    /// Whether any endpoint anywhere could be used. If not, packets are rejected; if so and none may
    /// be used here, they are dropped.
    pub(super) any: bool,
}

impl Candidates {
    /// Sorts out the endpoints of one service port in one family.
    pub(super) fn of(endpoints: &[Endpoint], host: &Host) -> Self {
        let local = |endpoint: &Endpoint| endpoint.node.as_ref() == Some(&host.node);
        let ready: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
        let last: Vec<&Endpoint> = endpoints.iter().filter(|it| it.serving && it.terminating).collect();
        let local_ready = addresses(ready.iter().copied().filter(|it| local(it)));
        let local_last = addresses(last.iter().copied().filter(|it| local(it)));
        let hinted = Hint::of(&ready, host);
        let cluster = addresses(ready.iter().copied().filter(|it| hinted.allows(it, host)));
        Self {
            cluster: if ready.is_empty() { addresses(last.iter().copied()) } else { cluster },
            local: if local_ready.is_empty() { local_last } else { local_ready.clone() },
            local_ready,
            any: !ready.is_empty() || !last.is_empty(),
        }
    }
}

/// Which hints count.
enum Hint {
    /// Only endpoints for this node.
    Node,
    /// Only endpoints for this host's zone.
    Zone,
    /// None: all endpoints.
    Ignored,
}

impl Hint {
    /// A kind of hint counts if every ready endpoint has one and at least one of them names us; a
    /// single missing hint says that whoever gives them is not done.
    fn of(ready: &[&Endpoint], host: &Host) -> Self {
        let counts = |hinted: fn(&Endpoint) -> bool, kind: Self| {
            let complete = ready.iter().all(|endpoint| hinted(endpoint));
            complete && ready.iter().any(|endpoint| kind.allows(endpoint, host))
        };
        if counts(|endpoint| !endpoint.node_hints.is_empty(), Self::Node) {
            Self::Node
        } else if counts(|endpoint| !endpoint.zone_hints.is_empty(), Self::Zone) {
            Self::Zone
        } else {
            Self::Ignored
        }
    }

    fn allows(&self, endpoint: &Endpoint, host: &Host) -> bool {
        match self {
            Self::Node => endpoint.node_hints.contains(&host.node),
            Self::Zone => {
                host.zone.as_ref().is_some_and(|zone| endpoint.zone_hints.iter().any(|it| **it == **zone))
            }
            Self::Ignored => true,
        }
    }
}

fn addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<SocketAddr> {
    endpoints.map(|endpoint| endpoint.address).collect()
}
