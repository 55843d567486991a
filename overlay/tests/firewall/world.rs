//! Models to plan for, and hosts to try the plans on: namespaces on one Ethernet segment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use weft_kernel::net::{Mac, Vni};
use weft_kernel::netns::{InNetNs, NetNs, run_in};
use weft_kernel::nft::{Nft, Transaction};
use weft_overlay::config::{Backend, NetworkConfig, Pool};
use weft_overlay::firewall::{Drops, Surroundings, plan};
use weft_overlay::model::{Me, Model, NodeId, Peer, Subnet, Transports, Underlay};

pub(crate) fn net(raw: &str) -> IpNetwork {
    raw.parse().unwrap()
}

pub(crate) fn ip(raw: &str) -> IpAddr {
    raw.parse().unwrap()
}

pub(crate) fn vxlan(direct_routing: bool) -> Backend {
    let vni = Vni::try_from(1).unwrap();
    Backend::Vxlan { vni, port: 8472, mtu: None, gbp: false, learning: false, direct_routing }
}

/// Host `n` has 192.0.2.n, 2001:db8::n and the subnets 10.42.n.0/24, fd42:0:0:n::/64.
pub(crate) fn subnet(n: u8) -> Subnet {
    Subnet {
        v4: Some(format!("10.42.{n}.0/24").parse().unwrap()),
        v6: Some(format!("fd42:0:0:{n}::/64").parse().unwrap()),
    }
}

pub(crate) fn peer(n: u8) -> Peer {
    Peer {
        subnet: subnet(n),
        node: None,
        public_v4: Some(format!("192.0.2.{n}").parse().unwrap()),
        public_v6: Some(format!("2001:db8::{n}").parse().unwrap()),
        backend: "vxlan".into(),
        transports: Transports::default(),
    }
}

/// What host `me` knows in a dual-stack network named blue.
pub(crate) fn model(me: u8, peers: &[u8], backend: Backend) -> Model {
    let v4: ipnetwork::Ipv4Network = "10.42.0.0/16".parse().unwrap();
    let v6: ipnetwork::Ipv6Network = "fd42::/48".parse().unwrap();
    let itself = peer(me);
    Model {
        me: Me {
            node: NodeId::try_from(format!("host-{me}")).unwrap(),
            network: "blue".into(),
            subnet: Some(subnet(me)),
            public_v4: itself.public_v4,
            public_v6: itself.public_v6,
            underlay: Underlay {
                link: "eth0".parse().unwrap(),
                mtu: 1500,
                addresses: [format!("192.0.2.{me}/24"), format!("2001:db8::{me}/64")]
                    .iter()
                    .map(|raw| net(raw))
                    .collect(),
            },
            adopted_mac_v4: None,
            adopted_mac_v6: None,
        },
        config: NetworkConfig {
            v4: Some(Pool {
                network: v4,
                subnet_len: 24,
                min: "10.42.1.0/24".parse().unwrap(),
                max: "10.42.255.0/24".parse().unwrap(),
            }),
            v6: Some(Pool {
                network: v6,
                subnet_len: 64,
                min: "fd42:0:0:1::/64".parse().unwrap(),
                max: "fd42:0:0:ffff::/64".parse().unwrap(),
            }),
            backend,
            backend_given: true,
        },
        peers: peers.iter().map(|n| (subnet(*n), peer(*n))).collect(),
        masquerade: true,
        masquerade_random: true,
        non_masquerade: BTreeSet::new(),
        forward_accept: true,
        anti_spoofing: true,
        extra_sources: BTreeSet::new(),
        blackhole: false,
    }
}

/// The surroundings of a host that was set up by [`World`].
pub(crate) fn around(model: &Model) -> Surroundings {
    let mut around = Surroundings::new(&model.config.backend);
    if matches!(model.config.backend, Backend::Vxlan { .. }) {
        around.tunnel_links = ["weft.1", "weft-v6.1"].map(|name| name.parse().unwrap()).into();
    }
    around
}

/// Namespaces on one switch. Everything goes when it is dropped.
pub(crate) struct World {
    prefix: String,
    spaces: BTreeMap<String, NetNs>,
}

impl World {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("weft-t-nft-{}-{count}-", std::process::id());
        let mut world = Self { prefix, spaces: BTreeMap::new() };
        world.add("switch");
        world.run("switch", "ip link add br0 type bridge");
        world.run("switch", "ip link set br0 up");
        world
    }

    fn add(&mut self, name: &str) {
        let ns = NetNs::create(&format!("{}{name}", self.prefix)).expect("these tests need root");
        self.spaces.insert(name.into(), ns);
        for (key, value) in [
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            self.inside(name, || std::fs::write(format!("/proc/sys/{key}"), value).unwrap());
        }
        self.run(name, "ip link set lo up");
    }

    /// A machine on the switch, with these addresses on eth0.
    pub(crate) fn machine(&mut self, name: &str, addresses: &[&str]) {
        self.add(name);
        let space = format!("{}{name}", self.prefix);
        self.run("switch", &format!("ip link add {name} type veth peer name eth0 netns {space}"));
        self.run("switch", &format!("ip link set {name} master br0 up"));
        for address in addresses {
            self.run(name, &format!("ip addr add {address} dev eth0"));
        }
        self.run(name, "ip link set eth0 up");
    }

    /// A veth pair between two machines, of this name on both ends.
    pub(crate) fn cable(&self, link: &str, one: &str, other: &str) {
        let space = format!("{}{other}", self.prefix);
        self.run(one, &format!("ip link add {link} type veth peer name {link} netns {space}"));
        self.run(one, &format!("ip link set {link} up"));
        self.run(other, &format!("ip link set {link} up"));
    }

    /// Host `n` named `host<n>` with VXLAN links to `others`, laid out as flannel does.
    pub(crate) fn vxlan_host(&mut self, n: u8, others: &[u8]) {
        let name = format!("host{n}");
        self.machine(&name, &[&format!("192.0.2.{n}/24"), &format!("2001:db8::{n}/64")]);
        for (link, local, port_owner) in
            [("weft.1", format!("192.0.2.{n}"), true), ("weft-v6.1", format!("2001:db8::{n}"), false)]
        {
            self.run(
                &name,
                &format!(
                    "ip link add {link} address {} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning",
                    vtep_mac(n, port_owner)
                ),
            );
            self.run(&name, &format!("ip link set {link} up"));
        }
        self.run(&name, &format!("ip addr add 10.42.{n}.0/32 dev weft.1"));
        self.run(&name, &format!("ip addr add fd42:0:0:{n}::/128 dev weft.1"));
        for other in others {
            let mac = vtep_mac(*other, true);
            self.run(&name, &format!("bridge fdb add {mac} dev weft.1 dst 192.0.2.{other} self permanent"));
            for (gateway, subnet) in [
                (format!("10.42.{other}.0"), format!("10.42.{other}.0/24")),
                (format!("fd42:0:0:{other}::"), format!("fd42:0:0:{other}::/64")),
            ] {
                self.run(&name, &format!("ip neigh add {gateway} lladdr {mac} dev weft.1 nud permanent"));
                self.run(&name, &format!("ip route add {subnet} via {gateway} dev weft.1 onlink"));
            }
        }
    }

    /// A pod `pod<n>` on `host<n>` with 10.42.n.2 and fd42:0:0:n::2, by a routed veth named `pod`.
    pub(crate) fn pod(&mut self, n: u8) {
        let (name, host) = (format!("pod{n}"), format!("host{n}"));
        self.add(&name);
        let space = format!("{}{name}", self.prefix);
        self.run(&host, &format!("ip link add pod type veth peer name eth0 netns {space}"));
        self.run(&host, "ip addr add 169.254.1.1/32 dev pod");
        self.run(&host, "ip addr add fe80::1/64 dev pod nodad");
        self.run(&host, "ip link set pod up");
        self.run(&host, &format!("ip route add 10.42.{n}.2/32 dev pod"));
        self.run(&host, &format!("ip route add fd42:0:0:{n}::2/128 dev pod"));
        self.run(&name, &format!("ip addr add 10.42.{n}.2/32 dev eth0"));
        self.run(&name, &format!("ip addr add fd42:0:0:{n}::2/128 dev eth0"));
        self.run(&name, "ip link set eth0 up");
        self.run(&name, "ip route add default via 169.254.1.1 dev eth0 onlink");
        self.run(&name, "ip route add default via fe80::1 dev eth0");
    }

    /// Puts the plan in force on a host.
    pub(crate) fn apply(&self, host: &str, model: &Model, around: &Surroundings) {
        let table = plan(model, around).unwrap();
        self.inside(host, || {
            let mut nft = Nft::open().unwrap();
            nft.commit(&Transaction::new().replace(&table)).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                nft.table(&table.key).unwrap().as_ref(),
                Some(&table),
                "what is there is what was planned"
            );
        });
    }

    pub(crate) fn drops(&self, host: &str, model: &Model) -> Drops {
        let key = weft_overlay::firewall::table_key(&model.me.network).unwrap();
        Drops::from_counters(&self.inside(host, || Nft::open().unwrap().counters(&key).unwrap()))
    }

    pub(crate) fn run(&self, name: &str, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        let output = Command::new(words[0]).args(&words[1..]).in_netns(&self.spaces[name]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs code inside a namespace; sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        run_in(&self.spaces[name], work).unwrap()
    }

    /// A UDP socket bound there, with a short patience.
    pub(crate) fn socket(&self, name: &str, addr: IpAddr, port: u16) -> UdpSocket {
        let socket = self.inside(name, || UdpSocket::bind((addr, port)));
        let socket = socket.unwrap_or_else(|error| panic!("{name}: {addr}: {error}"));
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    }

    pub(crate) fn mac(&self, name: &str, link: &str) -> Mac {
        let text = self.run(name, &format!("cat /sys/class/net/{link}/address"));
        text.trim().parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in self.spaces.keys() {
            let _ = NetNs::delete(&format!("{}{name}", self.prefix));
        }
    }
}

/// The Ethernet address of a host's VXLAN link of this outer family.
pub(crate) fn vtep_mac(n: u8, outer_v4: bool) -> Mac {
    Mac([0x4e, 0x11, 0, 0, if outer_v4 { 4 } else { 6 }, n])
}

/// Sends until the receiver has heard `word`, and says from where it came and what came before it.
/// (A first packet may be lost while neighbours are looked up.)
pub(crate) fn heard(receiver: &UdpSocket, word: &[u8], mut send: impl FnMut()) -> (IpAddr, Vec<Vec<u8>>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = Vec::new();
    let mut buffer = [0; 65_536];
    while Instant::now() < deadline {
        send();
        while let Ok((len, from)) = receiver.recv_from(&mut buffer) {
            if buffer[..len] == *word {
                return (from.ip(), before);
            }
            before.push(buffer[..len].to_vec());
        }
    }
    panic!("{:?} was never heard, only {before:?}", String::from_utf8_lossy(word));
}
