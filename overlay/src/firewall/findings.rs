//! Which other firewalls on this host stand in the network's way, in words, for `weft doctor`.
//!
//! Nothing is done about them: a firewall that was set up by somebody is somebody's wish. (The one
//! exception, iptables closed by default, is [`super::forward`]'s.)

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_kernel::nft::{Expr, Hook, Table};

use super::trace::{Packet, Refusal, refusal};
use super::{Ip, Surroundings, table_key};
use crate::model::Model;

/// Something that a person should know, and what to run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What is wrong, in one sentence.
    pub what: String,
    /// Commands that mend it, in order.
    pub run: Vec<String>,
}

/// What nftables' tables (`Nft::tables` and `Nft::table`, everybody's) would refuse: packets between
/// pods here and on other hosts, and the tunnels' packets. For iptables' own tables see
/// [`super::forward::obstacle`].
pub fn nftables(tables: &[Table], model: &Model, around: &Surroundings) -> Vec<Finding> {
    let ours = table_key(&model.me.network).ok();
    let others = tables.iter().filter(|table| Some(&table.key) != ours.as_ref() && !is_iptables(table));
    let mut findings = Vec::new();
    for table in others {
        for ip in Ip::BOTH {
            findings.extend(forwarding(table, model, around, ip));
            for tunnel in &around.tunnels {
                findings.extend(arriving(table, model, ip, tunnel.port()));
            }
        }
    }
    findings.dedup();
    findings
}

/// iptables keeps its rules in tables of these names, with expressions that only it understands.
fn is_iptables(table: &Table) -> bool {
    let extension =
        |expr: &Expr| matches!(expr, Expr::Unknown { name, .. } if name == "match" || name == "target");
    let rules = table.chains.values().flat_map(|chain| &chain.rules);
    let names = ["filter", "nat", "mangle", "raw", "security"];
    let named = names.contains(&table.key.name.as_str())
        && table.chains.keys().any(|name| name.as_str() == "FORWARD");
    named || rules.flat_map(|rule| &rule.exprs).any(extension)
}

/// A packet from another host's pod to one here, and one back.
fn forwarding(table: &Table, model: &Model, around: &Surroundings, ip: Ip) -> Option<Finding> {
    let (own, cluster) = (ip.own(model)?, ip.cluster(model)?);
    let peers = model.peers.values().flat_map(|peer| peer.subnet.networks());
    let far = peers.into_iter().find(|network| ip.is(network)).unwrap_or(cluster);
    let outside = around.tunnel_links.first().unwrap_or(&model.me.underlay.link).to_string();
    let pod = around.pods.keys().next().map(ToString::to_string);
    let inward = Packet {
        hook: Hook::Forward,
        saddr: pod_of(far),
        daddr: pod_of(own),
        dport: 80,
        iifname: Some(outside.clone()),
        oifname: pod.clone(),
    };
    let outward = Packet {
        saddr: inward.daddr,
        daddr: inward.saddr,
        iifname: pod,
        oifname: Some(outside),
        ..inward.clone()
    };
    let refused = refusal(table, &inward).or_else(|| refusal(table, &outward))?;
    let what = format!("{}, so packets between pods are not forwarded", sentence(table, &refused));
    let word = if ip == Ip::V4 { "ip" } else { "ip6" };
    let run = if table.key.name.as_str() == "firewalld" {
        firewalld(&format!("--zone=trusted --add-source={cluster}"))
    } else {
        let rule =
            |side| format!("nft insert rule {} {} {word} {side} {cluster} accept", table.key, refused.base);
        ["saddr", "daddr"].map(rule).into()
    };
    Some(Finding { what, run })
}

/// A tunnel packet from a peer.
fn arriving(table: &Table, model: &Model, ip: Ip, port: u16) -> Option<Finding> {
    let peer = model.peers.values().find_map(|peer| ip.peer_address(peer))?;
    let here = match ip {
        Ip::V4 => IpAddr::V4(model.me.public_v4?),
        Ip::V6 => IpAddr::V6(model.me.public_v6?),
    };
    let packet = Packet {
        hook: Hook::Input,
        saddr: peer,
        daddr: here,
        dport: port,
        iifname: Some(model.me.underlay.link.to_string()),
        oifname: None,
    };
    let refused = refusal(table, &packet)?;
    let what = format!("{}, so nothing arrives at the tunnel (UDP port {port})", sentence(table, &refused));
    let run = if table.key.name.as_str() == "firewalld" {
        firewalld(&format!("--add-port={port}/udp"))
    } else {
        vec![format!("nft insert rule {} {} udp dport {port} accept", table.key, refused.base)]
    };
    Some(Finding { what, run })
}

fn sentence(table: &Table, refused: &Refusal) -> String {
    format!("chain {} of the nftables table {} {}", refused.chain, table.key, refused.how)
        + if refused.how.starts_with("has") { "" } else { " what nothing before it accepts" }
}

fn firewalld(change: &str) -> Vec<String> {
    vec![format!("firewall-cmd --permanent {change}"), "firewall-cmd --reload".to_owned()]
}

/// An address that a pod could have.
fn pod_of(network: IpNetwork) -> IpAddr {
    match network.network() {
        IpAddr::V4(addr) => IpAddr::V4(u32::from(addr).saturating_add(2).into()),
        IpAddr::V6(addr) => IpAddr::V6(u128::from(addr).saturating_add(2).into()),
    }
}
