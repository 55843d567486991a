//! Forged tunnel packets, thrown at a daemon's host: what a peer may send arrives, nothing else does,
//! and the drops are counted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use weft_lab::{Host, Lab, LabError, Place, Pod, within};

const SOON: Duration = Duration::from_secs(30);
/// Where the victim listens inside the network.
const PORT: u16 = 9000;
const UDP: u8 = 17;

const ETHERTYPE_V4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_V6: [u8; 2] = [0x86, 0xdd];

fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// A tunnel's datagram: VXLAN with a VNI and the receiver's VTEP, or flannel's raw IP.
enum Tunnel {
    Vxlan { vni: u8, vtep: [u8; 6] },
    Udp,
}

impl Tunnel {
    fn port(&self) -> u16 {
        match self {
            Self::Vxlan { .. } => 8472,
            Self::Udp => 8285,
        }
    }

    fn datagram(&self, from: IpAddr, to: IpAddr, word: &str) -> Vec<u8> {
        let packet = ip_packet(from, to, word.as_bytes());
        match self {
            Self::Udp => packet,
            Self::Vxlan { vni, vtep } => {
                let ethertype = if to.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
                // RFC 7348: flags with the I bit, the VNI, then the frame; its source is nobody's.
                [&[8, 0, 0, 0, 0, 0, *vni, 0][..], vtep, &[2, 0, 0, 0, 0, 9], &ethertype, &packet].concat()
            }
        }
    }
}

/// IPv4 or IPv6 with UDP to [`PORT`].
fn ip_packet(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a short word");
    let mut udp = [4000, PORT, length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let pseudo =
        [octets(from), octets(to), vec![0, UDP], length.to_be_bytes().to_vec(), udp.clone()].concat();
    udp[6..8].copy_from_slice(&checksum(&pseudo));
    let mut header = match to {
        IpAddr::V4(_) => {
            let total = (20 + length).to_be_bytes();
            vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, UDP, 0, 0]
        }
        IpAddr::V6(_) => {
            let length = length.to_be_bytes();
            vec![0x60, 0, 0, 0, length[0], length[1], UDP, 64]
        }
    };
    header.extend(octets(from));
    header.extend(octets(to));
    if to.is_ipv4() {
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
    }
    [header, udp].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}

/// Throws each forgery from a place at the victim's host, then something honest, until the honest one
/// is heard; none of the forgeries may be heard before.
fn none_but_the_honest_is_heard(
    victim: (&Host, &Pod),
    honest: (&Place, &Tunnel, IpAddr),
    forgeries: &[(&str, &Place, &Tunnel, IpAddr)],
    outer: impl Fn(&Host) -> IpAddr,
) -> Result<(), LabError> {
    let (host, pod) = victim;
    let inner = |from: IpAddr| if from.is_ipv4() { pod.ip() } else { pod.ip6() };
    let ear = pod.within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)))?.expect("the port is free");
    ear.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket option");
    let throw = |place: &Place, tunnel: &Tunnel, from: IpAddr, word: &str| -> Result<(), LabError> {
        let socket = place.udp_connect(SocketAddr::new(outer(host), tunnel.port()))?;
        // What an earlier datagram met (ICMP) shows as an error here; it does not matter.
        let _ = socket.send(&tunnel.datagram(from, inner(from), word));
        Ok(())
    };
    let mut heard = vec![];
    within(SOON, || {
        for (word, place, tunnel, from) in forgeries {
            throw(place, tunnel, *from, word).map_err(|error| error.chain())?;
        }
        let (place, tunnel, from) = honest;
        throw(place, tunnel, from, "honest").map_err(|error| error.chain())?;
        let mut buffer = [0; 2048];
        while let Ok(read) = ear.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            if heard.last().is_some_and(|word| word == "honest") {
                return Ok(());
            }
        }
        Err(format!("heard {heard:?}"))
    });
    assert!(heard.iter().all(|word| word == "honest"), "{heard:?}");
    Ok(())
}

struct Scene {
    lab: Lab,
    victim: Pod,
}

impl Scene {
    fn new(backend: &str) -> Result<Self, LabError> {
        let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
        let lab = Lab::new(&format!("spoof-{backend}"))
            .weft(weft)
            .hosts(["ash", "birch", "cedar"])
            .network(config(backend))
            .up()?;
        let (victim, peer) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
        within(SOON, || peer.reaches(&victim));
        within(SOON, || peer.reaches(victim.v6()));
        Ok(Self { lab, victim })
    }

    /// The forgeries of a host that is a peer and of one that is none, for one family. `other` is a
    /// tunnel of another network.
    #[track_caller]
    fn forgeries_are_dropped(
        &self,
        v4: bool,
        tunnel: &Tunnel,
        other: Option<&Tunnel>,
    ) -> Result<(), LabError> {
        let lab = &self.lab;
        let (ash, birch, outside) = (lab.host("ash"), lab.host("birch"), lab.outside());
        let subnet = |host: &str| -> Result<IpAddr, LabError> {
            let subnets = lab.host(host).subnets()?;
            let subnet = subnets.iter().find(|subnet| subnet.is_ipv4() == v4);
            Ok(nth(subnet.expect("dual stack").ip(), 77))
        };
        let nobody = if v4 { "198.51.100.66" } else { "2001:db8:66::1" }.parse().expect("an address");
        let outer = |host: &Host| if v4 { IpAddr::from(host.v4()) } else { host.v6().into() };
        let birchs = subnet("birch")?;
        let mut forgeries: Vec<(&str, &Place, &Tunnel, IpAddr)> = vec![
            ("a stranger with a peer's inner source", &outside, tunnel, birchs),
            ("a stranger from outside", &outside, tunnel, nobody),
            ("a peer with another peer's inner source", &birch, tunnel, subnet("cedar")?),
            ("a peer with a source outside the network", &birch, tunnel, nobody),
            ("a peer with our own source", &birch, tunnel, subnet("ash")?),
        ];
        let counted = forgeries.len() as f64;
        // No drop of ours: the kernel has no such network.
        forgeries.extend(other.map(|other| ("a peer in another network", &*birch, other, birchs)));
        let before = dropped(&ash);
        none_but_the_honest_is_heard((&ash, &self.victim), (&birch, tunnel, birchs), &forgeries, outer)?;
        within(SOON, || match dropped(&ash) {
            now if now >= before + counted => Ok(()),
            now => {
                Err(format!("{before} drops counted before, {now} now, after {counted} forgeries or more"))
            }
        });
        Ok(())
    }
}

/// Everything that the daemon counts as forged: by nftables, and in its userspace tunnel.
fn dropped(host: &Host) -> f64 {
    let metrics = host.api("/metrics").map(|answer| answer.body).unwrap_or_default();
    let counts = |line: &&str| {
        line.starts_with("weft_overlay_dropped_total")
            || line.starts_with("weft_overlay_udp_total") && line.contains("drop_unknown_sender")
            || line.starts_with("weft_overlay_peer_total")
                && line.contains("tunnel=\"udp\",what=\"drop_spoofed\"")
    };
    metrics.lines().filter(counts).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// An address of a subnet.
fn nth(network: IpAddr, number: u8) -> IpAddr {
    match network {
        IpAddr::V4(network) => std::net::Ipv4Addr::from(u32::from(network) + u32::from(number)).into(),
        IpAddr::V6(network) => Ipv6Addr::from(u128::from(network) + u128::from(number)).into(),
    }
}

#[test]
fn forged_vxlan_packets_are_dropped_and_counted() -> Result<(), LabError> {
    let scene = Scene::new("vxlan")?;
    let ash = scene.lab.host("ash");
    for (v4, link) in [(true, "weft.1"), (false, "weft-v6.1")] {
        let mac = ash.run(format!("cat /sys/class/net/{link}/address")).ok()?;
        let mut bytes = mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC"));
        let vtep = std::array::from_fn(|_| bytes.next().expect("six bytes"));
        let (tunnel, other) = (Tunnel::Vxlan { vni: 1, vtep }, Tunnel::Vxlan { vni: 2, vtep });
        scene.forgeries_are_dropped(v4, &tunnel, Some(&other))?;
    }
    // Whose host it was is counted too: three of the forgeries in each family were birch's.
    let refused = |node: &str| -> Result<f64, String> {
        let metrics = ash.api("/metrics").map_err(|error| error.chain())?.body;
        let labels = format!("node=\"{node}\",tunnel=\"vxlan\",what=\"drop_spoofed\"}} ");
        let value = metrics.lines().find_map(|line| line.split_once(&labels)?.1.parse().ok());
        value.ok_or(metrics)
    };
    within(SOON, || refused("birch").and_then(|n| if n >= 6.0 { Ok(()) } else { Err(n.to_string()) }));
    assert_eq!(refused("cedar"), Ok(0.0));
    let peers = ash.run("weft peers --output json").ok()?;
    assert!(peers.contains("\"drop_spoofed\""), "{peers}");
    scene.lab.down()
}

#[test]
fn forged_udp_packets_are_dropped_and_counted() -> Result<(), LabError> {
    let scene = Scene::new("udp")?;
    for v4 in [true, false] {
        scene.forgeries_are_dropped(v4, &Tunnel::Udp, None)?;
    }
    scene.lab.down()
}
