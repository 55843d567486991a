//! What a service is reached by: kinds, ports, node port addresses, source ranges, addresses that
//! nobody answers at, and frontends that two services name.

use super::*;

#[test]
fn service_kinds_and_frontends() {
    let local_node_ports = |list: &[&str]| {
        let list = NodePortAddresses::parse(list.iter().copied()).unwrap();
        world().set(|settings| settings.node_ports = list)
    };
    let multi = json!([
        {"name": "http", "port": 80, "nodePort": 30080},
        {"name": "dns", "port": 80, "protocol": "UDP", "nodePort": 30080},
    ]);
    let dual = world()
        .spec("clusterIPs", json!(["10.96.0.10", "fd00:96::10"]))
        .endpoints(&[endpoint(HERE, "ash", READY), endpoint("fd00:1::5", "ash", READY)]);
    let sctp = json!([{"name": "dns", "port": 80, "protocol": "SCTP"}]);
    let label = |key: &str| world().meta("labels", json!({key: ""}));
    let v6_only_outside = world().spec("externalIPs", json!(["2001:db8:198::7"]));
    check(vec![
        ("ClusterIP: a pod gets any endpoint and keeps its address", world(), POD, CLUSTER_IP, BOTH),
        ("ClusterIP: another port", world(), POD, "10.96.0.10:81/tcp", "untouched"),
        ("ClusterIP: another protocol", world(), POD, "10.96.0.10:80/udp", "untouched"),
        ("Multi-port: TCP", world().spec("ports", multi.clone()), POD, CLUSTER_IP, BOTH),
        (
            "Multi-port: UDP on the same number",
            world().spec("ports", multi.clone()),
            POD,
            "10.96.0.10:80/udp",
            "10.1.0.5:53, 10.1.1.5:53",
        ),
        (
            "Multi-port: the same node port for UDP",
            world().spec("ports", multi),
            OUTSIDE,
            "192.0.2.1:30080/udp",
            "10.1.0.5:53 masqueraded, 10.1.1.5:53 masqueraded",
        ),
        (
            "Protocols: SCTP, and a port that no slice has",
            world().spec("ports", sctp),
            POD,
            "10.96.0.10:80/sctp",
            "reject",
        ),
        ("Headless", world().spec("clusterIP", json!("None")), OUTSIDE, NODE_PORT, "untouched"),
        ("ExternalName", world().spec("type", json!("ExternalName")), POD, CLUSTER_IP, "untouched"),
        ("label headless", label("service.kubernetes.io/headless"), POD, CLUSTER_IP, "untouched"),
        (
            "label service-proxy-name",
            label("service.kubernetes.io/service-proxy-name"),
            POD,
            CLUSTER_IP,
            "untouched",
        ),
        ("NodePort: external traffic", world(), OUTSIDE, NODE_PORT, BOTH_MASQUERADED),
        ("NodePort: from a pod", world(), POD, NODE_PORT, BOTH_MASQUERADED),
        ("NodePort: another host's address is not ours", world(), POD, "192.0.2.2:30080/tcp", "untouched"),
        ("NodePort: not at the cluster address", world(), POD, "10.96.0.10:30080/tcp", "untouched"),
        ("nodePortAddresses: primary by default", world(), OUTSIDE, "192.0.2.11:30080/tcp", "untouched"),
        (
            "nodePortAddresses: all",
            local_node_ports(&["all"]),
            OUTSIDE,
            "192.0.2.11:30080/tcp",
            BOTH_MASQUERADED,
        ),
        (
            "nodePortAddresses: all is without localhost",
            local_node_ports(&["all"]),
            PROCESS,
            "127.0.0.1:30080/tcp",
            "untouched",
        ),
        (
            "nodePortAddresses: localhost",
            local_node_ports(&["localhost"]),
            "127.0.0.1",
            "127.0.0.1:30080/tcp",
            BOTH_MASQUERADED,
        ),
        (
            "nodePortAddresses: localhost alone",
            local_node_ports(&["localhost"]),
            OUTSIDE,
            NODE_PORT,
            "untouched",
        ),
        (
            "nodePortAddresses: a range",
            local_node_ports(&["192.0.2.8/29"]),
            OUTSIDE,
            "192.0.2.11:30080/tcp",
            BOTH_MASQUERADED,
        ),
        (
            "nodePortAddresses: out of the range",
            local_node_ports(&["192.0.2.8/29"]),
            OUTSIDE,
            NODE_PORT,
            "untouched",
        ),
        (
            "nodePortAddresses: a range is not for others' addresses",
            local_node_ports(&["192.0.2.0/24"]),
            POD,
            "192.0.2.2:30080/tcp",
            "untouched",
        ),
        (
            "nodePortAddresses: a range and a word",
            local_node_ports(&["192.0.2.8/29", "primary"]),
            OUTSIDE,
            NODE_PORT,
            BOTH_MASQUERADED,
        ),
        ("ExternalIPs: wherever the address is", world(), OUTSIDE, EXTERNAL_IP, BOTH_MASQUERADED),
        (
            "ExternalIPs: on a service of type ClusterIP",
            world().spec("type", json!("ClusterIP")).spec("ports", json!([{"name": "http", "port": 80}])),
            OUTSIDE,
            EXTERNAL_IP,
            BOTH_MASQUERADED,
        ),
        ("LoadBalancer status IP: short circuit on every node", world(), POD, BALANCER, BOTH_MASQUERADED),
        (
            "LoadBalancer status IP: ipMode VIP",
            world().ingress(json!([{"ip": "203.0.113.5", "ipMode": "VIP"}])),
            POD,
            BALANCER,
            BOTH_MASQUERADED,
        ),
        (
            "LoadBalancer status IP: ipMode Proxy is not captured",
            world().ingress(json!([{"ip": "203.0.113.5", "ipMode": "Proxy"}])),
            POD,
            BALANCER,
            "untouched",
        ),
        (
            "allocateLoadBalancerNodePorts=false",
            world().spec("ports", json!([{"name": "http", "port": 80}])),
            OUTSIDE,
            NODE_PORT,
            "untouched",
        ),
        (
            "publishNotReadyAddresses: true",
            world().endpoints(&[endpoint(HERE, "ash", PUBLISHED)]),
            POD,
            CLUSTER_IP,
            "10.1.0.5:8080",
        ),
        (
            "publishNotReadyAddresses: false",
            world().endpoints(&[endpoint(HERE, "ash", DEAD)]),
            POD,
            CLUSTER_IP,
            "reject",
        ),
        ("Dual-stack: IPv4", dual.clone(), POD, CLUSTER_IP, "10.1.0.5:8080"),
        ("Dual-stack: IPv6", dual.clone(), "fd00:1::9@pod0", "[fd00:96::10]:80/tcp", "[fd00:1::5]:8080"),
        (
            "Dual-stack: IPv6 node port",
            dual,
            "2001:db8:7::1@uplink",
            "[2001:db8:2::1]:30080/tcp",
            "[fd00:1::5]:8080 masqueraded",
        ),
        (
            "Dual-stack: a family without a cluster address is not served",
            v6_only_outside,
            "2001:db8:7::1@uplink",
            "[2001:db8:198::7]:80/tcp",
            "untouched",
        ),
        ("leading zeros", world().spec("clusterIP", json!("010.096.000.010")), POD, CLUSTER_IP, BOTH),
    ]);
}

#[test]
fn load_balancer_source_ranges() {
    let ranges = |ranges: &[&str]| world().spec("loadBalancerSourceRanges", json!(ranges));
    let strangers = || ranges(&["192.168.7.0/24"]);
    check(vec![
        ("who is in a range comes in", strangers(), OUTSIDE, BALANCER, BOTH_MASQUERADED),
        ("who is not is dropped", strangers(), "192.168.8.1@uplink", BALANCER, "drop"),
        ("pods are no exception", strangers(), POD, BALANCER, "drop"),
        ("not for node ports", strangers(), "192.168.8.1@uplink", NODE_PORT, BOTH_MASQUERADED),
        ("not for external addresses", strangers(), "192.168.8.1@uplink", EXTERNAL_IP, BOTH_MASQUERADED),
        ("not for the cluster address", strangers(), POD, CLUSTER_IP, BOTH),
        (
            "a node that may come may use the balancer's address",
            ranges(&["192.0.2.0/24"]),
            "203.0.113.5",
            BALANCER,
            BOTH_MASQUERADED,
        ),
        ("a node that may not, may not", strangers(), "203.0.113.5", BALANCER, "drop"),
        ("dropped even if nobody is there", strangers().endpoints(&[]), POD, BALANCER, "drop"),
        (
            "IPv4 ranges let in nobody over IPv6",
            strangers()
                .spec("clusterIPs", json!(["10.96.0.10", "fd00:96::10"]))
                .ingress(json!([{"ip": "2001:db8:203::5"}])),
            "2001:db8:7::1@uplink",
            "[2001:db8:203::5]:80/tcp",
            "drop",
        ),
    ]);
}

/// nftables mode only: what no service answers at.
#[test]
fn strict_cluster_addresses() {
    let strict = |world: World| {
        let strict = Strict { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()] };
        world.set(|settings| settings.strict = Some(strict))
    };
    let unknown_ranges = |world: World| world.set(|settings| settings.strict = Some(Strict::default()));
    let other = json!({
        "metadata": {"name": "mesh", "labels": {"service.kubernetes.io/service-proxy-name": "mesh"}},
        "spec": {"clusterIP": "10.96.0.66", "ports": [{"port": 80}]},
    });
    check(vec![
        ("undefined port on a live ClusterIP", strict(world()), POD, "10.96.0.10:81/tcp", "reject"),
        ("undefined protocol", strict(world()), PROCESS, "10.96.0.10:80/udp", "reject"),
        ("without endpoints too", strict(world().endpoints(&[])), POD, "10.96.0.10:81/tcp", "reject"),
        ("unallocated address in a ServiceCIDR", strict(world()), POD, "10.96.0.99:80/tcp", "drop"),
        ("the range is not known", unknown_ranges(world()), POD, "10.96.0.99:80/tcp", "untouched"),
        (
            "another proxy's address is allocated",
            strict(world().also(other)),
            POD,
            "10.96.0.66:80/tcp",
            "untouched",
        ),
        ("other addresses", strict(world()), POD, "192.168.7.1:80/tcp", "untouched"),
        ("what is served is served", strict(world()), POD, CLUSTER_IP, BOTH),
        ("iptables mode leaves all of that alone", world(), POD, "10.96.0.99:80/tcp", "untouched"),
    ]);
}

/// Two services that name the same frontend: kind of claim, age, name.
#[test]
fn contested_frontends() {
    let rival = |name: &str, created: &str, spec: Value| {
        let mut rival = json!({
            "metadata": {"namespace": "shop", "name": name, "creationTimestamp": created},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.20", "ports": [{"port": 80}]},
        });
        for (field, value) in spec.as_object().unwrap() {
            rival["spec"][field] = value.clone();
        }
        rival
    };
    let mine = || world().meta("creationTimestamp", json!("2026-01-02T00:00:00Z"));
    let (older, younger) = ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z");
    let external = |ip: &str| json!({"externalIPs": [ip]});
    let node_port = json!({"ports": [{"port": 8000, "nodePort": 30080}]});
    check(vec![
        (
            "an external address cannot take a cluster address",
            mine().also(rival("evil", older, external("10.96.0.10"))),
            POD,
            CLUSTER_IP,
            BOTH,
        ),
        (
            "nor a load balancer's",
            mine().also(rival("evil", older, external("203.0.113.5"))),
            OUTSIDE,
            BALANCER,
            BOTH_MASQUERADED,
        ),
        (
            "the older one has an external address",
            mine().also(rival("a", older, external("198.51.100.7"))),
            OUTSIDE,
            EXTERNAL_IP,
            "reject",
        ),
        (
            "the younger one has not",
            mine().also(rival("a", younger, external("198.51.100.7"))),
            OUTSIDE,
            EXTERNAL_IP,
            BOTH_MASQUERADED,
        ),
        (
            "the same age: the first name",
            mine().also(rival("a", "2026-01-02T00:00:00Z", external("198.51.100.7"))),
            OUTSIDE,
            EXTERNAL_IP,
            "reject",
        ),
        (
            "unknown age is young",
            world().also(rival("z", older, external("198.51.100.7"))),
            OUTSIDE,
            EXTERNAL_IP,
            "reject",
        ),
        ("node ports", mine().also(rival("a", older, node_port.clone())), OUTSIDE, NODE_PORT, "reject"),
        (
            "node ports, younger",
            mine().also(rival("a", younger, node_port)),
            OUTSIDE,
            NODE_PORT,
            BOTH_MASQUERADED,
        ),
        (
            "an address comes before a node port",
            mine().also(rival(
                "a",
                younger,
                json!({"externalIPs": ["192.0.2.1"], "ports": [{"port": 30080}]}),
            )),
            OUTSIDE,
            NODE_PORT,
            "reject",
        ),
    ]);
}

/// A frontend that changes hands has both services planned again.
#[test]
fn who_loses_a_frontend_is_planned_again() {
    let world = world();
    let mut model = world.model();
    let mut claims = Claims::of(&model);
    let rival = json!({
        "metadata": {"namespace": "shop", "name": "rival", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"clusterIP": "10.96.0.20", "externalIPs": ["198.51.100.7"], "ports": [{"port": 80}]},
    });
    let change = read::service(&serde_json::from_value(rival).unwrap()).change.unwrap();
    let Change::Put(Object::Service(rival, _)) = &change else { panic!() };
    let both = [rival.clone(), ServiceName::new("shop", "web")].into();
    let touched = model.apply(change.clone());
    assert_eq!(touched.services, [rival.clone()].into());
    assert_eq!(claims.absorb(&model, &touched.services), both);
    let contested: Vec<_> =
        claims.contested().map(|(_, holder, without)| (holder.clone(), without.len())).collect();
    assert_eq!(contested, [(rival.clone(), 1)]);
    let web = [ServiceName::new("shop", "web")].into();
    assert_eq!(claims.absorb(&model, &web), web, "who goes without and changes concerns nobody else");
    let gone = Change::Remove(crate::model::ObjectName::Service(rival.clone()));
    let touched = model.apply(gone);
    assert_eq!(claims.absorb(&model, &touched.services), both);
    assert_eq!(claims, Claims::of(&model));
}
