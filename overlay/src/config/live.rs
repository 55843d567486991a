//! Which changes of the config a running host takes over, and which it refuses.
//!
//! Live: what only steers the future (`SubnetMin`, `SubnetMax`: which subnets are handed out next;
//! a host keeps the one it has, even outside) and what the kernel changes on a link in use (`MTU`,
//! `DirectRouting`). Refused: what peers must agree on or what would take the subnet or the tunnel
//! away under running pods (`Network`, `SubnetLen`, the families, the backend's type, `VNI`, both
//! `Port`s), and what the kernel sets only when a VXLAN link is made (`GBP`; `Learning` with it,
//! since both arrive with the link). A refused config changes nothing at all.

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::pool::Family;
use super::{Backend, NetworkConfig, Pool};

/// What becomes of a new config while the host runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveChange {
    /// It is in force from now on.
    Applied {
        /// The keys whose values differ; empty if only the text does.
        keys: Vec<&'static str>,
    },
    /// The old one stays in force until the daemon is started anew.
    Refused {
        /// The first key that stands in the way, as flannel spells it.
        key: &'static str,
        /// What it was, what it should become, and why that cannot be now.
        reason: String,
    },
}

/// Judges the change from the config in force to a new one.
pub fn live_change(old: &NetworkConfig, new: &NetworkConfig) -> LiveChange {
    let mut keys = Vec::new();
    let judged = pool::<Ipv4Network>("EnableIPv4", old.v4, new.v4, &mut keys)
        .and_then(|()| pool::<Ipv6Network>("EnableIPv6", old.v6, new.v6, &mut keys))
        .and_then(|()| backend(&old.backend, &new.backend, &mut keys));
    match judged {
        Ok(()) => LiveChange::Applied { keys },
        Err((key, reason)) => LiveChange::Refused { key, reason },
    }
}

type Judged = Result<(), (&'static str, String)>;

fn pool<N: Family>(
    enable: &'static str,
    old: Option<Pool<N>>,
    new: Option<Pool<N>>,
    keys: &mut Vec<&'static str>,
) -> Judged {
    const SUBNET: &str = "it would take the subnet away under running pods";
    let (old, new) = match (old, new) {
        (None, None) => return Ok(()),
        (Some(old), Some(new)) => (old, new),
        (old, _) => return Err((enable, cannot(old.is_some(), old.is_none(), SUBNET))),
    };
    same(N::NETWORK_KEY, old.network, new.network, SUBNET)?;
    same(N::LEN_KEY, old.subnet_len, new.subnet_len, SUBNET)?;
    keys.extend((old.min != new.min).then_some(N::MIN_KEY));
    keys.extend((old.max != new.max).then_some(N::MAX_KEY));
    Ok(())
}

fn backend(old: &Backend, new: &Backend, keys: &mut Vec<&'static str>) -> Judged {
    const PEERS: &str = "hosts with the old value and hosts with the new one would not hear each other";
    const LINK: &str = "the kernel takes it only when it makes the link, which would cut running pods off";
    same("Backend.Type", old.name(), new.name(), PEERS)?;
    match (old, new) {
        (Backend::Udp { port: old }, Backend::Udp { port: new }) => same("Backend.Port", old, new, PEERS),
        (
            Backend::Vxlan { vni, port, mtu, gbp, learning, direct_routing },
            Backend::Vxlan {
                vni: new_vni,
                port: new_port,
                mtu: new_mtu,
                gbp: new_gbp,
                learning: new_learning,
                direct_routing: new_direct_routing,
            },
        ) => {
            same("Backend.VNI", vni, new_vni, PEERS)?;
            same("Backend.Port", port, new_port, PEERS)?;
            same("Backend.GBP", gbp, new_gbp, LINK)?;
            same("Backend.Learning", learning, new_learning, LINK)?;
            keys.extend((mtu != new_mtu).then_some("Backend.MTU"));
            keys.extend((direct_routing != new_direct_routing).then_some("Backend.DirectRouting"));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn same<T: PartialEq + std::fmt::Display>(key: &'static str, old: T, new: T, why: &str) -> Judged {
    if old == new { Ok(()) } else { Err((key, cannot(old, new, why))) }
}

fn cannot(old: impl std::fmt::Display, new: impl std::fmt::Display, why: &str) -> String {
    format!("{old} cannot become {new} while the host runs: {why}; it takes effect at the next start")
}
