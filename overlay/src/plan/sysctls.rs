//! The kernel settings without which pods' packets are not forwarded.

use weft_daemon::settings::{Over, Setting};
use weft_kernel::net::State;

use crate::backend;
use crate::config::Backend;
use crate::model::{Family, Model};

/// Routes learned from router advertisements (RTPROT_RA, include/uapi/linux/rtnetlink.h).
const PROTOCOL_RA: u8 = 9;

/// What the model asks for: forwarding in every family that we lease a subnet in.
pub(super) fn wanted(model: &Model) -> Vec<Setting> {
    let mut wanted = Vec::new();
    let Some(own) = model.me.subnet.filter(|_| model.config.backend != Backend::Alloc) else { return wanted };
    for family in backend::inner_families(&model.config).filter(|family| own.of(*family).is_some()) {
        let path = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => {
                wanted.push(keep(model.me.underlay.link.as_str()));
                "net/ipv6/conf/all/forwarding"
            }
        };
        wanted.push(Setting::new(path, "1"));
    }
    wanted
}

/// A host that forwards ignores router advertisements, and drops the default routes it learned
/// from them, unless `accept_ra` is 2 (Documentation/networking/ip-sysctl.rst). To be written
/// before IPv6 forwarding is switched on, for every link whose routes came from advertisements.
pub fn keep_router_advertisements(observed: &State) -> Vec<Setting> {
    let learned = observed.routes.values().filter(|route| route.protocol == PROTOCOL_RA);
    let links: std::collections::BTreeSet<_> = learned.filter_map(|route| route.link.as_ref()).collect();
    links.into_iter().map(|link| keep(link.as_str())).collect()
}

fn keep(link: &str) -> Setting {
    Setting::new(format!("net/ipv6/conf/{link}/accept_ra"), "2").over(Over::Only("1"))
}
