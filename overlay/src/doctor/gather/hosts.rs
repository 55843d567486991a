//! The other hosts: past the tunnel and through it, small and large, ICMP and UDP.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_daemon::log::chain;
use weft_kernel::net::State;

use super::icmp::{Ping, pings};
use super::{arp, udp};
use crate::doctor::facts::{Echo, Facts, Host};
use crate::model::{Family, Model, Subnet};
use crate::mtu;
use crate::plan::{Transport, plan};

/// So many hosts are asked by UDP at once.
const AT_ONCE: usize = 32;
/// An echo request that fits everywhere (IPv6 header, ICMP header, some bytes).
const SMALL: u32 = 64;

/// How one host is reached, and what is asked of it.
struct Way {
    subnet: Subnet,
    /// Its public address.
    outer: IpAddr,
    /// What the underlay must carry in one piece.
    needs: u32,
    /// Our tunnel address, its tunnel address, and the largest packet within.
    tunnel: Option<(IpAddr, IpAddr, u32)>,
}

pub(super) fn look(model: &Model, observed: &State, facts: &mut Facts) {
    squatters(model, observed, facts);
    let ways = ways(model);
    if let Err(error) = ask(&ways, facts) {
        facts.unseen.push(format!("other hosts: {error}"));
    }
}

fn squatters(model: &Model, observed: &State, facts: &mut Facts) {
    let Some(address) = model.me.public_v4 else { return };
    let held = observed.addresses.iter().find(|held| held.network.ip() == IpAddr::V4(address));
    let Some(link) = held.and_then(|held| observed.links.get(&held.link)) else { return };
    match arp::squatter(link, address) {
        Ok(found) => facts.squatters.extend(found.map(|mac| (address.into(), mac))),
        Err(error) => facts.unseen.push(format!("who else has {address}: {error}")),
    }
}

fn ways(model: &Model) -> Vec<Way> {
    let base = mtu::base(&model.config, &model.me.underlay);
    let mut ways: BTreeMap<Subnet, Way> = BTreeMap::new();
    for ((subnet, inner), way) in &plan(model).ways {
        let peer = model.peers.get(subnet);
        let Some(outer) = peer.and_then(|peer| peer.public(way.outer)) else { continue };
        let first = |subnet: &Subnet| subnet.of(*inner).map(|network| network.network());
        let ends = model.me.subnet.as_ref().and_then(first).zip(first(subnet));
        let largest = mtu::of_way(base, *way);
        let tunnel = ends.filter(|_| way.transport != Transport::Direct);
        let tunnel = tunnel.map(|(own, theirs)| (own, theirs, largest.min(mtu::of_pods(model))));
        // IPv4 comes first, and one family tells enough.
        let needs = largest + mtu::overhead(*way);
        ways.entry(*subnet).or_insert(Way { subnet: *subnet, outer, needs, tunnel });
    }
    ways.into_values().collect()
}

fn ask(ways: &[Way], facts: &mut Facts) -> std::io::Result<()> {
    let mut wanted = Vec::new();
    for Way { outer, needs, tunnel, .. } in ways {
        let inner = tunnel.map_or(*outer, |(_, theirs, _)| theirs);
        let largest = tunnel.map_or(SMALL, |(_, _, largest)| largest);
        wanted.extend([
            Ping { to: *outer, length: SMALL, whole: false },
            Ping { to: *outer, length: *needs, whole: true },
            Ping { to: inner, length: SMALL, whole: false },
            Ping { to: inner, length: largest, whole: false },
        ]);
    }
    let answers = pings(&wanted, 3)?;
    let mut hosts: Vec<Host> = Vec::new();
    for (way, answers) in ways.iter().zip(answers.chunks(4)) {
        let [underlay, whole, tunnel, full] = *answers else { continue };
        let through = way.tunnel.is_some();
        hosts.push(Host {
            underlay,
            carries: whole.then_some(way.needs),
            tunnel: through.then_some(tunnel),
            tunnel_full: through.then_some(full),
            echo: Echo::NotAsked,
        });
    }
    narrow(ways, &mut hosts)?;
    for (ways, hosts) in ways.chunks(AT_ONCE).zip(hosts.chunks_mut(AT_ONCE)) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = ways
                .iter()
                .zip(hosts)
                .filter(|(_, host)| host.tunnel == Some(true))
                .filter_map(|(way, host)| Some((way.tunnel?, host)))
                .map(|((own, theirs, largest), host)| {
                    let header = if own.is_ipv4() { 20 + 8 } else { 40 + 8 };
                    let part = usize::try_from(largest.saturating_sub(header)).unwrap_or_default();
                    scope.spawn(move || udp::ask(own, theirs, part).map(|echo| host.echo = echo))
                })
                .collect();
            for thread in asked {
                match thread.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => facts.unseen.push(format!("UDP through the tunnel: {}", chain(&error))),
                    Err(payload) => std::panic::resume_unwind(payload),
                }
            }
        });
    }
    facts.hosts = ways.iter().map(|way| way.subnet).zip(hosts).collect();
    Ok(())
}

/// Where the underlay carries a small packet and not the one needed: how much it does carry.
fn narrow(ways: &[Way], hosts: &mut [Host]) -> std::io::Result<()> {
    let least = |outer: &IpAddr| match Family::of(*outer) {
        Family::V4 => 68,
        Family::V6 => mtu::IPV6_MINIMUM,
    };
    let narrow = ways.iter().zip(hosts).filter(|(_, host)| host.underlay && host.carries.is_none());
    let mut searched: Vec<_> =
        narrow.map(|(way, host)| (way.outer, least(&way.outer), way.needs, host)).collect();
    while searched.iter().any(|(_, low, high, _)| high - low > 1) {
        let open: Vec<usize> = (0..searched.len()).filter(|n| searched[*n].2 - searched[*n].1 > 1).collect();
        let ping = |n: &usize| {
            let (to, low, high, _) = &searched[*n];
            Ping { to: *to, length: low.midpoint(*high), whole: true }
        };
        let wanted: Vec<Ping> = open.iter().map(ping).collect();
        for ((n, ping), answered) in open.iter().zip(&wanted).zip(pings(&wanted, 1)?) {
            if answered {
                searched[*n].1 = ping.length;
            } else {
                searched[*n].2 = ping.length;
            }
        }
    }
    for (_, low, _, host) in searched {
        host.carries = Some(low);
    }
    Ok(())
}
