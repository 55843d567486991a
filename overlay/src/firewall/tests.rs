//! Properties of the plan: what differs between two plans is small, and a diff leads from one to the
//! other.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_kernel::nft::{Diff, diff};

use super::*;
use crate::config::{NetworkConfig, Pool};
use crate::model::{Me, NodeId, Subnet, Transports, Underlay};

fn subnet(n: u8) -> Subnet {
    Subnet {
        v4: Some(format!("10.42.{n}.0/24").parse().unwrap()),
        v6: Some(format!("fd42:0:0:{n:x}::/64").parse().unwrap()),
    }
}

fn peer(n: u8, address: u8) -> Peer {
    Peer {
        subnet: subnet(n),
        node: None,
        public_v4: Some([192, 0, 2, address].into()),
        public_v6: address.is_multiple_of(2).then(|| format!("2001:db8::{address:x}").parse().unwrap()),
        backend: "vxlan".into(),
        transports: Transports { direct: address.is_multiple_of(3), ..Transports::default() },
    }
}

fn model(peers: &BTreeMap<u8, u8>, backend: Backend) -> Model {
    let pool = |network: &str, min: &str, max: &str| {
        (network.parse().unwrap(), min.parse().unwrap(), max.parse().unwrap())
    };
    let (network, min, max) = pool("10.42.0.0/16", "10.42.1.0/24", "10.42.255.0/24");
    let v4 = Pool { network, subnet_len: 24, min, max };
    let v6 = Pool {
        network: "fd42::/48".parse().unwrap(),
        subnet_len: 64,
        min: "fd42:0:0:1::/64".parse().unwrap(),
        max: "fd42:0:0:ffff::/64".parse().unwrap(),
    };
    Model {
        me: Me {
            node: NodeId::try_from("me".to_owned()).unwrap(),
            network: "blue".into(),
            subnet: Some(subnet(1)),
            public_v4: Some([192, 0, 2, 1].into()),
            public_v6: Some("2001:db8::1".parse().unwrap()),
            underlay: Underlay {
                link: "eth0".parse().unwrap(),
                mtu: 1500,
                addresses: ["192.0.2.1/24", "2001:db8::1/64"].map(|raw| raw.parse().unwrap()).into(),
            },
            adopted_mac_v4: None,
            adopted_mac_v6: None,
        },
        config: NetworkConfig { v4: Some(v4), v6: Some(v6), backend, backend_given: true },
        peers: peers.iter().map(|(n, address)| (subnet(*n), peer(*n, *address))).collect(),
        masquerade: true,
        masquerade_random: true,
        non_masquerade: BTreeSet::new(),
        forward_accept: true,
        anti_spoofing: true,
        extra_sources: ["172.30.0.0/16", "10.42.9.0/25"].map(|raw| raw.parse().unwrap()).into(),
        blackhole: false,
    }
}

fn any_backend() -> impl Strategy<Value = Backend> {
    let vxlan = |direct_routing| Backend::Vxlan {
        vni: Vni::try_from(7).unwrap(),
        port: 8472,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing,
    };
    prop_oneof![
        any::<bool>().prop_map(vxlan),
        Just(Backend::HostGw),
        Just(Backend::Udp { port: 8285 }),
        Just(Backend::Alloc)
    ]
}

/// Other hosts by subnet number, with the last byte of their address: two may share one.
fn any_peers() -> impl Strategy<Value = BTreeMap<u8, u8>> {
    prop::collection::btree_map(2u8..40, 2u8..40, 0..12)
}

/// Pods by the last byte of their address, and neighbours by the last byte of theirs.
fn surroundings(backend: &Backend, pods: &BTreeSet<u8>, neighbours: &BTreeSet<u8>) -> Surroundings {
    let pod = |n: &u8| {
        let sources = vec![IpNetwork::new([10, 42, 1, *n].into(), 32).unwrap()];
        (format!("weft{n}").parse().unwrap(), sources)
    };
    let neighbour = |n: &u8| (IpAddr::from([192, 0, 2, *n]), Mac([2, 0, 0, 0, 0, *n]));
    Surroundings {
        pods: pods.iter().map(pod).collect(),
        neighbours: neighbours.iter().map(neighbour).collect(),
        ..Surroundings::new(backend)
    }
}

/// What the kernel would do with a change of elements.
fn apply(table: &mut Table, change: &Diff, desired: &Table) {
    match change {
        Diff::Same => {}
        Diff::Rebuild | Diff::Parts(_) => *table = desired.clone(),
        Diff::Elements(changes) => {
            for change in changes {
                let elements = &mut table.sets.get_mut(&change.set).unwrap().elements;
                for key in change.delete.keys() {
                    elements.remove(key).expect("only what is there is deleted");
                }
                for (key, value) in &change.add {
                    let old = elements.insert(key.clone(), value.clone());
                    assert_eq!(old, None, "only what is not there is added");
                }
            }
        }
    }
}

proptest! {
    /// Hosts, pods and neighbours come and go without a rule being touched: counters keep counting,
    /// and the change is as small as what happened.
    #[test]
    fn hosts_and_pods_come_and_go_as_elements(
        backend in any_backend(),
        hosts in (any_peers(), any_peers()),
        pods in prop::collection::vec(prop::collection::btree_set(2u8..9, 0..4), 2),
        neighbours in prop::collection::vec(prop::collection::btree_set(2u8..40, 0..9), 2),
    ) {
        let of = |peers: &BTreeMap<u8, u8>, n: usize| {
            plan(&model(peers, backend.clone()), &surroundings(&backend, &pods[n], &neighbours[n])).unwrap()
        };
        let (from, to) = (of(&hosts.0, 0), of(&hosts.1, 1));
        let change = diff(&to, Some(&from));
        prop_assert!(matches!(change, Diff::Same | Diff::Elements(_)));
        let mut kernel = from.clone();
        apply(&mut kernel, &change, &to);
        prop_assert_eq!(&kernel, &to);
        prop_assert_eq!(diff(&to, Some(&kernel)), Diff::Same);
    }

    /// The kernel refuses a set with ranges that overlap, and with it the whole transaction.
    #[test]
    fn no_set_has_ranges_that_overlap(
        backend in any_backend(),
        peers in any_peers(),
        neighbours in prop::collection::btree_set(2u8..40, 0..9),
    ) {
        let mut model = model(&peers, backend.clone());
        model.non_masquerade = ["10.0.0.0/8", "10.42.3.0/24"].map(|raw| raw.parse().unwrap()).into();
        let table = plan(&model, &surroundings(&backend, &BTreeSet::new(), &neighbours)).unwrap();
        for (name, set) in table.sets.iter().filter(|(_, set)| set.spec.interval) {
            let keys: Vec<&Key> = set.elements.keys().collect();
            for (n, one) in keys.iter().enumerate() {
                for other in &keys[n + 1..] {
                    // Exact in every field but the last, so comparing whole keys compares ranges.
                    let apart = one.last() < other.first() || other.last() < one.first();
                    prop_assert!(apart, "{}: {} and {}", name, one, other);
                }
            }
        }
    }
}

#[test]
fn one_change_is_a_few_elements() {
    let many: BTreeMap<u8, u8> = (2..=200).map(|n| (n, n)).collect();
    let (mut gone, mut moved) = (many.clone(), many.clone());
    gone.remove(&77);
    moved.insert(77, 203);
    let vni = Vni::try_from(7).unwrap();
    let backend =
        Backend::Vxlan { vni, port: 8472, mtu: None, gbp: false, learning: false, direct_routing: false };
    let around = Surroundings::new(&backend);
    let of = |peers: &BTreeMap<u8, u8>| plan(&model(peers, backend.clone()), &around).unwrap();
    let elements = |from: &BTreeMap<u8, u8>, to: &BTreeMap<u8, u8>| match diff(&of(to), Some(&of(from))) {
        Diff::Elements(changes) => changes.iter().map(|change| change.add.len() + change.delete.len()).sum(),
        Diff::Same => 0,
        Diff::Rebuild | Diff::Parts(_) => usize::MAX,
    };
    assert_eq!(elements(&many, &many), 0);
    // Its address; with it its two subnets, and itself; and where its packets are counted: from it, to
    // it, refused.
    assert_eq!(elements(&many, &gone), 7);
    assert_eq!(elements(&gone, &many), 7);
    assert_eq!(elements(&many, &moved), 14);
}

#[test]
fn a_network_that_nft_cannot_name_is_refused() {
    let mut model = model(&BTreeMap::new(), Backend::HostGw);
    model.me.network = "blue green".into();
    let error = plan(&model, &Surroundings::new(&Backend::HostGw)).unwrap_err();
    assert!(error.to_string().starts_with("`weft-blue green` is no nftables name"), "{error}");
}
