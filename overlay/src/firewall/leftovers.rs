//! What flanneld leaves in the packet filter, and how it is taken away. flanneld cleans up nothing
//! when it stops, and its rules would masquerade beside ours.
//!
//! Our own table should be in force before: then no packet goes out without a masquerade.

use weft_kernel::iptables::{Restore, saved_table};
use weft_kernel::nft::{Family, TableKey, Transaction};

/// flannel's chains (pkg/trafficmngr/iptables): which table, and the chain.
const CHAINS: [(&str, &str); 2] = [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")];

/// What begins the comments of flannel's rules; before it had chains they stood in POSTROUTING and
/// FORWARD themselves.
const COMMENT: &str = "flanneld ";

/// flannel's nftables tables (pkg/trafficmngr/nftables).
const TABLES: [(Family, &str); 2] = [(Family::Ip, "flannel-ipv4"), (Family::Ip6, "flannel-ipv6")];

/// What removes flannel's chains and rules from one of iptables' rule sets, as
/// `Iptables::save_program` printed it.
pub fn iptables(saved: &str) -> Restore {
    let mut restore = Restore::default();
    for (table, flannels) in CHAINS {
        let chains = saved_table(saved, table);
        for (name, chain) in chains.iter().filter(|(name, _)| *name != flannels) {
            for rule in chain.rules.iter().filter(|rule| is_flannels(rule, flannels)) {
                restore.delete(table, name, rule);
            }
        }
        if chains.contains_key(flannels) {
            for step in ["-F", "-X"] {
                restore.step(table, [step, flannels].map(str::to_owned));
            }
        }
    }
    restore
}

/// What removes flannel's nftables tables, given the tables there are.
pub fn nftables(present: &[TableKey]) -> Transaction {
    let is_flannels = |key: &&TableKey| {
        TABLES.iter().any(|(family, name)| key.family == *family && key.name.as_str() == *name)
    };
    present.iter().filter(is_flannels).fold(Transaction::new(), |tx, key| tx.remove(key))
}

fn is_flannels(rule: &[String], chain: &str) -> bool {
    rule.windows(2).any(|pair| match pair {
        [flag, target] if flag == "-j" || flag == "-g" => target == chain,
        [flag, comment] => flag == "--comment" && comment.starts_with(COMMENT),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_jumps_and_old_rules_go() {
        let saved = r#"*nat
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;
        let wanted = r#"*filter
-D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-F FLANNEL-FWD
-X FLANNEL-FWD
COMMIT
*nat
-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-D POSTROUTING -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-F FLANNEL-POSTRTG
-X FLANNEL-POSTRTG
COMMIT
"#;
        assert_eq!(iptables(saved).to_string(), wanted);
        assert!(iptables("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n").is_empty());
    }

    #[test]
    fn only_flannel_s_tables_go() {
        let key = |family, name: &str| TableKey { family, name: name.parse().unwrap() };
        let present = [
            key(Family::Ip, "flannel-ipv4"),
            key(Family::Ip, "flannel-ipv6"),
            key(Family::Inet, "flannel-ipv4"),
            key(Family::Ip, "filter"),
        ];
        assert_eq!(nftables(&present), Transaction::new().remove(&present[0]));
        assert!(nftables(&present[1..]).is_empty());
    }
}
