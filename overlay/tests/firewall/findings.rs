//! Other firewalls: what is found in real rule sets, and that the advice helps.

use weft_kernel::nft::{Nft, Table};
use weft_overlay::firewall::findings::{Finding, nftables};
use weft_overlay::model::Model;

use crate::world::{World, around, model, vxlan};

fn tables(world: &World) -> Vec<Table> {
    world.inside("host", || {
        let mut nft = Nft::open().unwrap();
        let keys = nft.tables().unwrap();
        keys.iter().map(|key| nft.table(key).unwrap().unwrap()).collect()
    })
}

fn ask(world: &World, model: &Model) -> Vec<Finding> {
    nftables(&tables(world), model, &around(model))
}

/// Commands for `nft`, then which hooks must be complained about.
const CASES: [(&str, &[&str], &[&str]); 6] = [
    ("nothing", &[], &[]),
    (
        "closed by policy",
        &[
            "add table inet fw",
            "add chain inet fw through { type filter hook forward priority 0 ; policy drop ; }",
            "add chain inet fw inward { type filter hook input priority 0 ; policy drop ; }",
            "add rule inet fw inward ct state established,related accept",
            "add rule inet fw inward tcp dport 22 accept",
        ],
        &["forwarded", "arrives"],
    ),
    (
        "closed by a reject in a chain that is jumped to, as firewalld does",
        &[
            "add table inet fw",
            "add chain inet fw through { type filter hook forward priority 10 ; policy accept ; }",
            "add chain inet fw zones",
            "add rule inet fw through ct state { established, related } accept",
            "add rule inet fw through iifname lo accept",
            "add rule inet fw through jump zones",
            "add rule inet fw zones log",
            "add rule inet fw zones reject with icmpx admin-prohibited",
        ],
        &["forwarded"],
    ),
    (
        "open to the tunnel and to pods",
        &[
            "add table inet fw",
            "add set inet fw pods { type ipv4_addr ; flags interval ; elements = { 10.42.0.0/16 } ; }",
            "add chain inet fw through { type filter hook forward priority 0 ; policy drop ; }",
            "add chain inet fw inward { type filter hook input priority 0 ; policy drop ; }",
            "add rule inet fw through ip saddr @pods accept",
            "add rule inet fw through ip6 saddr fd42::/48 accept",
            "add rule inet fw inward udp dport { 53, 8472 } accept",
        ],
        &[],
    ),
    (
        "drops something else",
        &[
            "add table ip fw",
            "add chain ip fw through { type filter hook forward priority 0 ; policy accept ; }",
            "add rule ip fw through ip saddr 192.168.0.0/16 drop",
            "add rule ip fw through meta mark 7 drop",
            "add rule ip fw through tcp dport 80 drop",
        ],
        &[],
    ),
    (
        "without effect",
        &[
            "add table inet fw { flags dormant ; }",
            "add chain inet fw through { type filter hook forward priority 0 ; policy drop ; }",
        ],
        &[],
    ),
];

#[test]
fn what_others_refuse_is_found_and_the_advice_helps() {
    let model = model(1, &[2], vxlan(false));
    for (why, rules, complaints) in CASES {
        let mut world = World::new();
        world.machine("host", &[]);
        // Ours is not a finding, whatever it drops.
        world.apply("host", &model, &around(&model));
        for rule in rules {
            world.run("host", &format!("nft {rule}"));
        }
        let findings = ask(&world, &model);
        for complaint in complaints {
            assert!(findings.iter().any(|f| f.what.contains(complaint)), "{why}: {complaint}: {findings:?}");
        }
        assert_eq!(findings.is_empty(), complaints.is_empty(), "{why}: {findings:?}");
        for command in findings.iter().flat_map(|finding| &finding.run) {
            world.run("host", command);
        }
        assert_eq!(ask(&world, &model), [], "{why}: after the advice was followed");
    }
}

#[test]
fn the_words_are_a_person_s() {
    let mut world = World::new();
    world.machine("host", &[]);
    for rule in CASES[1].1 {
        world.run("host", &format!("nft {rule}"));
    }
    let mut model = model(1, &[2], vxlan(false));
    model.config.v6 = None;
    model.me.public_v6 = None;
    model.me.subnet = model.me.subnet.map(|subnet| weft_overlay::model::Subnet { v6: None, ..subnet });
    let said: Vec<String> = ask(&world, &model)
        .into_iter()
        .flat_map(|finding| [vec![finding.what], finding.run].concat())
        .collect();
    let wanted = [
        "chain through of the nftables table inet fw has the policy drop, so packets between pods are not forwarded",
        "nft insert rule inet fw through ip saddr 10.42.0.0/16 accept",
        "nft insert rule inet fw through ip daddr 10.42.0.0/16 accept",
        "chain inward of the nftables table inet fw has the policy drop, so nothing arrives at the tunnel (UDP port 8472)",
        "nft insert rule inet fw inward udp dport 8472 accept",
    ];
    assert_eq!(said, wanted);
}

#[test]
fn firewalld_and_iptables_have_words_of_their_own() {
    let mut world = World::new();
    world.machine("host", &[]);
    world.run("host", "iptables-nft -P FORWARD DROP");
    world.run("host", "nft add table inet firewalld");
    world.run(
        "host",
        "nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy drop ; }",
    );
    let run: Vec<String> =
        ask(&world, &model(1, &[2], vxlan(false))).into_iter().flat_map(|finding| finding.run).collect();
    let wanted = [
        "firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16",
        "firewall-cmd --reload",
        "firewall-cmd --permanent --zone=trusted --add-source=fd42::/48",
        "firewall-cmd --reload",
    ];
    assert_eq!(run, wanted);
}
