//! Routers that advertise themselves: a host that forwards for pods goes on learning its way out from
//! them, though Linux by itself would stop.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use weft_lab::{Host, Lab, LabError, within};

const SOON: Duration = Duration::from_secs(30);
const CONFIG: &str =
    r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;
/// All nodes on a link (RFC 4291, section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const HALF_AN_HOUR: u16 = 1800;

/// Has the router of the first segment say that it is a default router for so many seconds; none means
/// that it is one no more (RFC 4861, section 4.2). The kernel fills the checksum in.
fn advertise(lab: &Lab, lifetime: u16) -> Result<(), LabError> {
    let router = lab.router();
    let link = router.run("ip -o link show dev eth1").ok()?;
    let index = link.split(':').next().and_then(|index| index.parse().ok()).expect("`ip` begins with it");
    let [high, low] = lifetime.to_be_bytes();
    // Router advertisement, hop limit 64, no flags, the lifetime, no timers of its own.
    let message = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    let send = || {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        // One that has crossed a router is not believed.
        socket.set_multicast_hops_v6(255)?;
        socket.send_to(&message, &SocketAddrV6::new(ALL_NODES, 0, 0, index).into())
    };
    let sent = router.within(send)?;
    sent.map(drop).map_err(|source| LabError::Io { what: "advertise a router".into(), source })
}

/// The default routes that were learned.
fn learned(host: &Host) -> Result<(), String> {
    let routes = host.run("ip -6 route show default proto ra").stdout;
    if routes.contains("via fe80:") { Ok(()) } else { Err(format!("{} learned {routes:?}", host.name())) }
}

fn setting(host: &Host, name: &str) -> String {
    host.run(format!("cat /proc/sys/net/ipv6/conf/{name}")).stdout.trim().to_owned()
}

#[test]
fn a_host_that_forwards_still_hears_its_router() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("advertised").weft(weft).hosts(["ash", "birch"]).network(CONFIG);
    let lab = lab.without_daemons().up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    // ash lives by what it hears. birch's administrator does not want to hear anything.
    ash.run("ip -6 route del default").ok()?;
    birch.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra").ok()?;
    // The router's and the host's own addresses are tried for a second before they are used.
    within(SOON, || {
        advertise(&lab, HALF_AN_HOUR).map_err(|error| error.chain()).and_then(|()| learned(&ash))
    });

    ash.launch_overlay()?;
    birch.start_overlay()?;
    ash.wait_until_ready(SOON)?;
    assert_eq!(setting(&ash, "all/forwarding"), "1");
    learned(&ash).expect("kept, though nothing was heard since");
    let (client, server) = (ash.new_pod()?, birch.new_pod()?);
    within(SOON, || client.reaches(server.v6()));

    // A router that takes its leave and comes back is heard: ash is not deaf to either.
    within(SOON, || advertise(&lab, 0).is_ok() && learned(&ash).is_err());
    client.reaches(server.v6())?;
    within(SOON, || {
        advertise(&lab, HALF_AN_HOUR).map_err(|error| error.chain()).and_then(|()| learned(&ash))
    });

    ash.kill_overlay()?;
    ash.start_overlay()?;
    learned(&ash).expect("kept over a restart");
    assert_eq!(
        (setting(&ash, "eth0/accept_ra").as_str(), setting(&birch, "eth0/accept_ra").as_str()),
        ("2", "0")
    );
    learned(&birch).expect_err("somebody's decision is not overruled");
    lab.down()
}
