//! The stage: three hosts with an overlay, a proxy and two pods each, a client outside; and what a story
//! may say about it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::manifests::{endpoint, node, service, slice};
use weft_lab::traffic::{Answer, Answers, Protocol, Server};
use weft_lab::{Host, Lab, LabError, Place, Pod, within};

/// By when anything that is bound to happen has happened on a starved machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long silence is listened to. Whoever would answer is told of the first packet at once.
const SILENCE: Duration = Duration::from_millis(1500);
/// How often is asked at most until everybody has answered. With three servers the last one is missed
/// by chance in one of 10^35 runs.
const ASKED: usize = 200;
/// Both things that services carry here; the kernel of this lab may be without SCTP.
pub(crate) const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

const NETWORK: &str =
    r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;
const PROXY: [&str; 4] = [
    "--conntrack-accounting",
    "--cluster-cidr=10.42.0.0/16,fd42::/48",
    "--detect-local-mode=ClusterCIDR",
    "--service-cidrs=10.96.0.0/16,fd96::/64",
];
/// The zones of the hosts.
const ZONES: [(&str, &str); 3] = [("ash", "east"), ("birch", "west"), ("cedar", "west")];

/// For which families a story is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Families {
    /// Once for each.
    Each,
    /// Once, with both.
    Both,
}

impl Families {
    /// Whether IPv6, for each time that the story is told.
    pub(crate) fn each(self) -> &'static [bool] {
        match self {
            Self::Each => &[false, true],
            Self::Both => &[false],
        }
    }
}

/// How the proxies of a scene bring rules into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Nftables,
    /// By the programs that write nftables.
    Iptables,
    /// By the programs for the kernel's older tables.
    IptablesLegacy,
    /// By nftables, and connections over TCP are carried by the proxy.
    Userspace,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Nftables, Self::Iptables, Self::IptablesLegacy, Self::Userspace];

    /// Nobody says where node ports are served in the nftables mode. In the others they would be served at
    /// every address, which is one story's; here they are served alike.
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Nftables => &[],
            Self::Iptables | Self::IptablesLegacy => &["--mode=iptables", "--nodeport-addresses=primary"],
            Self::Userspace => &["--mode=userspace", "--drain-timeout=2s"],
        }
    }

    /// Before the proxy begins: which of iptables' programs the host uses is told by the tables it has.
    fn prepare(self, host: &Host) -> Result<(), LabError> {
        let programs = match self {
            Self::Nftables | Self::Userspace => return Ok(()),
            Self::Iptables => "nft",
            Self::IptablesLegacy => "legacy",
        };
        let look = |v| format!("{v}-{programs} -w -t nat -nL; {v}-{programs} -w -t filter -nL");
        host.run(format!("set -e; {}; {}", look("iptables"), look("ip6tables"))).ok().map(drop)
    }

    /// Our rules are where this mode keeps them, and nowhere else.
    fn holds(self, host: &Host) -> Result<(), LabError> {
        let looks = [
            ("nft list tables", "weft-proxy"),
            ("iptables-nft-save", ":WEFT-"),
            ("iptables-legacy-save", ":WEFT-"),
        ];
        let found = looks.map(|(look, ours)| host.run(look).stdout.contains(ours));
        let what = format!("{}, mode {self}: rules there are by {looks:?}: {found:?}", host.name());
        let right = match self {
            Self::Nftables | Self::Userspace => found == [true, false, false],
            Self::Iptables => found == [false, true, false],
            Self::IptablesLegacy => found == [false, false, true],
        };
        right.then_some(()).ok_or(LabError::Traffic { what })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::IptablesLegacy => "legacy",
            Self::Userspace => "userspace",
        })
    }
}

/// What all stories of a mode share.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pods: BTreeMap<String, Pod>,
}

impl Scene {
    pub(crate) fn new(mode: Mode) -> Result<Self, LabError> {
        let lab = Lab::new(&format!("svc-{mode}")).weft(env!("CARGO_BIN_EXE_weft"));
        let lab = lab.hosts(["ash", "birch", "cedar"]).network(NETWORK);
        let lab = lab.proxies(PROXY).proxies(mode.args().to_vec());
        // As most clusters have it: pods go to what is no pod under their host's address.
        let lab = lab.overlay_args(["--ip-masq"]).without_daemons().up()?;
        lab.hosts().iter().try_for_each(Host::launch_overlay)?;
        for host in lab.hosts() {
            host.wait_until_ready(SOON)?;
            mode.prepare(&host)?;
        }
        let zones: Vec<Value> = ZONES.iter().map(|(host, zone)| node(&lab.host(host), Some(zone))).collect();
        lab.manifests().write(&zones)?;
        lab.hosts().iter().try_for_each(|host| host.proxy().launch())?;
        lab.hosts().iter().try_for_each(|host| host.proxy().wait_until_ready(SOON))?;
        lab.hosts().iter().try_for_each(|host| mode.holds(host))?;
        let mut pods = BTreeMap::new();
        for host in lab.hosts() {
            for name in ["one", "two"] {
                let pod = host.pod(name)?;
                pods.insert(pod.name().to_owned(), pod);
            }
        }
        let first = &pods["ash/one"];
        for pod in pods.values() {
            within(SOON, || pod.reaches(first).and_then(|()| pod.reaches(first.v6())));
        }
        Ok(Self { lab, pods })
    }

    /// A pod (`ash/one`), a host, or `outside`.
    pub(crate) fn place(&self, name: &str) -> Place {
        match self.pods.get(name) {
            Some(pod) => (**pod).clone(),
            None => (*self.host(name)).clone(),
        }
    }

    fn host(&self, name: &str) -> Host {
        if name == "outside" { self.lab.outside() } else { self.lab.host(name) }
    }
}

/// One story in one family, with names, addresses and ports that no other story has.
pub(crate) struct Case<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) v6: bool,
}

/// Who is there, and what is declared.
impl Case<'_> {
    /// The same story in the other family.
    pub(crate) fn other_family(&self) -> Case<'_> {
        Case { scene: self.scene, name: self.name.clone(), number: self.number, v6: !self.v6 }
    }

    /// The address of a pod, a host, or `outside`.
    pub(crate) fn address(&self, place: &str) -> IpAddr {
        match self.scene.pods.get(place) {
            Some(pod) if self.v6 => pod.ip6(),
            Some(pod) => pod.ip(),
            None if self.v6 => self.scene.host(place).v6().into(),
            None => self.scene.host(place).v4().into(),
        }
    }

    /// The cluster address of the story's service of this number.
    pub(crate) fn ip(&self, which: u8) -> IpAddr {
        self.in_range(Ipv4Addr::new(10, 96, self.number, which), 0xfd96 << 112, which)
    }

    /// An address that no host has: external, or of a load balancer.
    pub(crate) fn public(&self, which: u8) -> IpAddr {
        let v6 = 0x2001_0db8_eeee << 80;
        self.in_range(Ipv4Addr::new(198, 19, self.number, which), v6, which)
    }

    fn in_range(&self, v4: Ipv4Addr, v6: u128, which: u8) -> IpAddr {
        let low = (u128::from(self.number) << 16) | u128::from(which);
        if self.v6 { Ipv6Addr::from_bits(v6 | low).into() } else { v4.into() }
    }

    /// Packets from outside to this address come by this host.
    pub(crate) fn routed(&self, address: IpAddr, host: &str) -> Result<(), LabError> {
        let via = self.address(host);
        self.scene.lab.router().run(format!("ip route replace {address} via {via}")).ok().map(drop)
    }

    /// A node port of the story. `which` is below 8: there are 2,768 of them for 255 stories.
    pub(crate) fn node_port(&self, which: u8) -> u16 {
        30_000 + u16::from(self.number) * 8 + u16::from(which)
    }

    /// A port for servers, below those that the kernel gives to clients.
    pub(crate) fn port(&self, which: u8) -> u16 {
        12_000 + u16::from(self.number) * 8 + u16::from(which)
    }

    /// A service's node port at a host.
    pub(crate) fn at(&self, host: &str, which: u8) -> SocketAddr {
        SocketAddr::new(self.address(host), self.node_port(which))
    }

    /// Port 80 of a service's cluster address.
    pub(crate) fn web(&self, which: u8) -> SocketAddr {
        SocketAddr::new(self.ip(which), 80)
    }

    /// A server in each of these places, on the story's port of this number.
    pub(crate) fn serve(&self, which: u8, places: &[&str]) -> Result<Vec<Server>, LabError> {
        places.iter().map(|place| self.serve_as(which, place, place)).collect()
    }

    /// A server with a name of its own.
    pub(crate) fn serve_as(&self, which: u8, place: &str, name: &str) -> Result<Server, LabError> {
        self.scene.place(place).server_at(self.port(which), name)
    }

    /// Port 80 for TCP and UDP, for `spec.ports`, leading to the slices' ports `tcp` and `udp`.
    pub(crate) fn both(&self, node_port: Option<u8>) -> Value {
        let port = |name: &str, protocol: &str| {
            let mut port = json!({"name": name, "protocol": protocol, "port": 80});
            if let Some(which) = node_port {
                port["nodePort"] = json!(self.node_port(which));
            }
            port
        };
        json!([port("tcp", "TCP"), port("udp", "UDP")])
    }

    /// A service of the story: `spec` and what every one has. Without ports it has [`Case::both`].
    pub(crate) fn service(&self, which: u8, mut spec: Value) -> Value {
        if spec.get("clusterIPs").is_none() {
            spec["clusterIPs"] = json!([self.ip(which)]);
        }
        if spec.get("ports").is_none() {
            spec["ports"] = self.both(None);
        }
        service(&self.service_name(which), spec)
    }

    /// A service of type NodePort with [`Case::both`] ports, further settings in `spec`.
    pub(crate) fn node_port_service(&self, which: u8, mut spec: Value) -> Value {
        spec["type"] = json!("NodePort");
        spec["ports"] = self.both(Some(which));
        self.service(which, spec)
    }

    fn service_name(&self, which: u8) -> String {
        format!("{}-{which}", self.name)
    }

    /// A slice of the service for [`Case::both`] ports at the story's port of the same number.
    pub(crate) fn slice(&self, which: u8, endpoints: &[Value]) -> Value {
        self.slice_at(which, "a", self.port(which), endpoints)
    }

    /// As [`Case::slice`], a further one, and at any port.
    pub(crate) fn slice_at(&self, which: u8, part: &str, port: u16, endpoints: &[Value]) -> Value {
        let ports = json!([
            {"name": "tcp", "protocol": "TCP", "port": port},
            {"name": "udp", "protocol": "UDP", "port": port},
        ]);
        self.slice_of(which, part, ports, endpoints)
    }

    /// As [`Case::slice`], with ports of its own.
    pub(crate) fn slice_of(&self, which: u8, part: &str, ports: Value, endpoints: &[Value]) -> Value {
        let service = self.service_name(which);
        let family = if self.v6 { "6" } else { "4" };
        let mut slice = slice(&format!("{service}-{part}{family}"), &service, ports, endpoints);
        slice["addressType"] = json!(if self.v6 { "IPv6" } else { "IPv4" });
        slice
    }

    /// A ready endpoint in a pod or on a host.
    pub(crate) fn endpoint(&self, place: &str) -> Value {
        endpoint(self.address(place), place.split('/').next().unwrap_or_default())
    }

    /// Ready endpoints.
    pub(crate) fn endpoints(&self, places: &[&str]) -> Vec<Value> {
        places.iter().map(|place| self.endpoint(place)).collect()
    }

    /// Declares objects and waits until they are programmed on every host.
    pub(crate) fn declare(&self, objects: &[Value]) -> Result<(), LabError> {
        self.scene.lab.manifests().apply(objects)
    }

    /// Takes objects away, and waits for that.
    pub(crate) fn delete(&self, objects: &[Value]) -> Result<(), LabError> {
        self.scene.lab.manifests().delete(objects)
    }
}

/// What clients see.
impl Case<'_> {
    /// Asks once.
    pub(crate) fn ask(&self, from: &str, to: SocketAddr, protocol: Protocol) -> Answer {
        self.scene.place(from).asks(to, protocol, SOON)
    }

    /// Who answers, and whom it sees.
    #[track_caller]
    pub(crate) fn answered(&self, from: &str, to: SocketAddr, protocol: Protocol) -> (String, IpAddr) {
        match self.ask(from, to, protocol) {
            Answer::From { server, seen_as } => (server, seen_as),
            other => panic!("{from} -> {to}/{protocol}: {other:?}; expected an answer"),
        }
    }

    /// Each of these servers answers, and nobody else.
    #[track_caller]
    pub(crate) fn reaches(&self, from: &str, to: SocketAddr, protocol: Protocol, servers: &[&str]) {
        let place = self.scene.place(from);
        let mut missing: Vec<&str> = servers.to_vec();
        for _ in 0..ASKED {
            match place.asks(to, protocol, SOON) {
                Answer::From { server, .. } if servers.contains(&server.as_str()) => {
                    missing.retain(|name| *name != server);
                }
                other => panic!("{from} -> {to}/{protocol}: {other:?}; expected {servers:?}"),
            }
            if missing.is_empty() {
                return;
            }
        }
        panic!("{from} -> {to}/{protocol}: {missing:?} never answered");
    }

    /// As [`Case::reaches`], over TCP and UDP.
    #[track_caller]
    pub(crate) fn reaches_by_both(&self, from: &str, to: SocketAddr, servers: &[&str]) {
        for protocol in BOTH {
            self.reaches(from, to, protocol, servers);
        }
    }

    /// One of them answers, however often it is asked.
    #[track_caller]
    pub(crate) fn sticks(&self, from: &str, to: SocketAddr, protocol: Protocol, times: usize) -> String {
        let Answers { by_server, others } = self.scene.place(from).asks_often(to, protocol, SOON, times);
        assert!(others.is_empty() && by_server.len() == 1, "{from} -> {to}: {by_server:?}, {others:?}");
        by_server.into_keys().next().unwrap_or_default()
    }

    /// The client is told that nobody is there.
    #[track_caller]
    pub(crate) fn refused(&self, from: &str, to: SocketAddr, protocol: Protocol) {
        let place = self.scene.place(from);
        // The kernel keeps some ICMP errors to itself (net.ipv4.icmp_ratelimit), so UDP asks again.
        within(SOON, || match (place.asks(to, protocol, SILENCE), protocol) {
            (Answer::Refused, _) => Ok(()),
            (Answer::Silent, Protocol::Udp) => Err("silence".to_owned()),
            (other, _) => panic!("{from} -> {to}/{protocol}: {other:?}; expected to be refused"),
        });
    }

    /// As [`Case::refused`], over TCP and UDP.
    #[track_caller]
    pub(crate) fn refused_by_both(&self, from: &str, to: SocketAddr) {
        BOTH.iter().for_each(|protocol| self.refused(from, to, *protocol));
    }

    /// The client is told nothing.
    #[track_caller]
    pub(crate) fn silent(&self, from: &str, to: SocketAddr) {
        for protocol in BOTH {
            let answer = self.scene.place(from).asks(to, protocol, SILENCE);
            assert_eq!(answer, Answer::Silent, "{from} -> {to}/{protocol}");
        }
    }

    /// No rule is for it: the packet leaves the host as it is, and comes to nobody who would refuse it.
    #[track_caller]
    pub(crate) fn unserved(&self, from: &str, to: SocketAddr) {
        let answer = self.scene.place(from).asks(to, Protocol::Tcp, SILENCE);
        assert!(matches!(answer, Answer::Silent | Answer::Failed(_)), "{from} -> {to}: {answer:?}");
    }

    /// The same for each of these clients.
    #[track_caller]
    pub(crate) fn each_reaches(&self, from: &[&str], to: SocketAddr, servers: &[&str]) {
        from.iter().for_each(|from| self.reaches_by_both(from, to, servers));
    }
}
