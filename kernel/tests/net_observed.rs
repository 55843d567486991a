//! What is observed beside the plain objects: what addresses are for, and routes without a model.

use std::process::Command;

use weft_kernel::net::{Address, Passing, RouteKey, Rtnetlink, State};
use weft_kernel::netns::{NetNs, run_in};

#[test]
fn lifetimes_and_deprecation_are_seen() {
    let ns = NetNs::anonymous().unwrap();
    let net = Rtnetlink::open_in(&ns).unwrap();
    run_in(&ns, || {
        ip("link set lo up");
        ip("address add 192.0.2.1/24 dev lo");
        ip("address add 192.0.2.2/24 dev lo");
        ip("address add 198.51.100.1/24 dev lo valid_lft 300 preferred_lft 300");
        // Else it is not there before a worker of the kernel's has come by.
        ip("address add 2001:db8::1/64 dev lo valid_lft 300 preferred_lft 0 nodad");
    })
    .unwrap();
    let state = net.observe_blocking().unwrap();
    let dynamic = Passing { dynamic: true, ..Passing::default() };
    assert_eq!(passing(&state, "192.0.2.1/24"), None);
    assert_eq!(passing(&state, "192.0.2.2/24"), None, "an IPv4 secondary address stays");
    assert_eq!(passing(&state, "198.51.100.1/24"), Some(dynamic));
    assert_eq!(passing(&state, "2001:db8::1/64"), Some(Passing { deprecated: true, ..dynamic }));
}

#[test]
fn the_key_of_a_route_with_two_next_hops_is_seen() {
    let ns = NetNs::anonymous().unwrap();
    let net = Rtnetlink::open_in(&ns).unwrap();
    run_in(&ns, || {
        ip("link add near type veth peer name far");
        ip("link set near up");
        ip("link set far up");
        ip("address add 192.0.2.1/24 dev near");
        ip("route add 10.42.7.0/24 nexthop via 192.0.2.8 dev near nexthop via 192.0.2.9 dev near");
    })
    .unwrap();
    let state = net.observe_blocking().unwrap();
    let key = RouteKey { table: 254, dst: "10.42.7.0/24".parse().unwrap(), metric: 0 };
    assert!(state.opaque.contains(&key), "{:?}", state.opaque);
    assert!(!state.routes.contains_key(&key));
}

fn passing(state: &State, network: &str) -> Option<Passing> {
    let address = Address { link: "lo".parse().unwrap(), network: network.parse().unwrap() };
    assert!(state.addresses.contains(&address), "{network}");
    state.passing.get(&address).copied()
}

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
}
