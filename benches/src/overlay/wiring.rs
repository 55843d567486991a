//! What the bench itself sets up on a host: `ip` batches and firewall rules, as text. Pure.
//!
//! `direct` and `udp-single` wire pods as weft does, a routed veth each. `flannel-layout` is what
//! flanneld and its CNI plugin leave behind: pods on a bridge, `flannel.1`, its routes and rules.

use std::net::Ipv4Addr;

/// The pod network of every layout of the bench: they never meet.
pub const NETWORK: &str = "10.42.0.0/16";
/// What VXLAN takes from the link's MTU over IPv4 (RFC 7348), as flannel reckons it too.
pub const VXLAN_MTU: u32 = 1450;
/// MTU of the TUN of a raw IP-in-UDP tunnel: IPv4 20 + UDP 8 less than the link's.
pub const UDP_MTU: u32 = 1472;
/// The TUN of `udp-single`.
pub const SINGLE_TUN: &str = "weft-single";
/// The next hop of a routed pod; nobody has it but the host's end of the pod's veth.
const GATEWAY: &str = "169.254.1.1";

/// One host of a pair, by its number: 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Which of the two.
    pub number: u8,
    /// Its address on the underlay.
    pub underlay: Ipv4Addr,
}

impl Side {
    /// An address in its subnet, 10.42.N.0/24.
    pub const fn address(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number, last)
    }

    /// Its subnet.
    pub fn subnet(self) -> String {
        format!("{}/24", self.address(0))
    }

    /// Its pod.
    pub const fn pod(self) -> Ipv4Addr {
        self.address(2)
    }

    /// The hardware address of its VTEP.
    fn vtep_mac(self) -> String {
        format!("02:66:6c:00:00:{:02x}", self.number)
    }
}

/// For the host: a routed veth to the pod in namespace `netns`.
pub fn routed_host(own: Side, netns: &str, mtu: u32) -> String {
    let pod = own.pod();
    format!(
        "link add pod mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}\n\
         addr add {GATEWAY}/32 dev pod\n\
         link set pod up\n\
         route add {pod}/32 dev pod\n"
    )
}

/// For the pod of [`routed_host`].
pub fn routed_pod(own: Side) -> String {
    format!(
        "addr add {}/32 dev eth0\n\
         link set eth0 up\n\
         route add {GATEWAY}/32 dev eth0 scope link\n\
         route add default via {GATEWAY} dev eth0\n",
        own.pod()
    )
}

/// For the host of `direct`: the way to the other host's pods.
pub fn direct_route(peer: Side) -> String {
    format!("route add {} via {} dev eth0\n", peer.subnet(), peer.underlay)
}

/// For the host of `udp-single`, once its TUN is there.
pub fn single_tunnel(own: Side, peer: Side) -> String {
    format!(
        "link set {SINGLE_TUN} mtu {UDP_MTU} up\n\
         addr add {}/32 dev {SINGLE_TUN}\n\
         route add {} dev {SINGLE_TUN}\n",
        own.address(0),
        peer.subnet()
    )
}

/// For the host of `flannel-layout`: the bridge with its pod, and `flannel.1` with the peer's entries.
pub fn flannel_host(own: Side, peer: Side, netns: &str) -> String {
    format!(
        "{}link add flannel.1 address {} mtu {VXLAN_MTU} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
         addr add {}/32 dev flannel.1\n\
         link set flannel.1 up\n\
         neigh add {peer_vtep} lladdr {} dev flannel.1 nud permanent\n\
         route add {} via {peer_vtep} dev flannel.1 onlink\n",
        bridge_pod(&format!("{}/24", own.address(1)), netns, VXLAN_MTU),
        own.vtep_mac(),
        own.underlay,
        own.address(0),
        peer.vtep_mac(),
        peer.subnet(),
        peer_vtep = peer.address(0),
    )
}

/// For the host: a pod on the bridge `cni0`, as the CNI plugin `bridge` wires it for flannel.
pub fn bridge_pod(gateway: &str, netns: &str, mtu: u32) -> String {
    format!(
        "link add cni0 mtu {mtu} type bridge\n\
         addr add {gateway} dev cni0\n\
         link set cni0 up\n\
         link add pod mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}\n\
         link set pod master cni0 up\n\
         link set pod type bridge_slave hairpin on\n"
    )
}

/// For the pod of [`bridge_pod`].
pub fn bridged_pod(pod: &str, gateway: Ipv4Addr) -> String {
    format!(
        "addr add {pod} dev eth0\n\
         link set eth0 up\n\
         route add default via {gateway} dev eth0\n"
    )
}

/// The arguments of `bridge` that tell `flannel.1` where the peer's VTEP is.
pub fn flannel_fdb(peer: Side) -> String {
    format!("fdb add {} dev flannel.1 dst {} self permanent", peer.vtep_mac(), peer.underlay)
}

/// For `iptables-restore --noflush`: flannel's rules, in its order.
pub fn flannel_rules(own: Side) -> String {
    let (pod, all) = (own.subnet(), NETWORK);
    format!(
        "*nat\n\
         :FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
         -A FLANNEL-POSTRTG -s {pod} -d {all} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {all} -d {pod} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {all} -d {pod} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {all} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {all} -d {all} -j MASQUERADE --random-fully\n\
         COMMIT\n\
         *filter\n\
         :FLANNEL-FWD - [0:0]\n\
         -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {all} -j ACCEPT\n\
         -A FLANNEL-FWD -d {all} -j ACCEPT\n\
         COMMIT\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Side = Side { number: 1, underlay: Ipv4Addr::new(192, 0, 2, 11) };
    const PEER: Side = Side { number: 2, underlay: Ipv4Addr::new(192, 0, 2, 12) };

    #[test]
    fn flannels_layout_is_what_flanneld_leaves_behind() {
        let expected = "\
link add cni0 mtu 1450 type bridge
addr add 10.42.1.1/24 dev cni0
link set cni0 up
link add pod mtu 1450 type veth peer name eth0 mtu 1450 netns ns
link set pod master cni0 up
link set pod type bridge_slave hairpin on
link add flannel.1 address 02:66:6c:00:00:01 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.11 dstport 8472 nolearning
addr add 10.42.1.0/32 dev flannel.1
link set flannel.1 up
neigh add 10.42.2.0 lladdr 02:66:6c:00:00:02 dev flannel.1 nud permanent
route add 10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink
";
        assert_eq!(flannel_host(OWN, PEER, "ns"), expected);
        assert_eq!(
            flannel_fdb(PEER),
            "fdb add 02:66:6c:00:00:02 dev flannel.1 dst 192.0.2.12 self permanent"
        );
    }

    #[test]
    fn routed_pods_are_reached_by_the_peers_underlay_address() {
        assert_eq!(direct_route(PEER), "route add 10.42.2.0/24 via 192.0.2.12 dev eth0\n");
        assert!(routed_host(OWN, "ns", 1500).ends_with("route add 10.42.1.2/32 dev pod\n"));
        assert!(single_tunnel(OWN, PEER).ends_with("route add 10.42.2.0/24 dev weft-single\n"));
    }
}
