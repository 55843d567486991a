//! Objects of the API as a person or a server writes them, and what the model makes of them.

mod merging;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::{core, discovery};
use serde_json::{Value, json};

use super::read::{self, Reading};
use super::*;

/// A complete service, changed by the test.
fn web() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00::10"],
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}},
    })
}

fn a_slice() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.5"], "nodeName": "ash"}],
    })
}

/// The object with the value at the JSON pointer set, parents made as needed.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let mut place = &mut object;
    for step in pointer.trim_start_matches('/').split('/') {
        let step = step.replace("~1", "/");
        place = match step.parse::<usize>() {
            Ok(index) if place.is_array() => &mut place[index],
            _ => &mut place[step],
        };
    }
    *place = value;
    object
}

fn read_service(object: Value) -> Reading {
    read::service(
        &serde_json::from_value::<core::v1::Service>(object).expect("the test's object is a Service"),
    )
}

fn read_slice(object: Value) -> Reading {
    let object = serde_json::from_value::<discovery::v1::EndpointSlice>(object);
    read::slice(&object.expect("the test's object is an EndpointSlice"))
}

fn served(reading: &Reading) -> Option<&Service> {
    match reading.change.as_ref()? {
        Change::Put(Object::Service(_, declared)) => declared.served(),
        other => panic!("a Service gave {other:?}"),
    }
}

fn slice_of(reading: &Reading) -> Option<&Slice> {
    match reading.change.as_ref()? {
        Change::Put(Object::Slice(_, slice)) => Some(slice),
        Change::Remove(_) => None,
        other => panic!("an EndpointSlice gave {other:?}"),
    }
}

fn words(reading: &Reading) -> Vec<String> {
    reading.problems.iter().map(ToString::to_string).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_service_with_everything() {
    let mut object = web();
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    object["metadata"]["annotations"] = json!({"weft.dev/balance": "client-hash"});
    for (field, value) in [
        ("externalIPs", json!(["198.51.100.7", "198.51.100.7"])),
        ("loadBalancerSourceRanges", json!([" 198.51.100.0/24"])),
        ("internalTrafficPolicy", json!("Local")),
        ("externalTrafficPolicy", json!("Local")),
        ("sessionAffinity", json!("ClientIP")),
        ("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 60}})),
        ("healthCheckNodePort", json!(32000)),
    ] {
        object["spec"][field] = value;
    }
    let port = |name: &str, protocol, port, node_port: Option<u16>| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port: node_port.map(|port| port.try_into().unwrap()),
    };
    let expected = Service {
        created: Some(1_767_225_600),
        kind: Kind::LoadBalancer,
        cluster_ips: vec![ip("10.96.0.10"), ip("fd00::10")],
        external_ips: vec![ip("198.51.100.7")],
        load_balancer_ips: vec![ip("203.0.113.5")],
        source_ranges: Some(vec!["198.51.100.0/24".parse().unwrap()]),
        ports: vec![port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)],
        internal_policy: Policy::Local,
        external_policy: Policy::Local,
        affinity: Some(Duration::from_secs(60)),
        balance: Balance::ClientHash,
        health_check_port: 32000.try_into().ok(),
    };
    let reading = read_service(object);
    assert_eq!(words(&reading), [""; 0]);
    let name = ServiceName::new("shop", "web");
    assert_eq!(
        reading.change,
        Some(Change::Put(Object::Service(name, Declared::Served(Arc::new(expected)))))
    );
}

/// The rows "Headless / ExternalName" and "labels" of the feature table.
#[test]
fn some_services_are_not_for_this_proxy() {
    let spec = |field: &str, value: Value| with(web(), &format!("/spec/{field}"), value);
    let labelled = |key: &str, value: &str| with(web(), "/metadata/labels", json!({key: value}));
    let headless = with(spec("clusterIPs", json!(["None"])), "/spec/clusterIP", json!("None"));
    let only_old_field = with(spec("clusterIPs", json!(null)), "/spec/clusterIP", json!("None"));
    let unallocated = with(spec("clusterIPs", json!([])), "/spec/clusterIP", json!(""));
    let cluster_ips = vec![ip("10.96.0.10"), ip("fd00::10")];
    let proxy = |name: &str| Ignored::OtherProxy { proxy: name.to_owned(), cluster_ips: cluster_ips.clone() };
    let table = [
        ("ExternalName", spec("type", json!("ExternalName")), Ignored::ExternalName),
        ("clusterIPs: [None]", headless, Ignored::Headless),
        ("clusterIP: None", only_old_field, Ignored::Headless),
        ("label headless", labelled("service.kubernetes.io/headless", ""), Ignored::Headless),
        ("label proxy name", labelled("service.kubernetes.io/service-proxy-name", "mesh"), proxy("mesh")),
        ("label proxy name, empty", labelled("service.kubernetes.io/service-proxy-name", ""), proxy("")),
        ("no cluster address", unallocated, Ignored::NoClusterIp),
    ];
    for (case, object, expected) in table {
        let reading = read_service(object);
        assert_eq!(words(&reading), [""; 0], "{case}");
        let Some(Change::Put(Object::Service(_, declared))) = reading.change else { panic!("{case}") };
        assert_eq!(declared, Declared::Ignored(expected), "{case}");
    }
}

/// Toggling the label takes the service out and brings it back.
#[test]
fn a_label_added_later_takes_the_service_out() {
    let name = ServiceName::new("shop", "web");
    let mut model = Model::default();
    model.apply(read_service(web()).change.unwrap());
    let labelled = with(web(), "/metadata/labels", json!({"service.kubernetes.io/service-proxy-name": "x"}));
    let touched = model.apply(read_service(labelled).change.unwrap());
    assert_eq!(touched.services, BTreeSet::from([name.clone()]));
    assert_eq!(model.service(&name), None);
    model.apply(read_service(web()).change.unwrap());
    assert!(model.service(&name).is_some());
}

#[test]
fn what_a_service_leaves_open_has_the_defaults_of_the_api() {
    let reading = read_service(json!({
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    }));
    let Some(Change::Put(Object::Service(name, _))) = &reading.change else { panic!("{reading:?}") };
    assert_eq!(name.to_string(), "default/web");
    let service = served(&reading).unwrap();
    assert_eq!(service.kind, Kind::ClusterIp);
    assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    assert_eq!((service.internal_policy, service.external_policy), (Policy::Cluster, Policy::Cluster));
    assert_eq!((service.affinity, service.balance), (None, Balance::Random));
    let sticky = with(web(), "/spec/sessionAffinity", json!("ClientIP"));
    assert_eq!(served(&read_service(sticky)).unwrap().affinity, Some(Duration::from_secs(10_800)));
}

/// The rows "LoadBalancer status IP", "allocateLoadBalancerNodePorts" and "healthCheckNodePort".
#[test]
fn what_concerns_load_balancers() {
    let ingress = |entries: Value| {
        served(&read_service(with(web(), "/status/loadBalancer/ingress", entries))).unwrap().clone()
    };
    let vip = ingress(json!([{"ip": "203.0.113.5", "ipMode": "VIP"}, {"ip": "2001:db8::5"}]));
    assert_eq!(vip.load_balancer_ips, [ip("203.0.113.5"), ip("2001:db8::5")]);
    let proxy = ingress(json!([{"ip": "203.0.113.5", "ipMode": "Proxy"}, {"hostname": "lb.example"}]));
    assert!(proxy.load_balancer_ips.is_empty());

    let not_a_balancer = with(web(), "/spec/type", json!("NodePort"));
    assert!(served(&read_service(not_a_balancer)).unwrap().load_balancer_ips.is_empty());

    let without = with(web(), "/spec/allocateLoadBalancerNodePorts", json!(false));
    let without = with(without, "/spec/ports/0/nodePort", json!(0));
    assert_eq!(served(&read_service(without)).unwrap().ports[0].node_port, None);

    let health = with(web(), "/spec/healthCheckNodePort", json!(32000));
    assert_eq!(served(&read_service(health.clone())).unwrap().health_check_port, None, "policy is Cluster");
    let health = with(health, "/spec/externalTrafficPolicy", json!("Local"));
    assert_eq!(served(&read_service(health)).unwrap().health_check_port, 32000.try_into().ok());
}

#[test]
fn an_external_policy_means_nothing_where_nothing_outside_can_come() {
    let inside = with(with(web(), "/spec/type", json!("ClusterIP")), "/spec/ports/0/nodePort", json!(null));
    let inside = with(inside, "/spec/externalTrafficPolicy", json!("Local"));
    assert_eq!(served(&read_service(inside.clone())).unwrap().external_policy, Policy::Cluster);
    let reached = with(inside, "/spec/externalIPs", json!(["198.51.100.7"]));
    assert_eq!(served(&read_service(reached)).unwrap().external_policy, Policy::Local);
}

/// A wrong entry is left out, a wrong setting has its default; the rest of the service works.
#[test]
fn a_small_mistake_is_named_and_the_rest_works() {
    let table = [
        ("/spec/ports/1/port", json!(99999), "spec.ports[1].port: must be 1 to 65535, is 99999"),
        (
            "/spec/ports/1/protocol",
            json!("ICMP"),
            "spec.ports[1].protocol: must be TCP, UDP or SCTP, is `ICMP`",
        ),
        (
            "/spec/ports/1/name",
            json!("http"),
            "spec.ports[1].name: must differ from the other ports', is `http`",
        ),
        ("/spec/ports/0/nodePort", json!(-1), "spec.ports[0].nodePort: must be 1 to 65535, is -1"),
        ("/spec/externalIPs", json!(["x"]), "spec.externalIPs[0]: `x` is no IP address"),
        (
            "/spec/clusterIPs/1",
            json!("10.96.0.11"),
            "spec.clusterIPs[1]: must be of another family than 10.96.0.10, is 10.96.0.11",
        ),
        (
            "/status/loadBalancer/ingress/0/ipMode",
            json!("Direct"),
            "status.loadBalancer.ingress[0].ipMode: must be VIP or Proxy, is `Direct`",
        ),
        (
            "/spec/sessionAffinity",
            json!("Cookie"),
            "spec.sessionAffinity: must be None or ClientIP, is `Cookie`",
        ),
        (
            "/metadata/annotations",
            json!({"weft.dev/balance": "least"}),
            "metadata.annotations[weft.dev/balance]: must be random or client-hash, is `least`",
        ),
        (
            "/spec/loadBalancerSourceRanges",
            json!(["10.0.0.0"]),
            "spec.loadBalancerSourceRanges[0]: `10.0.0.0` is no range such as 192.0.2.0/24",
        ),
    ];
    for (pointer, value, expected) in table {
        let reading = read_service(with(web(), pointer, value));
        assert_eq!(words(&reading), [format!("Service shop/web: {expected}")], "{pointer}");
        let service = served(&reading).unwrap_or_else(|| panic!("{pointer}: nothing is left"));
        assert_eq!(service.ports[0].port, 80, "{pointer}");
    }
}

#[test]
fn unreadable_source_ranges_keep_everybody_out() {
    let reading = read_service(with(web(), "/spec/loadBalancerSourceRanges", json!(["anyone"])));
    assert_eq!(served(&reading).unwrap().source_ranges, Some(Vec::new()));
    let none = read_service(with(web(), "/spec/loadBalancerSourceRanges", json!([])));
    assert_eq!(served(&none).unwrap().source_ranges, None);
}

#[test]
fn an_affinity_timeout_out_of_bounds_has_its_default() {
    for seconds in [0, -1, 86_401] {
        let object = with(web(), "/spec/sessionAffinity", json!("ClientIP"));
        let config = json!({"clientIP": {"timeoutSeconds": seconds}});
        let reading = read_service(with(object, "/spec/sessionAffinityConfig", config));
        assert_eq!(served(&reading).unwrap().affinity, Some(Duration::from_secs(10_800)));
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        assert_eq!(words(&reading), [format!("Service shop/web: {field}: must be 1 to 86400, is {seconds}")]);
    }
}

/// Of what weft does not understand it keeps its hands off: what is known stays.
#[test]
fn a_large_mistake_is_named_and_changes_nothing() {
    let table = [
        ("/metadata/name", json!(""), "Service shop/(no name): metadata.name: must be given"),
        ("/spec", json!(null), "Service shop/web: spec: must be given"),
        (
            "/spec/type",
            json!("Magic"),
            "Service shop/web: spec.type: must be ClusterIP, NodePort, LoadBalancer or ExternalName, is `Magic`",
        ),
        (
            "/spec/clusterIPs",
            json!(["300.1.1.1"]),
            "Service shop/web: spec.clusterIPs[0]: `300.1.1.1` is no IP address",
        ),
        ("/spec/ports", json!([]), "Service shop/web: spec.ports: must have at least one usable port"),
        (
            "/spec/externalTrafficPolicy",
            json!("Near"),
            "Service shop/web: spec.externalTrafficPolicy: must be Cluster or Local, is `Near`",
        ),
    ];
    for (pointer, value, expected) in table {
        let reading = read_service(with(web(), pointer, value));
        assert_eq!(reading.change, None, "{pointer}");
        assert_eq!(words(&reading), [expected], "{pointer}");
    }
}

#[test]
fn a_field_of_another_type_is_named_with_its_path() {
    let object = ObjectRef { kind: "Service".into(), namespace: Some("shop".into()), name: "web".into() };
    let wrong = with(web(), "/spec/ports/1/port", json!("http"));
    let problem = Reading::typed::<core::v1::Service>(&object, wrong).unwrap_err();
    assert_eq!(problem.field, "spec.ports[1].port");
    assert!(problem.rule.contains("invalid type"), "{problem}");
}

#[test]
fn an_endpoint_slice_with_everything() {
    let mut object = a_slice();
    object["endpoints"][0] = json!({
        "addresses": ["10.1.0.5", "10.1.0.6"],
        "conditions": {"ready": false, "serving": true, "terminating": true},
        "nodeName": "ash",
        "zone": "east",
        "hints": {"forZones": [{"name": "east"}], "forNodes": [{"name": "ash"}]},
        "targetRef": {"kind": "Pod", "name": "web-5d4f"},
    });
    let reading = read_slice(object);
    assert_eq!(words(&reading), [""; 0]);
    let expected = SliceEndpoint {
        address: ip("10.1.0.5"),
        ready: false,
        serving: true,
        terminating: true,
        node: Some(NodeName::new("ash")),
        zone_hints: vec!["east".into()],
        node_hints: vec![NodeName::new("ash")],
        pod: Some("web-5d4f".into()),
    };
    let slice = slice_of(&reading).unwrap();
    assert_eq!(slice.endpoints, [expected]);
    assert_eq!((slice.service.clone(), slice.family), (ServiceName::new("shop", "web"), Family::V4));
}

#[test]
fn conditions_that_are_not_given_mean_ready() {
    let reading = read_slice(a_slice());
    let endpoint = &slice_of(&reading).unwrap().endpoints[0];
    assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating), (true, true, false));
}

#[test]
fn some_slices_are_not_for_this_proxy() {
    let labels = |labels: Value| with(a_slice(), "/metadata/labels", labels);
    let table = [
        ("names", with(a_slice(), "/addressType", json!("FQDN"))),
        ("of no service", labels(json!({}))),
        ("of the empty service", labels(json!({"kubernetes.io/service-name": ""}))),
        (
            "headless",
            labels(json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""})),
        ),
        (
            "another proxy's",
            labels(
                json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/service-proxy-name": "x"}),
            ),
        ),
    ];
    for (case, object) in table {
        let reading = read_slice(object);
        let name = ObjectName::Slice(SliceName::new("shop", "web-1"));
        assert_eq!(reading.change, Some(Change::Remove(name)), "{case}");
        assert_eq!(words(&reading), [""; 0], "{case}");
    }
}

#[test]
fn mistakes_in_a_slice() {
    let table = [
        ("/addressType", json!("IPX"), "addressType: must be IPv4, IPv6 or FQDN, is `IPX`", false),
        ("/ports/0/port", json!(70000), "ports[0].port: must be 1 to 65535, is 70000", true),
        ("/endpoints/0/addresses", json!([]), "endpoints[0].addresses: must have an address", true),
        (
            "/endpoints/0/addresses",
            json!(["fd00::5"]),
            "endpoints[0].addresses[0]: must be of `addressType` IPv4, is fd00::5",
            true,
        ),
        (
            "/endpoints/0/addresses",
            json!(["127.0.0.1"]),
            "endpoints[0].addresses[0]: must not be an unspecified, loopback, link-local, multicast or broadcast \
          address, is 127.0.0.1",
            true,
        ),
    ];
    for (pointer, value, expected, usable) in table {
        let reading = read_slice(with(a_slice(), pointer, value));
        assert_eq!(words(&reading), [format!("EndpointSlice shop/web-1: {expected}")], "{pointer}");
        assert_eq!(reading.change.is_some(), usable, "{pointer}");
    }
    let all_ports = read_slice(with(a_slice(), "/ports/0/port", json!(null)));
    assert_eq!(
        (slice_of(&all_ports).unwrap().ports.len(), all_ports.problems.len()),
        (0, 0),
        "means all ports"
    );
}

#[test]
fn a_node_gives_its_zone_addresses_and_ranges() {
    let object = json!({
        "metadata": {"name": "ash", "labels": {"topology.kubernetes.io/zone": "east"}},
        "spec": {"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"], "taints": [{"key": "other", "effect": "NoSchedule"}]},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "203.0.113.9"},
            {"type": "Hostname", "address": "ash"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "192.0.2.2"},
            {"type": "ExternalIP", "address": "2001:db8::9"},
        ]},
    });
    let read = |object| read::node(&serde_json::from_value::<core::v1::Node>(object).unwrap());
    let expected = Node {
        zone: Some("east".to_owned()),
        addresses: vec![ip("192.0.2.1"), ip("2001:db8::9")],
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        leaving: false,
    };
    let change = |node| Some(Change::Put(Object::Node(NodeName::new("ash"), node)));
    assert_eq!(read(object.clone()), Reading { change: change(expected.clone()), problems: Vec::new() });
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    let leaving = Node { leaving: true, ..expected.clone() };
    assert_eq!(read(with(object.clone(), "/spec/taints", taint)).change, change(leaving.clone()));
    let deleted = with(object.clone(), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    assert_eq!(read(deleted).change, change(leaving));
    let wrong = read(with(object, "/spec/podCIDRs/1", json!("fd00:1::")));
    assert_eq!(words(&wrong), ["Node ash: spec.podCIDRs[1]: `fd00:1::` is no range such as 192.0.2.0/24"]);
    assert_eq!(wrong.change, change(Node { pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()], ..expected }));
}
