//! This host's kernel: its settings, its packet filters, and what it can do at all.

use std::path::Path;

use weft_daemon::log::chain;
use weft_kernel::iptables::programs;
use weft_kernel::net::{Change, Link, LinkKind, Rtnetlink, Vni, Vxlan};
use weft_kernel::netns::{NetNs, run_in};
use weft_kernel::nft::{
    Base, Chain, ChainKind, Family as NftFamily, Hook, Nft, Policy, Rule, Table, Transaction,
};
use weft_kernel::sysctl::Sysctl;

use crate::doctor::facts::Facts;

pub(super) fn look(facts: &mut Facts) {
    settings(facts);
    filters(facts);
    abilities(facts);
}

fn settings(facts: &mut Facts) {
    let fixed = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
    ];
    let of_links = facts.tunnel_links.iter().map(|link| format!("net/ipv4/conf/{link}/rp_filter"));
    for path in fixed.map(str::to_owned).into_iter().chain(of_links) {
        match path.parse::<Sysctl>().map(|sysctl| sysctl.read()) {
            Ok(Ok(value)) => {
                facts.settings.insert(path, value);
            }
            Ok(Err(error)) if error.is_absent() => {}
            Ok(Err(error)) => facts.unseen.push(chain(&error)),
            Err(error) => facts.unseen.push(chain(&error)),
        }
    }
}

fn filters(facts: &mut Facts) {
    let mut nft = match Nft::open() {
        Ok(nft) => nft,
        Err(error) => return facts.unseen.push(format!("packet filters: {error}")),
    };
    let keys = match nft.tables() {
        Ok(keys) => keys,
        Err(error) => return facts.unseen.push(format!("nftables: {}", chain(&error))),
    };
    for key in &keys {
        match nft.table(key) {
            Ok(table) => facts.nft_tables.extend(table),
            Err(error) => facts.unseen.push(format!("nftables table {key}: {}", chain(&error))),
        }
    }
    for set in programs::in_use(&keys) {
        match programs::save(set) {
            Ok(saved) => facts.iptables.push((set, saved)),
            Err(error) => facts.unseen.push(chain(&error)),
        }
    }
}

/// Tried in a namespace of its own, which is gone afterwards.
fn abilities(facts: &mut Facts) {
    let tried = NetNs::anonymous().and_then(|ns| {
        let vxlan = Rtnetlink::open_in(&ns).map(|net| net.apply_blocking(&[Change::AddLink(sample_link())]));
        Ok((vxlan, run_in(&ns, try_nftables)?))
    });
    match tried {
        Ok((vxlan, nftables)) => {
            match vxlan {
                Ok(failures) => {
                    let first = failures.first().map(|failure| ("vxlan", chain(failure)));
                    facts.lacking.extend(first);
                }
                Err(error) => facts.unseen.push(chain(&error)),
            }
            facts.lacking.extend(nftables.err().map(|error| ("nftables", error)));
        }
        Err(error) => facts.unseen.push(format!("what this kernel can do: {}", chain(&error))),
    }
    if !Path::new("/dev/net/tun").exists() {
        facts.lacking.insert("tun", "there is no /dev/net/tun".to_owned());
    }
}

fn sample_link() -> Link {
    let vxlan = Vxlan {
        vni: Vni::try_from(1).expect("one is a VNI"),
        port: 8472,
        local: None,
        underlay: None,
        learning: false,
        gbp: false,
    };
    Link {
        name: "sample".parse().expect("six letters are a link name"),
        index: 0,
        kind: LinkKind::Vxlan(vxlan),
        mac: None,
        mtu: 1450,
        up: false,
        carrier: true,
        alias: None,
        master: None,
    }
}

/// What the overlay's table is made of, in small.
fn try_nftables() -> Result<(), String> {
    let name = "sample".parse().expect("six letters are a table name");
    let mut table = Table::new(NftFamily::Inet, name);
    let chain_of = |kind, hook, rule| Chain {
        base: Some(Base { kind, hook, priority: 0, policy: Policy::Accept }),
        comment: None,
        rules: vec![rule],
    };
    let chains = [
        ("post", chain_of(ChainKind::Nat, Hook::Postrouting, Rule::new().masquerade(true))),
        ("pre", chain_of(ChainKind::Filter, Hook::Prerouting, Rule::new().source_is_local().notrack())),
    ];
    for (name, chain) in chains {
        table.chains.insert(name.parse().expect("letters are a chain name"), chain);
    }
    let mut nft = Nft::open().map_err(|error| error.to_string())?;
    nft.commit(&Transaction::new().create(&table)).map_err(|error| chain(&error))
}
