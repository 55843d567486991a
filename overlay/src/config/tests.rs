//! flannel's config rules, a row each; and properties over any input.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Parsed, BadConfig> {
    NetworkConfig::parse(text.as_bytes())
}

fn config(text: &str) -> NetworkConfig {
    parse(text).unwrap_or_else(|bad| panic!("{text}: {bad}")).config
}

/// network, length, min, max
fn v4(text: &str) -> String {
    let pool = config(text).v4.unwrap();
    format!("{} {} {} {}", pool.network, pool.subnet_len, pool.min.ip(), pool.max.ip())
}

fn v6(text: &str) -> String {
    let pool = config(text).v6.unwrap();
    format!("{} {} {} {}", pool.network, pool.subnet_len, pool.min.ip(), pool.max.ip())
}

#[test]
fn ipv4_ranges_are_flannels() {
    let table = [
        //  config                                              network length min max
        (r#"{"Network":"10.3.0.0/16"}"#, "10.3.0.0/16 24 10.3.1.0 10.3.255.0"),
        (r#"{"network":"10.3.7.9/16"}"#, "10.3.0.0/16 24 10.3.1.0 10.3.255.0"),
        (r#"{"Network":"10.3.0.0/22"}"#, "10.3.0.0/22 24 10.3.1.0 10.3.3.0"),
        (r#"{"Network":"10.3.0.0/23"}"#, "10.3.0.0/23 25 10.3.0.128 10.3.1.128"),
        (r#"{"Network":"10.3.0.0/28"}"#, "10.3.0.0/28 30 10.3.0.4 10.3.0.12"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":0}"#, "10.3.0.0/16 24 10.3.1.0 10.3.255.0"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":18}"#, "10.3.0.0/16 18 10.3.64.0 10.3.192.0"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":30}"#, "10.3.0.0/16 30 10.3.0.4 10.3.255.252"),
        (r#"{"Network":"10.3.0.0/28","SubnetLen":30}"#, "10.3.0.0/28 30 10.3.0.4 10.3.0.12"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}"#,
            "10.3.0.0/16 28 10.3.5.0 10.3.8.0",
        ),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.0"}"#, "10.3.0.0/16 24 10.3.0.0 10.3.255.0"),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"0.0.0.0"}"#, "10.3.0.0/16 24 10.3.1.0 10.3.255.0"),
        (r#"{"Network":"255.0.0.0/8"}"#, "255.0.0.0/8 24 255.0.1.0 255.255.255.0"),
        (r#"{"Network":"0.0.0.0/1"}"#, "0.0.0.0/1 24 0.0.1.0 127.255.255.0"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.5.0"}"#,
            "10.3.0.0/16 24 10.3.5.0 10.3.5.0",
        ),
    ];
    for (text, range) in table {
        assert_eq!(v4(text), range, "{text}");
    }
}

#[test]
fn ipv6_ranges_are_flannels() {
    let with = |rest: &str| format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{rest}}}"#);
    let table = [
        (r#""IPv6Network":"fc00::/48""#, "fc00::/48 64 fc00:0:0:1:: fc00:0:0:ffff::"),
        (r#""IPv6Network":"fc00::/62""#, "fc00::/62 64 fc00:0:0:1:: fc00:0:0:3::"),
        (r#""IPv6Network":"fc00::/63""#, "fc00::/63 65 fc00::8000:0:0:0 fc00:0:0:1:8000::"),
        (r#""IPv6Network":"fc00::/124""#, "fc00::/124 126 fc00::4 fc00::c"),
        (r#""ipv6network":"fc00::1/48","IPv6SubnetMin":null"#, "fc00::/48 64 fc00:0:0:1:: fc00:0:0:ffff::"),
        (r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"::""#, "fc00::/48 64 fc00:0:0:1:: fc00:0:0:ffff::"),
        (
            r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:f::","IPv6SubnetLen":124"#,
            "fc00::/48 124 fc00:0:0:1:: fc00:0:0:f::",
        ),
        (r#""IPv6Network":"ff00::/8""#, "ff00::/8 64 ff00:0:0:1:: ffff:ffff:ffff:ffff::"),
    ];
    for (rest, range) in table {
        assert_eq!(v6(&with(rest)), range, "{rest}");
    }
}

#[test]
fn what_breaks_a_rule_is_named_with_key_value_and_rule() {
    let table = [
        ("", "config"),
        ("[]", "config = []: must be a JSON object"),
        (r#"{"Network":"10.3.0.0/16"} x"#, "config"),
        ("null", "Network = absent"),
        ("{}", "Network = absent: must be an IPv4 network"),
        (r#"{"Network":null}"#, "Network = null"),
        (r#"{"Network":16}"#, "Network = 16"),
        (r#"{"Network":"10.3.0.0"}"#, "Network = \"10.3.0.0\""),
        (r#"{"Network":"10.3.0.0/+8"}"#, "Network"),
        (r#"{"Network":"10.3.0.0/33"}"#, "Network"),
        (r#"{"Network":"fc00::/48"}"#, "Network"),
        (r#"{"Network":"0.0.0.0/0"}"#, "Network = \"0.0.0.0/0\": must not be everything"),
        (r#"{"Network":"10.3.0.0/29"}"#, "Network = \"10.3.0.0/29\": must be /28 or wider"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "SubnetLen = 31: must be at most 30"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#, "SubnetLen = 17: must be at least 18"),
        (r#"{"Network":"10.3.0.0/29","SubnetLen":30}"#, "SubnetLen = 30: must be at least 31"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":-1}"#, "SubnetLen = -1"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":24.0}"#, "SubnetLen = 24.0"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":"24"}"#, "SubnetLen = \"24\""),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":99999999999999999999}"#, "SubnetLen"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#,
            "SubnetMin = \"10.4.0.0\": must lie in Network",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.1"}"#,
            "SubnetMin = \"10.3.5.1\": must be the first",
        ),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":"10.2.255.0"}"#, "SubnetMax"),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.5.128"}"#, "SubnetMax"),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":""}"#, "SubnetMax = \"\""),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":null}"#, "SubnetMax = null"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#,
            "SubnetMax = \"10.3.8.0\": must not lie before SubnetMin",
        ),
        (r#"{"Network":"10.3.0.0/16","EnableIPv4":1}"#, "EnableIPv4 = 1: must be true or false"),
        (r#"{"EnableIPv4":false}"#, "EnableIPv4 = false: must not be off"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#, "IPv6Network = absent"),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"10.4.0.0/16"}"#,
            "IPv6Network = \"10.4.0.0/16\"",
        ),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"::ffff:10.0.0.0/104"}"#, "IPv6Network"),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            "IPv6Network = \"fc00::/125\": must be /124 or wider",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}"#,
            "IPv6SubnetLen = 127: must be at most 126",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":49}"#,
            "IPv6SubnetLen = 49: must be at least 50",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00::1"}"#,
            "IPv6SubnetMin",
        ),
    ];
    for (text, said) in table {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.starts_with(said), "{text}\n  {error}\n  {said}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn backends_are_flannels() {
    let with = |backend: &str| format!(r#"{{"Network":"10.3.0.0/16","Backend":{backend}}}"#);
    let vxlan = |vni: u32, port, mtu, gbp, learning, direct_routing| {
        let vni = Vni::try_from(vni).unwrap();
        Backend::Vxlan { vni, port, mtu, gbp, learning, direct_routing }
    };
    let good = [
        (r#"{"Type":"vxlan"}"#, vxlan(1, 8472, None, false, false, false)),
        (r#"{"type":"VXLAN","Port":0,"MTU":0}"#, vxlan(1, 8472, None, false, false, false)),
        (
            r#"{"Type":"vxlan","VNI":4096,"Port":4789,"MTU":1400,"GBP":true,"Learning":true,"DirectRouting":true}"#,
            vxlan(4096, 4789, Some(1400), true, true, true),
        ),
        (r#"{"Type":"vxlan","vni":0,"directRouting":true}"#, vxlan(0, 8472, None, false, false, true)),
        (r#"{"Type":"Host-GW"}"#, Backend::HostGw),
        (r#"{"Type":"udp"}"#, Backend::Udp { port: 8285 }),
        (r#"{"Type":"udp","Port":7890}"#, Backend::Udp { port: 7890 }),
        (r#"{"Type":"alloc"}"#, Backend::Alloc),
    ];
    for (text, backend) in good {
        let config = config(&with(text));
        assert_eq!(config.backend, backend, "{text}");
        assert!(config.backend_given);
    }
    let bad = [
        ("null", "Backend.Type = absent"),
        ("\"vxlan\"", "Backend = \"vxlan\": must be a JSON object"),
        ("{}", "Backend.Type = absent: must be one of"),
        (r#"{"Type":7}"#, "Backend.Type = 7"),
        (r#"{"Type":"vlan"}"#, "Backend.Type = \"vlan\": must be one of vxlan, host-gw, udp, alloc"),
        (
            r#"{"Type":"WireGuard"}"#,
            "Backend.Type = \"WireGuard\": is a backend of flannel that weft does not",
        ),
        (r#"{"Type":"ipip"}"#, "Backend.Type = \"ipip\": is a backend of flannel"),
        (r#"{"Type":"ipsec"}"#, "Backend.Type = \"ipsec\": is a backend of flannel"),
        (r#"{"Type":"extension"}"#, "Backend.Type = \"extension\": is a backend of flannel"),
        (r#"{"Type":"tencent-vpc"}"#, "Backend.Type = \"tencent-vpc\": is a backend of flannel"),
        (
            r#"{"Type":"vxlan","VNI":16777216}"#,
            "Backend.VNI = 16777216: must be a whole number from 0 to 16777215",
        ),
        (r#"{"Type":"vxlan","VNI":-1}"#, "Backend.VNI = -1"),
        (r#"{"Type":"vxlan","Port":65536}"#, "Backend.Port = 65536"),
        (r#"{"Type":"vxlan","MTU":137}"#, "Backend.MTU = 137: must be at least 138"),
        (r#"{"Type":"vxlan","GBP":"yes"}"#, "Backend.GBP = \"yes\": must be true or false"),
        (r#"{"Type":"udp","Port":0}"#, "Backend.Port = 0: must be a whole number from 1 to 65535"),
    ];
    for (text, said) in bad {
        let error = parse(&with(text)).expect_err(text).to_string();
        assert!(error.starts_with(said), "{text}\n  {error}\n  {said}");
    }
}

#[test]
fn an_ipv6_network_needs_1280_bytes_inside_the_tunnel() {
    let text = |mtu: u32| {
        format!(
            r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{{"Type":"vxlan","MTU":{mtu}}}}}"#
        )
    };
    assert!(parse(&text(1349)).is_err());
    assert!(parse(&text(1350)).is_ok());
}

#[test]
fn what_has_no_effect_is_noted_and_not_refused() {
    let table = [
        (r#"{"Network":"10.3.0.0/16","Netwrok":"x","Backend":{"Type":"udp"}}"#, "Netwrok: no such key"),
        (
            r#"{"Network":"10.3.0.0/16","EnableNFTables":true,"Backend":{"Type":"udp"}}"#,
            "EnableNFTables: has no",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"udp","VNI":1}}"#,
            "Backend.VNI: no such key for this",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","MacPrefix":"0E-2A"}}"#,
            "Backend.MacPrefix: read",
        ),
    ];
    for (text, said) in table {
        let notes = parse(text).expect(text).notes;
        assert!(notes.len() == 1 && notes[0].starts_with(said), "{text}: {notes:?}");
    }
    for quiet in [
        r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":8472}}"#,
        r#"{"Network":"10.3.0.0/16"}"#,
    ] {
        assert_eq!(parse(quiet).unwrap().notes, Vec::<String>::new());
    }
}

#[test]
fn live_changes_are_the_ones_that_take_nothing_away() {
    let text = |network: &str, backend: &str| format!(r#"{{"Network":{network},"Backend":{{{backend}}}}}"#);
    let old = config(&text(r#""10.3.0.0/16""#, r#""Type":"vxlan""#));
    let live = [
        (r#""10.3.0.0/16""#, r#""Type":"VXLAN","VNI":1"#, vec![]),
        (r#""10.3.0.0/16","SubnetMin":"10.3.9.0""#, r#""Type":"vxlan""#, vec!["SubnetMin"]),
        (r#""10.3.0.0/16","SubnetMax":"10.3.9.0""#, r#""Type":"vxlan""#, vec!["SubnetMax"]),
        (r#""10.3.0.0/16""#, r#""Type":"vxlan","MTU":1400"#, vec!["Backend.MTU"]),
        (r#""10.3.0.0/16""#, r#""Type":"vxlan","DirectRouting":true"#, vec!["Backend.DirectRouting"]),
    ];
    for (network, backend, keys) in live {
        let new = config(&text(network, backend));
        assert_eq!(live_change(&old, &new), LiveChange::Applied { keys }, "{network} {backend}");
    }
    let refused = [
        (r#""10.4.0.0/16""#, r#""Type":"vxlan""#, "Network"),
        (r#""10.3.0.0/16","SubnetLen":25"#, r#""Type":"vxlan""#, "SubnetLen"),
        (r#""10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48""#, r#""Type":"vxlan""#, "EnableIPv6"),
        (r#""10.3.0.0/16""#, r#""Type":"udp""#, "Backend.Type"),
        (r#""10.3.0.0/16""#, r#""Type":"vxlan","VNI":2"#, "Backend.VNI"),
        (r#""10.3.0.0/16""#, r#""Type":"vxlan","Port":4789"#, "Backend.Port"),
        (r#""10.3.0.0/16""#, r#""Type":"vxlan","GBP":true"#, "Backend.GBP"),
        (r#""10.3.0.0/16""#, r#""Type":"vxlan","Learning":true"#, "Backend.Learning"),
    ];
    for (network, backend, named) in refused {
        let new = config(&text(network, backend));
        match live_change(&old, &new) {
            LiveChange::Refused { key, reason } => {
                assert_eq!(key, named, "{network} {backend}");
                assert!(reason.contains("cannot become"), "{reason}");
            }
            applied => panic!("{network} {backend}: {applied:?}"),
        }
    }
    let udp = |port: u16| config(&text(r#""10.3.0.0/16""#, &format!(r#""Type":"udp","Port":{port}"#)));
    assert!(matches!(live_change(&udp(1), &udp(2)), LiveChange::Refused { key: "Backend.Port", .. }));
}

/// What every accepted config promises to its readers.
fn check<N: Family + std::fmt::Debug>(pool: Pool<N>) -> Result<(), TestCaseError> {
    prop_assert!(pool.fits(pool.min) && pool.fits(pool.max) && pool.min <= pool.max, "{pool:?}");
    prop_assert!(pool.subnet_len >= pool.network.prefix_len() + 2, "{pool:?}");
    prop_assert!(pool.subnet_len <= N::LONGEST_SUBNET, "{pool:?}");
    prop_assert_eq!(pool.nth(0), pool.min);
    prop_assert_eq!(pool.nth(pool.count() - 1), pool.max);
    prop_assert_eq!(pool.overlap(pool.max), Some((pool.count() - 1, pool.count() - 1)));
    prop_assert_eq!(pool.overlap(pool.network), Some((0, pool.count() - 1)));
    Ok(())
}

fn any_scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        (0u32..140).prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        (any::<[u8; 4]>(), 0u8..34).prop_map(|([a, b, c, d], len)| format!("\"{a}.{b}.{c}.{d}/{len}\"")),
        (0u8..4, any::<u8>()).prop_map(|(b, c)| format!("\"10.{b}.{c}.0\"")),
        (0u8..30).prop_map(|len| format!("\"10.0.0.0/{len}\"")),
        (0u8..130).prop_map(|len| format!("\"fc00::/{len}\"")),
        (0u16..8).prop_map(|n| format!("\"fc00:0:0:{n}::\"")),
        Just(r#"{"Type":"vxlan","VNI":7}"#.to_owned()),
        Just(r#"{"Type":"udp"}"#.to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = NetworkConfig::parse(&raw);
    }

    #[test]
    fn what_is_accepted_keeps_its_promises(
        entries in prop::collection::vec((0usize..12, any_scalar()), 0..8),
        v4 in 1u8..30, v6 in 1u8..126,
    ) {
        let keys = ["EnableIPv4", "EnableIPv6", "EnableNFTables", "Network", "IPv6Network", "SubnetMin",
            "SubnetMax", "IPv6SubnetMin", "IPv6SubnetMax", "SubnetLen", "IPv6SubnetLen", "Backend"];
        let mut text = format!(r#"{{"EnableIPv6":true,"Network":"10.0.0.0/{v4}","IPv6Network":"fc00::/{v6}""#);
        for (key, value) in entries {
            text.push_str(&format!(r#","{}":{value}"#, keys[key]));
        }
        text.push('}');
        if let Ok(Parsed { config, .. }) = parse(&text) {
            prop_assert!(config.v4.is_some() || config.v6.is_some());
            if let Some(pool) = config.v4 { check(pool)?; }
            if let Some(pool) = config.v6 { check(pool)?; }
            prop_assert_eq!(live_change(&config, &config), LiveChange::Applied { keys: vec![] });
        }
    }

    /// The share of accepted configs above must not be zero, so simple ones are checked by themselves.
    #[test]
    fn every_network_that_is_wide_enough_is_accepted(address: u32, len in 1u8..=28) {
        let network = Ipv4Network::new(address.into(), len).unwrap();
        let parsed = parse(&format!(r#"{{"Network":"{network}"}}"#));
        check(parsed.map_err(|bad| TestCaseError::fail(bad.to_string()))?.config.v4.unwrap())?;
    }
}
