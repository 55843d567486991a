//! A Service, reduced to what decides about packets.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::{Family, family_of};

/// A Service as declared: either it gets rules, or there is a reason why not.
#[derive(Clone, Debug, PartialEq)]
pub enum Declared {
    /// It gets rules. Shared with whoever told of it.
    Served(Arc<Service>),
    /// It gets none.
    Ignored(Ignored),
}

/// Why a Service gets no rules. None of these is a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// `type: ExternalName`: a matter of DNS.
    ExternalName,
    /// `clusterIP: None`, or the label `service.kubernetes.io/headless`: a matter of DNS.
    Headless,
    /// The label `service.kubernetes.io/service-proxy-name`: another proxy serves it.
    OtherProxy {
        /// The label's value.
        proxy: String,
        /// Its cluster addresses: not ours to reject or drop.
        cluster_ips: Vec<IpAddr>,
    },
    /// No cluster address was allocated (yet).
    NoClusterIp,
}

/// A Service that gets rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Seconds since 1970 when it was created, if known. Of two services that claim the same
    /// frontend the older one has it.
    pub created: Option<i64>,
    /// What `type` says.
    pub kind: Kind,
    /// At least one, at most one per family. A family without one gets no rules at all, for the
    /// other frontends neither.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`, whatever the type.
    pub external_ips: Vec<IpAddr>,
    /// The addresses of its load balancer that this host answers for: those whose `ipMode` is VIP
    /// or not given.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may come through the load balancer's addresses; nobody else. An empty list (every
    /// entry was unreadable) lets nobody in.
    pub source_ranges: Option<Vec<IpNetwork>>,
    /// Its ports, each with a different name, and no two with the same number and protocol.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// `externalTrafficPolicy`; Cluster if nothing outside can reach the service.
    pub external_policy: Policy,
    /// How long a client keeps its endpoint after its last new connection; None without affinity.
    /// Whole seconds, one second to one day.
    pub affinity: Option<Duration>,
    /// How an endpoint is picked.
    pub balance: Balance,
    /// Where a load balancer asks whether this host has endpoints. Only for load balancers with
    /// `externalTrafficPolicy: Local`.
    pub health_check_port: Option<NonZeroU16>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// May be empty.
    pub name: Arc<str>,
    /// What it carries.
    pub protocol: Protocol,
    /// On the service's addresses.
    pub port: u16,
    /// On every node's addresses.
    pub node_port: Option<NonZeroU16>,
}

/// `type`, as far as it concerns a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reached inside of the cluster only, but for external addresses.
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also through a load balancer.
    LoadBalancer,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// Any endpoint of the cluster.
    Cluster,
    /// Only endpoints on this host.
    Local,
}

/// The annotation `weft.dev/balance`: how an endpoint is picked for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Balance {
    /// `random`: each with the same probability.
    #[default]
    Random,
    /// `client-hash`: always the same one for a client's address, on every host; when endpoints
    /// come and go, only the clients move that have to.
    ClientHash,
}

/// What a client used to reach a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// Its cluster address: internal traffic. All others are external.
    ClusterIp,
    /// An address of its load balancer.
    LoadBalancer,
    /// One of `externalIPs`.
    ExternalIp,
    /// A port of this node.
    NodePort,
}

/// What a service's port can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Declared {
    /// The service, if it gets rules.
    pub fn served(&self) -> Option<&Service> {
        match self {
            Self::Served(service) => Some(service),
            Self::Ignored(_) => None,
        }
    }
}

impl Service {
    /// Whether its clients stick to endpoints or are hashed to them.
    pub fn picks_by_id(&self) -> bool {
        self.affinity.is_some() || self.balance == Balance::ClientHash
    }

    /// Its cluster address in that family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| family_of(*ip) == family)
    }
}

impl Balance {
    /// How many slots a client's address is hashed to with `client-hash`: enough that ten endpoints'
    /// shares differ by some ten percent, few enough that a hundred such services stay small.
    pub const SLOTS: u32 = 1024;
    /// The seed of that hash, which is the kernel's `jhash`. "weft" in ASCII; it must never change,
    /// or clients would move when weft is upgraded.
    pub const SEED: u32 = 0x7765_6674;
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The number in the IP header (IANA, "Protocol Numbers").
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// `tcp`, as after a port: `80/tcp`.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// After "through ...".
impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "its cluster address",
            Self::LoadBalancer => "an address of its load balancer",
            Self::ExternalIp => "an external address of it",
            Self::NodePort => "its node port",
        })
    }
}

/// As in manifests.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        })
    }
}

/// After "this service ...".
impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExternalName => f.write_str("is of type ExternalName: DNS answers for it"),
            Self::Headless => f.write_str("is headless: DNS answers for it"),
            Self::OtherProxy { proxy, .. } => write!(f, "is served by the proxy `{proxy}`, says its label"),
            Self::NoClusterIp => f.write_str("has no cluster address"),
        }
    }
}
