//! What becomes of a new connection to one frontend: by traffic policy, by where it comes from, and
//! by which endpoints there are.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Candidates;
use crate::host::{Host, LocalPods};
use crate::model::{Family, FrontendKind, Policy, Service, family_of};

/// What becomes of new connections to a frontend.
///
/// Whatever the path, a connection of an endpoint to itself is masqueraded, or the answer would not
/// come back through us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// If given, packets from elsewhere are dropped before anything else.
    pub sources: Option<Vec<IpNetwork>>,
    /// For packets of local pods ([`Host::local_pods`]); this comes first.
    pub pods: Path,
    /// For packets whose source is an address of this host.
    pub host: Path,
    /// For all others.
    pub others: Path,
}

/// Where a new connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// To one of these endpoints; there is at least one.
    To {
        /// Which of the two sets of [`super::PortPlan`].
        set: Policy,
        /// Whether the endpoint sees an address of this host instead of the client's.
        masquerade: bool,
    },
    /// The client is told that nobody is there.
    Reject,
    /// The client is told nothing: somebody is there, but not for it and here.
    Drop,
}

impl Treatment {
    /// The same with every path to endpoints masqueraded, or none.
    #[must_use]
    pub fn masquerading(self, masquerade: bool) -> Self {
        let change = |path| match path {
            Path::To { set, .. } => Path::To { set, masquerade },
            Path::Reject | Path::Drop => path,
        };
        let Self { sources, pods, host, others } = self;
        Self { sources, pods: change(pods), host: change(host), others: change(others) }
    }

    /// Whether a path leads to that set.
    pub fn leads_to(&self, policy: Policy) -> bool {
        let paths = [self.pods, self.host, self.others];
        paths.iter().any(|path| matches!(path, Path::To { set, .. } if *set == policy))
    }
}

/// For a frontend of that kind.
pub(super) fn treatment(
    service: &Service,
    kind: FrontendKind,
    family: Family,
    candidates: &Candidates,
    host: &Host,
) -> Treatment {
    let to = |set, masquerade| path(set, masquerade, candidates);
    let (pods, host_itself, others) = match (kind, service.external_policy) {
        // To the cluster address: one policy for all. Who is not a local pod is masqueraded, as
        // answers might find another way home.
        (FrontendKind::ClusterIp, _) => {
            let all = host.settings.masquerade_all;
            let stranger = all || tells_pods(host, family);
            let set = service.internal_policy;
            (to(set, all), to(set, stranger), to(set, stranger))
        }
        (_, Policy::Cluster) => {
            let path = to(Policy::Cluster, true);
            (path, path, path)
        }
        // What starts on this host acts as if it had gone out and come back through a load balancer
        // that knows all hosts. The host itself would use the frontend's address as its source, if
        // it has that, so it is masqueraded.
        (_, Policy::Local) => {
            (to(Policy::Cluster, false), to(Policy::Cluster, true), to(Policy::Local, false))
        }
    };
    let sources = (kind == FrontendKind::LoadBalancer).then(|| sources(service, family, host)).flatten();
    Treatment { sources, pods, host: host_itself, others }
}

fn path(set: Policy, masquerade: bool, candidates: &Candidates) -> Path {
    let endpoints = match set {
        Policy::Cluster => &candidates.cluster,
        Policy::Local => &candidates.local,
    };
    match (endpoints.is_empty(), candidates.any) {
        (false, _) => Path::To { set, masquerade },
        (true, true) => Path::Drop,
        (true, false) => Path::Reject,
    }
}

/// Whether local pods can be told from others in that family.
fn tells_pods(host: &Host, family: Family) -> bool {
    match &host.local_pods {
        LocalPods::Unknown => false,
        LocalPods::Ranges(ranges) => ranges.iter().any(|range| family_of(range.ip()) == family),
        LocalPods::Link(_) | LocalPods::LinkPrefix(_) => true,
    }
}

/// A node that may come, and has the load balancer's address on a link of its own, comes with that
/// address as its source; so the addresses are let in too.
///
/// The list is for both families: who lists IPv4 ranges only lets in nobody over IPv6. (kube-proxy
/// would let everybody in there.)
fn sources(service: &Service, family: Family, host: &Host) -> Option<Vec<IpNetwork>> {
    let mut allowed = service.source_ranges.clone()?;
    let of_family = |ip: IpAddr| family_of(ip) == family;
    allowed.retain(|range| of_family(range.ip()));
    if host.primary(family).is_some_and(|own| allowed.iter().any(|range| range.contains(own))) {
        allowed.extend(
            service.load_balancer_ips.iter().copied().filter(|ip| of_family(*ip)).map(IpNetwork::from),
        );
    }
    Some(allowed)
}
