//! A host's loopback addresses are the host's: no neighbour reaches a node port there, nor what listens
//! there and nowhere else, even while `route_localnet` lets the host itself use node ports at 127.0.0.1
//! (CVE-2020-8558).

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;
use weft_lab::manifests::{endpoint, node, service, slice};
use weft_lab::traffic::{Answer, Protocol};
use weft_lab::{Host, Lab, LabError, within};

const SOON: Duration = Duration::from_secs(30);
/// How long silence is listened to. Whoever would answer is told of the first packet at once.
const SILENCE: Duration = Duration::from_secs(1);
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 8080;
/// What listens at ash's loopback address alone.
const PRIVATE: u16 = 9999;

/// One family: an address that nobody has, and the loopback address.
#[derive(Clone, Copy)]
struct Family {
    word: &'static str,
    decoy: IpAddr,
    loopback: IpAddr,
}

const FAMILIES: [Family; 2] = [
    Family {
        word: "ip",
        decoy: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 99)),
        loopback: IpAddr::V4(Ipv4Addr::LOCALHOST),
    },
    Family {
        word: "ip6",
        decoy: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x99)),
        loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
    },
];

impl Family {
    fn of(self, host: &Host) -> IpAddr {
        if self.decoy.is_ipv4() { host.v4().into() } else { host.v6().into() }
    }

    /// What this neighbour sends to the decoy goes to that host, with that destination in its header; what
    /// comes back is from the decoy. So no program there has to send what its own kernel would not.
    fn disguise(self, neighbour: &Host, by: &Host, destination: IpAddr) -> Result<(), LabError> {
        let Self { word, decoy, .. } = self;
        let via = self.of(by);
        let script = format!(
            "table {word} disguise; delete table {word} disguise
             table {word} disguise {{
                 chain away {{ type filter hook postrouting priority 400;
                     {word} daddr {decoy} {word} daddr set {destination} counter; }}
                 chain back {{ type filter hook prerouting priority -400;
                     iifname != lo {word} saddr {destination} {word} saddr set {decoy}; }}
             }}"
        );
        neighbour.run(format!("ip route replace {decoy} via {via}")).ok()?;
        neighbour.run_with_stdin(&["nft", "-f", "-"], script.as_bytes()).ok().map(drop)
    }

    /// How many packets were sent so.
    fn sent(self, neighbour: &Host) -> u64 {
        let listed = neighbour.run(format!("nft list chain {} disguise away", self.word)).stdout;
        let packets = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        packets.unwrap_or_else(|| panic!("no counter: {listed}"))
    }
}

/// Sockets at ash's loopback address alone; TCP connections are made before anybody accepts them.
struct Private {
    family: Family,
    udp: UdpSocket,
    _tcp: TcpListener,
}

impl Private {
    fn listen(ash: &Host, family: Family) -> Result<Self, LabError> {
        let at = SocketAddr::new(family.loopback, PRIVATE);
        let open = || {
            let udp = UdpSocket::bind(at)?;
            udp.set_nonblocking(true)?;
            Ok((TcpListener::bind(at)?, udp))
        };
        let io = |source| LabError::Io { what: format!("listen at {at}"), source };
        let (_tcp, udp) = ash.within(open)?.map_err(io)?;
        Ok(Self { family, udp, _tcp })
    }

    /// Whether it hears of the neighbour, who sends to the decoy, by TCP and by UDP.
    fn is_reached_by(&self, neighbour: &Host) -> Result<[bool; 2], LabError> {
        let to = SocketAddr::new(self.family.decoy, PRIVATE);
        let by_udp = neighbour.udp_connect(to)?;
        by_udp.send(b"?").map_err(|source| LabError::Io { what: format!("send to {to}"), source })?;
        let by_tcp = neighbour.within(|| TcpStream::connect_timeout(&to, SILENCE))?;
        // The datagram was sent before, and silence has been listened to.
        let heard = match self.udp.recv(&mut [0; 8]) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        };
        Ok([by_tcp.is_ok(), heard])
    }
}

#[track_caller]
fn node_port_is_silent(neighbour: &Host, family: Family) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let answer = neighbour.asks(SocketAddr::new(family.decoy, NODE_PORT), protocol, SILENCE);
        assert_eq!(answer, Answer::Silent, "{}/{protocol}", family.loopback);
    }
}

/// `look` makes the tables by which a host says which of iptables' programs it uses.
fn story(name: &str, mode: &str, look: &str) -> Result<(), LabError> {
    let lab = Lab::new(name).weft(env!("CARGO_BIN_EXE_weft")).hosts(["ash", "birch", "cedar"]);
    let lab = lab.etcd_members(0).without_daemons().proxies([format!("--mode={mode}")]).up()?;
    let [ash, birch, cedar] = ["ash", "birch", "cedar"].map(|host| lab.host(host));
    ash.run(look).ok()?;
    let _server = birch.server_at(PORT, "birch")?;
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 80, "nodePort": NODE_PORT});
    let spec = json!({
        "type": "NodePort",
        "clusterIPs": ["10.96.0.10", "fd96::10"],
        "ports": [port("tcp", "TCP"), port("udp", "UDP")],
    });
    let ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": PORT},
        {"name": "udp", "protocol": "UDP", "port": PORT},
    ]);
    let slices = FAMILIES.map(|family| {
        let ends = [endpoint(family.of(&birch), "birch")];
        slice(&format!("web-{}", family.word), "web", ports.clone(), &ends)
    });
    lab.manifests().write(&[&[node(&ash, None), service("web", spec)], &slices[..]].concat())?;
    within(SOON, || ash.run("! ip address | grep tentative").ok());
    ash.proxy().start()?;
    let private = [Private::listen(&ash, FAMILIES[0])?, Private::listen(&ash, FAMILIES[1])?];
    for (family, private) in FAMILIES.into_iter().zip(&private) {
        // The disguise carries connections; it is the loopback address that carries none.
        family.disguise(&cedar, &ash, family.of(&ash))?;
        let to = SocketAddr::new(family.decoy, NODE_PORT);
        within(SOON, || match cedar.asks(to, Protocol::Tcp, SILENCE) {
            Answer::From { .. } => Ok(()),
            other => Err(format!("{to}: {other:?}")),
        });
        family.disguise(&cedar, &ash, family.loopback)?;
        node_port_is_silent(&cedar, family);
        assert_eq!(private.is_reached_by(&cedar)?, [false, false], "{}", family.loopback);
        assert!(family.sent(&cedar) >= 4, "that much was sent");
    }
    // Were it not for the kernel's own refusal, and without a rule against it, it would be reached.
    let [v4, _] = FAMILIES;
    ash.run("sysctl -qw net.ipv4.conf.all.route_localnet=1").ok()?;
    within(SOON, || match private[0].is_reached_by(&cedar).map_err(|error| error.to_string())? {
        [true, true] => Ok(()),
        reached => Err(format!("this test does not see what is open: {reached:?}")),
    });
    ash.run("sysctl -qw net.ipv4.conf.all.route_localnet=0").ok()?;

    // Node ports at 127.0.0.1 switch that refusal off, and take its place.
    assert!(ash.proxy().stop()?, "it leaves when it is asked to");
    ash.proxy().launch_with(&["--nodeport-addresses=primary,localhost"])?;
    ash.proxy().wait_until_ready(SOON)?;
    let at_home = SocketAddr::new(v4.loopback, NODE_PORT);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        within(SOON, || match ash.asks(at_home, protocol, SILENCE) {
            Answer::From { .. } => Ok(()),
            other => Err(format!("{at_home}/{protocol}: {other:?}")),
        });
    }
    assert_eq!(ash.run("sysctl -n net.ipv4.conf.all.route_localnet").ok()?.trim(), "1");
    for (family, private) in FAMILIES.into_iter().zip(&private) {
        node_port_is_silent(&cedar, family);
        assert_eq!(private.is_reached_by(&cedar)?, [false, false], "{}", family.loopback);
    }
    lab.down()
}

#[test]
fn loopback_addresses_are_closed_to_neighbours() -> Result<(), LabError> {
    story("lo-nft", "nftables", "true")
}

#[test]
fn loopback_addresses_are_closed_to_neighbours_in_iptables_mode() -> Result<(), LabError> {
    story("lo-ipt", "iptables", "iptables-nft -w -t nat -nL; ip6tables-nft -w -t nat -nL")
}

#[test]
fn loopback_addresses_are_closed_to_neighbours_by_legacy_iptables() -> Result<(), LabError> {
    story("lo-old", "iptables", "iptables-legacy -w -t nat -nL; ip6tables-legacy -w -t nat -nL")
}
