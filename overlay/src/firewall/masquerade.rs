//! Which connections get this host's address in place of their source.
//!
//! flannel's semantics (its chain FLANNEL-POSTRTG), with three differences, each marked below. The
//! first rule that fits decides; translations by other tables (kube-proxy's, Docker's) are not
//! touched by a `return`.

use weft_kernel::nft::{Base, ChainKind, Hook, Rule, SetSpec, Table};

use super::{Ip, Surroundings, add_chain, base, here_set, ranges};
use crate::model::Model;

/// Multicast has no one who could answer: 224.0.0.0/4 (RFC 5771) and ff00::/8 (RFC 4291).
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

pub(super) fn add(table: &mut Table, model: &Model, around: &Surroundings) {
    let mark = around.masqueraded_elsewhere;
    // flannel's nftables mode asks for this very value, so that any other bit defeats it.
    let marked = Rule::new().mark(mark.value, mark.mask).return_();
    let mut rules = vec![marked.comment("kube-proxy masquerades what it marked")];
    for ip in Ip::BOTH {
        rules_of_family(&mut rules, table, model, ip);
    }
    let hook = base(ChainKind::Nat, Hook::Postrouting, Base::PRIORITY_SRCNAT);
    // Not `masquerade`: nft could not read its own listing of that.
    add_chain(table, "masquerade-pods", Some(hook), None, rules);
}

fn rules_of_family(rules: &mut Vec<Rule>, table: &mut Table, model: &Model, ip: Ip) {
    let Some(cluster) = ip.cluster(model) else { return };
    let only = || ip.only(Rule::new());
    let masquerade = |rule: Rule| rule.masquerade(model.masquerade_random);
    let multicast = MULTICAST[ip as usize].parse().expect("a constant network");

    if let Some(own) = ip.own(model) {
        // The packet has arrived at its host, so the answer passes here whatever its source is:
        // nothing is gained by hiding the caller from the pod.
        let rule = only().in_network(ip.daddr(), own).return_();
        rules.push(rule.comment("to a pod here: it sees who calls"));
    }

    let keep = ip.name("keep");
    let spec = SetSpec::intervals([ip.data_type()]).comment("who sees pods' own addresses");
    let networks = model.non_masquerade.iter().copied().chain([cluster]);
    table.sets.insert(keep.clone(), spec.with(ranges(networks, ip)));
    // Difference: flannel says so only for pods of this host, and masquerades other hosts' pods on
    // their way through.
    let rule = only().in_network(ip.saddr(), cluster).in_set([ip.daddr()], &keep).return_();
    rules.push(rule.comment("pod to pod, and to networks that know pods"));

    // The outside has no route to pods. All pods, not only ours: a host may be another's gateway.
    let leaving = only().in_network(ip.saddr(), cluster).not_in_network(ip.daddr(), multicast);
    rules.push(masquerade(leaving).comment("pod to the outside"));

    // From here on the source is no pod and the destination is a pod of another host. Its host
    // answers straight to that source, past us: a connection that we translated (a NodePort, a
    // published port) would break, an outside client would get answers from a stranger, and even a
    // source that is our own would meet rp_filter there. With our overlay address as source the
    // answer comes back through us. The host's own connections have that source already, except
    // those bound to another address.
    //
    // Difference: over a plain route both ends see the same two underlay addresses in both
    // directions, so our own address may stay. flannel rewrites it to itself, at the cost of ports.
    let here = here_set(table, model, ip);
    let plain = only()
        .in_network(ip.daddr(), cluster)
        .oifname(&model.me.underlay.link)
        .in_set([ip.saddr()], &here)
        .return_();
    rules.push(plain.comment("this host over a plain route: answers find back"));
    // Difference: flannel's nftables mode never gets here (its rule before is too wide).
    let inward = only().in_network(ip.daddr(), cluster);
    rules.push(masquerade(inward).comment("from outside to another host's pod: answers come back here"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multicast_stands_in_the_order_of_families() {
        for ip in Ip::BOTH {
            let network = MULTICAST[ip as usize].parse().unwrap();
            assert!(ip.is(&network));
        }
    }
}
