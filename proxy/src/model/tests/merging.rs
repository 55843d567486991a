//! Slices of one service are put together; what is twice counts once.

use super::*;

const PORT: (&str, Protocol) = ("http", Protocol::Tcp);

fn slice(family: Family, ports: &[(&str, Protocol, u16)], endpoints: &[SliceEndpoint]) -> Slice {
    let ports = ports.iter().map(|(name, protocol, port)| SlicePort {
        name: (*name).into(),
        protocol: *protocol,
        port: (*port).try_into().unwrap(),
    });
    let service = ServiceName::new("shop", "web");
    Slice { service, family, ports: ports.collect(), endpoints: endpoints.to_vec() }
}

fn endpoint(address: &str, ready: bool, node: &str) -> SliceEndpoint {
    SliceEndpoint {
        address: ip(address),
        ready,
        serving: ready,
        terminating: !ready,
        node: Some(NodeName::new(node)),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        pod: None,
    }
}

/// The endpoints seen from the node `ash`, as address, ready, node.
fn seen(slices: &[Slice], port: (&str, Protocol), family: Family) -> Vec<String> {
    let named = slices.iter().enumerate();
    let objects =
        named.map(|(n, it)| Object::Slice(SliceName::new("shop", &format!("web-{n}")), Arc::new(it.clone())));
    let model = Model::of(objects);
    let me = NodeName::new("ash");
    let endpoints = model.endpoints(&ServiceName::new("shop", "web"), port.0, port.1, family, &me);
    let node = |it: &Endpoint| it.node.as_ref().map(ToString::to_string).unwrap_or_default();
    endpoints.iter().map(|it| format!("{} {} {}", it.address, it.ready, node(it))).collect()
}

#[test]
fn several_addresses_and_ports_in_several_slices() {
    let http = [("http", Protocol::Tcp, 8080)];
    let both = [("http", Protocol::Tcp, 8080), ("http", Protocol::Udp, 53), ("admin", Protocol::Tcp, 9090)];
    let slices = [
        slice(Family::V4, &http, &[endpoint("10.1.0.6", true, "ash"), endpoint("10.1.0.5", true, "ash")]),
        slice(Family::V4, &both, &[endpoint("10.1.1.5", true, "birch")]),
        slice(Family::V6, &http, &[endpoint("fd00::5", true, "birch")]),
    ];
    let all = ["10.1.0.5:8080 true ash", "10.1.0.6:8080 true ash", "10.1.1.5:8080 true birch"];
    assert_eq!(seen(&slices, PORT, Family::V4), all, "by address");
    assert_eq!(seen(&slices, PORT, Family::V6), ["[fd00::5]:8080 true birch"], "the other family");
    assert_eq!(seen(&slices, ("http", Protocol::Udp), Family::V4), ["10.1.1.5:53 true birch"], "same name");
    assert_eq!(seen(&slices, ("admin", Protocol::Tcp), Family::V4), ["10.1.1.5:9090 true birch"]);
    assert_eq!(seen(&slices, ("none", Protocol::Tcp), Family::V4), [""; 0]);
}

#[test]
fn an_endpoint_that_moves_between_slices_counts_once() {
    let http = [("http", Protocol::Tcp, 8080)];
    let of = |endpoint| slice(Family::V4, &http, &[endpoint]);
    let going = of(endpoint("10.1.0.5", false, "birch"));
    let ready = of(endpoint("10.1.0.5", true, "birch"));
    let here = of(endpoint("10.1.0.5", false, "ash"));
    let table = [
        ("the ready one counts", [going.clone(), ready.clone()], "10.1.0.5:8080 true birch"),
        ("in any order", [ready.clone(), going], "10.1.0.5:8080 true birch"),
        ("one on this host above all", [ready, here], "10.1.0.5:8080 false ash"),
    ];
    for (case, slices, expected) in table {
        assert_eq!(seen(&slices, PORT, Family::V4), [expected], "{case}");
    }
}

#[test]
fn a_slice_that_changes_its_service_touches_both() {
    let mut model = Model::default();
    let name = SliceName::new("shop", "s");
    let first = slice(Family::V4, &[], &[]);
    let touched = |touched: Touched| touched.services.iter().map(ToString::to_string).collect::<Vec<_>>();
    let put = |slice: &Slice| Change::Put(Object::Slice(name.clone(), Arc::new(slice.clone())));
    assert_eq!(touched(model.apply(put(&first))), ["shop/web"]);
    assert!(model.apply(put(&first)).is_empty(), "nothing new");
    let second = Slice { service: ServiceName::new("shop", "api"), ..first };
    assert_eq!(touched(model.apply(put(&second))), ["shop/api", "shop/web"]);
    assert_eq!(model.slices_of(&ServiceName::new("shop", "web")).count(), 0);
    assert_eq!(touched(model.apply(Change::Remove(ObjectName::Slice(name.clone())))), ["shop/api"]);
    assert!(model.apply(Change::Remove(ObjectName::Slice(name.clone()))).is_empty(), "gone already");
    assert_eq!(model, Model::default());
}
