//! What pods may expect of the path between them, whatever carries it: every size, every byte, order,
//! hop limits, errors, and connections that outlive the daemon.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use weft_lab::traffic::Endpoint;
use weft_lab::{Lab, LabError, Pod, within};

const SOON: Duration = Duration::from_secs(30);
/// For each backend and family; six times this is a gigabyte.
const BULK: u64 = 180_000_000;
/// IPv4 and UDP headers; IPv6 and UDP headers.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];
/// The promise for the userspace tunnel; the kernel's paths do not need the daemon at all.
const RESTART: Duration = Duration::from_secs(1);

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{backend}}}"#)
}

fn both_families(pod: &Pod) -> [Endpoint; 2] {
    [Endpoint::from(pod), pod.v6()]
}

/// Every payload from nothing to the MTU comes back as it was sent, unfragmented: Linux sets DF on
/// datagrams that fit.
fn every_size_passes(from: &Pod, to: &Endpoint, largest: usize) -> Result<(), LabError> {
    let service = to.place.udp_echo()?;
    let socket = from.udp_connect(service.at(to.address))?;
    let io = |size: usize, source| LabError::Io { what: format!("{size} bytes to {}", to.address), source };
    socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(|error| io(0, error))?;
    let pattern: Vec<u8> = (0..=u8::MAX).cycle().take(largest).collect();
    (0..=largest).try_for_each(|size| {
        // A datagram may be lost on a starved machine; three may not.
        let echoed = (0..3).find_map(|_| echo(&socket, &pattern[..size]).ok()).unwrap_or(false);
        if echoed { Ok(()) } else { Err(io(size, std::io::ErrorKind::TimedOut.into())) }
    })
}

/// Whether it came back, and nothing else.
fn echo(socket: &UdpSocket, payload: &[u8]) -> std::io::Result<bool> {
    socket.send(payload)?;
    let mut buffer = [0; 1 << 16];
    loop {
        let read = socket.recv(&mut buffer)?;
        if read == payload.len() {
            return Ok(&buffer[..read] == payload);
        }
    }
}

fn ping(from: &Pod, options: &str, to: IpAddr) -> weft_lab::Output {
    from.run(format!("ping -n -c 1 -W 2 {options} {to}"))
}

fn a_backend_carries_everything(
    story: &str,
    backend: &str,
    tunnel: Option<&str>,
    mtus: [usize; 2],
) -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new(story).weft(weft).hosts(["ash", "birch"]).network(config(backend)).up()?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    let env = lab.host("ash").subnet_env()?;
    assert_eq!(env["FLANNEL_MTU"], mtus[0].min(mtus[1]).to_string());
    for (to, headers) in both_families(&server).iter().zip(HEADERS) {
        within(SOON, || client.reaches(to));
        // The pod's own link has the smaller of both families' MTUs.
        let mtu = mtus[0].min(mtus[1]);
        every_size_passes(&client, to, mtu - headers)?;
        let over = ping(&client, &format!("-M do -s {}", mtu - headers + 1), to.address);
        assert!(
            !over.success() && format!("{}{}", over.stdout, over.stderr).contains("too long"),
            "{over:?}"
        );

        // Two hosts route it, and each counts; so do the answers.
        let answer = ping(&client, "", to.address).ok()?;
        assert!(answer.contains("ttl=62"), "{answer}");
        for (ttl, hop) in [(1, "ash"), (2, "birch")] {
            let answer = ping(&client, &format!("-t {ttl}"), to.address);
            assert!(!answer.success(), "{hop}: {answer:?}");
        }
        assert!(ping(&client, "-t 3", to.address).success());

        // While bytes go by in bulk, datagrams keep their order.
        let probe = client.udp_probe(to, Duration::from_millis(1))?;
        let sent = client.sends(to, BULK)?;
        let seen = probe.stop();
        assert_eq!((seen.reordered, seen.duplicates), (0, 0), "{seen:?}");
        assert!(seen.received > 0, "{seen:?}");
        println!("{story} {}: {:.1} Gbit/s, hashed at both ends", to.address, sent.gbit_per_second());
    }
    server.sends(&client, 10_000_000)?;
    // What went through a tunnel is counted at both its ends, for the peer that it went to or came from.
    let bulk = 2.0 * BULK as f64;
    for (host, peer, what) in [("ash", "birch", "sent_bytes"), ("birch", "ash", "received_bytes")] {
        let Some(tunnel) = tunnel else { break };
        // The tunnel in user space tells with each pass of the daemon, the kernel's at once.
        within(SOON, || {
            let metrics = lab.host(host).api("/metrics").map_err(|error| error.chain())?.body;
            let counted = carried(&metrics, peer, tunnel, what);
            // Acknowledgements, headers and what was sent again.
            if (bulk..1.2 * bulk).contains(&counted) { Ok(()) } else { Err(format!("{counted} at {host}")) }
        });
    }
    lab.down()
}

/// A counter of a tunnel for one peer.
fn carried(metrics: &str, node: &str, tunnel: &str, what: &str) -> f64 {
    let labels = format!("node=\"{node}\",tunnel=\"{tunnel}\",what=\"{what}\"}} ");
    let mut lines = metrics.lines().filter(|line| line.starts_with("weft_overlay_peer_total{"));
    let value = lines.find_map(|line| line.split_once(&labels)?.1.parse().ok());
    value.unwrap_or(0.0)
}

#[test]
fn vxlan_carries_everything() -> Result<(), LabError> {
    a_backend_carries_everything("data-vxlan", r#"{"Type":"vxlan"}"#, Some("vxlan"), [1450, 1430])
}

#[test]
fn host_gw_carries_everything() -> Result<(), LabError> {
    a_backend_carries_everything("data-host-gw", r#"{"Type":"host-gw"}"#, None, [1500, 1500])
}

#[test]
fn udp_carries_everything() -> Result<(), LabError> {
    a_backend_carries_everything("data-udp", r#"{"Type":"udp"}"#, Some("udp"), [1472, 1452])
}

/// Who asks for a subnet that nobody leases, or an address that no pod has, is told so and need not wait.
#[test]
fn the_tunnel_refuses_unknown_destinations_at_once() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab =
        Lab::new("unknown").weft(weft).hosts(["ash", "birch"]).network(config(r#"{"Type":"udp"}"#)).up()?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    within(SOON, || client.reaches(&server));
    within(SOON, || client.reaches(server.v6()));
    let leased: Vec<_> = lab.hosts().iter().flat_map(|host| host.subnets().unwrap_or_default()).collect();
    let unleased = ["10.42.251.9", "10.42.252.9", "10.42.253.9", "fd42:0:0:fffe::9"]
        .map(|address| address.parse::<IpAddr>().expect("an address"));
    for nobody in
        unleased.into_iter().filter(|address| !leased.iter().any(|subnet| subnet.contains(*address)))
    {
        let answer = ping(&client, "", nobody);
        let told = answer.stdout.to_lowercase();
        assert!(told.contains("unreachable") || told.contains("no route"), "{nobody}: {answer:?}");
    }
    lab.down()
}

/// A hop in between takes less than the hosts' links promise. Whoever sends learns of it, or routers
/// fragment; connections do not hang.
fn a_small_hop_is_found(story: &str, backend: &str) -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new(story)
        .weft(weft)
        .hosts_on(1, ["ash"])
        .hosts_on(2, ["birch"])
        .network(config(backend))
        .up()?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    for to in both_families(&server) {
        within(SOON, || client.reaches(&to));
    }
    lab.set_router_mtu(Some(1380))?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        for to in both_families(to) {
            let sent = from.sends(&to, 20_000_000)?;
            assert!(sent.took < SOON, "{} took {:?}", to.address, sent.took);
        }
    }
    lab.down()
}

#[test]
fn vxlan_passes_a_small_hop() -> Result<(), LabError> {
    a_small_hop_is_found("pmtu-vxlan", r#"{"Type":"vxlan"}"#)
}

#[test]
fn udp_passes_a_small_hop() -> Result<(), LabError> {
    a_small_hop_is_found("pmtu-udp", r#"{"Type":"udp"}"#)
}

/// Stopped, killed and upgraded: connections do not notice more than a pause.
fn connections_outlive_the_daemon(story: &str, backend: &str) -> Result<(), LabError> {
    let dir = tempfile::tempdir().expect("a directory");
    let weft = dir.path().join("weft");
    let installed = || {
        let next = dir.path().join("next");
        std::fs::copy(env!("CARGO_BIN_EXE_weft"), &next).expect("copied");
        std::fs::rename(&next, &weft).expect("renamed");
    };
    installed();
    let lab = Lab::new(story).weft(&weft).hosts(["ash", "birch"]).network(config(backend)).up()?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    let ash = lab.host("ash");
    for to in both_families(&server) {
        within(SOON, || client.reaches(&to));
    }
    let talks: Result<Vec<_>, _> =
        both_families(&server).iter().map(|to| client.converse(to, Duration::from_millis(10))).collect();
    let talks = talks?;
    for what in ["stopped", "killed", "upgraded"] {
        let pings = client.pinger(&server, Duration::from_millis(5))?;
        within(SOON, || pings.so_far().received > 0);
        if what == "upgraded" {
            installed();
        }
        match what {
            "killed" => ash.kill_overlay()?,
            _ => assert!(ash.stop_overlay()?, "it leaves when it is asked to"),
        }
        ash.start_overlay()?;
        let before = pings.so_far().received;
        within(SOON, || pings.so_far().received > before);
        let pings = pings.stop();
        println!(
            "{story}: {what} and started, longest pause {:?}, {} pings lost",
            pings.longest_pause,
            pings.lost()
        );
        assert!(pings.longest_pause <= RESTART, "{what}: {pings:?}");
        if story.ends_with("vxlan") {
            assert_eq!(pings.lost(), 0, "{what}: the kernel goes on by itself: {pings:?}");
        }
    }
    for talk in talks {
        let talk = talk.stop_without_loss()?;
        assert_eq!(talk.reordered, 0);
    }
    lab.down()
}

#[test]
fn connections_over_vxlan_outlive_the_daemon() -> Result<(), LabError> {
    connections_outlive_the_daemon("restart-vxlan", r#"{"Type":"vxlan"}"#)
}

#[test]
fn connections_over_udp_outlive_the_daemon() -> Result<(), LabError> {
    connections_outlive_the_daemon("restart-udp", r#"{"Type":"udp"}"#)
}
