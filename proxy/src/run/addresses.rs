//! The addresses that this host has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_kernel::net::{NetError, Rtnetlink, State};

use crate::host::Observed;
use crate::model::Family;

/// Looks once.
pub(super) fn look(net: &Rtnetlink) -> Result<Observed, NetError> {
    Ok(of(&net.observe_blocking()?))
}

/// The addresses of a host's kernel. The one it is known by, where its Node gives none, is the first of
/// the link that the default route leads through, or of any link.
fn of(state: &State) -> Observed {
    let usable = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let all = || state.addresses.iter().map(|address| (&address.link, address.network.ip()));
    let addresses: BTreeSet<IpAddr> = all().map(|(_, ip)| ip).filter(|ip| !ip.is_loopback()).collect();
    let primary = |family: Family| {
        let of_family = |ip: IpAddr| crate::model::family_of(ip) == family && usable(ip);
        let default = state.routes.values().find(|route| {
            route.key.dst.prefix() == 0 && crate::model::family_of(route.key.dst.ip()) == family
        });
        let through = default.and_then(|route| route.link.as_ref());
        let there = all().find(|(link, ip)| through == Some(*link) && of_family(*ip));
        there.or_else(|| all().find(|(_, ip)| of_family(*ip))).map(|(_, ip)| ip)
    };
    Observed { primary: Family::ALL.into_iter().filter_map(primary).collect(), addresses }
}
