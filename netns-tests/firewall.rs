//! Who is seen by which address, and other programs' firewalls in the way.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use weft_lab::traffic::{Endpoint, Service};
use weft_lab::{Host, Lab, LabError, Pod, within};

const SOON: Duration = Duration::from_secs(30);
/// Drift of nftables is healed by its events.
const HEALED: Duration = Duration::from_secs(1);
/// Legacy iptables tells nobody of changes: the slow timer finds them, which takes longer the longer a
/// look takes on this machine.
const FOUND: Duration = SOON;

const DUAL_STACK: &str =
    r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}"#;

/// An address behind the router that shall see pods' own addresses.
const KEPT: [&str; 2] = ["198.19.0.1", "2001:db8:ffff::1"];

fn is(expected: impl Into<IpAddr>) -> impl Fn(IpAddr) -> Result<(), String> {
    let expected = expected.into();
    move |seen| if seen == expected { Ok(()) } else { Err(format!("seen as {seen}, not {expected}")) }
}

/// By which address `from` is seen at `to`, once it answers.
#[track_caller]
fn sees(
    from: &weft_lab::Place,
    whoami: &Service,
    to: impl Into<IpAddr>,
    check: impl Fn(IpAddr) -> Result<(), String>,
) {
    let to = whoami.at(to.into());
    within(SOON, || from.seen_as(to).map_err(|error| error.chain()).and_then(&check));
}

/// The way back from outside to a pod that is not masqueraded.
fn routes_back(lab: &Lab, host: &Host) -> Result<(), LabError> {
    let outside = lab.outside();
    for (kept, via) in KEPT.iter().zip([IpAddr::from(outside.v4()), outside.v6().into()]) {
        outside.run(format!("ip address replace {kept} dev lo")).ok()?;
        lab.router().run(format!("ip route replace {kept} via {via}")).ok()?;
    }
    for (subnet, via) in host.subnets()?.iter().zip([IpAddr::from(host.v4()), host.v6().into()]) {
        lab.router().run(format!("ip route replace {subnet} via {via}")).ok()?;
    }
    Ok(())
}

#[test]
fn pods_are_masqueraded_outside_and_themselves_inside() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let kept = format!("--non-masquerade-cidr={}/32,{}/128", KEPT[0], KEPT[1]);
    let lab = Lab::new("masquerade").weft(weft).hosts(["ash", "birch"]).network(DUAL_STACK);
    let lab = lab.overlay_args(["--ip-masq", kept.as_str()]).up()?;
    let (ash, birch, outside) = (lab.host("ash"), lab.host("birch"), lab.outside());
    routes_back(&lab, &ash)?;
    let (pod, neighbour, far) = (ash.pod("a")?, ash.pod("b")?, birch.pod("c")?);

    let there = outside.tcp_whoami()?;
    sees(&pod, &there, outside.v4(), is(ash.v4()));
    sees(&pod, &there, outside.v6(), is(ash.v6()));
    let host = birch.tcp_whoami()?;
    sees(&pod, &host, birch.v4(), is(ash.v4()));
    sees(&pod, &host, birch.v6(), is(ash.v6()));

    // Pods see each other, here and far away.
    for to in [&neighbour, &far] {
        let whoami = to.tcp_whoami()?;
        sees(&pod, &whoami, to.ip(), is(pod.ip()));
        sees(&pod, &whoami, to.ip6(), is(pod.ip6()));
    }
    // The host that asks its own pod, as health checks do, is not masqueraded: an address of its own.
    let whoami = pod.tcp_whoami()?;
    let own = ash.run("ip -o address").stdout;
    let an_own = |seen: IpAddr| {
        if own.contains(&format!(" {seen}/")) {
            Ok(())
        } else {
            Err(format!("seen as {seen}, which is none of {own}"))
        }
    };
    sees(&ash, &whoami, pod.ip(), an_own);
    sees(&ash, &whoami, pod.ip6(), an_own);

    // A listed destination.
    for (kept, own) in KEPT.iter().zip([pod.ip(), pod.ip6()]) {
        sees(&pod, &there, kept.parse::<IpAddr>().expect("an address"), is(own));
    }
    // What kube-proxy has marked is kube-proxy's to masquerade; other bits of the mark mean nothing.
    for (mark, seen) in [("0x4000", pod.ip()), ("0x4010", pod.ip()), ("0x10", IpAddr::from(ash.v4()))] {
        ash.run(format!("nft add table ip marks; nft 'add chain ip marks c {{ type filter hook prerouting priority mangle; }}'; \
            nft flush chain ip marks c; nft add rule ip marks c ip daddr {} meta mark set {mark}", outside.v4())).ok()?;
        sees(&pod, &there, outside.v4(), is(seen));
    }
    lab.down()
}

#[test]
fn without_masquerade_pods_are_seen_as_they_are() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("no-masquerade").weft(weft).hosts(["ash"]).network(DUAL_STACK).up()?;
    let (ash, outside) = (lab.host("ash"), lab.outside());
    routes_back(&lab, &ash)?;
    let pod = ash.new_pod()?;
    let there = outside.tcp_whoami()?;
    sees(&pod, &there, outside.v4(), is(pod.ip()));
    sees(&pod, &there, outside.v6(), is(pod.ip6()));
    lab.down()
}

/// Both families of one of iptables' kinds on a host.
struct Iptables<'a>(&'a Host, &'static str);

impl Iptables<'_> {
    /// Gives the same rule to both families.
    fn run(&self, rule: &str) -> Result<(), LabError> {
        ["iptables", "ip6tables"]
            .iter()
            .try_for_each(|program| self.0.run(format!("{program}-{} -w 10 {rule}", self.1)).ok().map(drop))
    }

    /// How many rules of ours a chain has, in both families.
    fn ours(&self, chain: &str) -> usize {
        let list = |program: &str| self.0.run(format!("{program}-{} -w 10 -S {chain}", self.1)).stdout;
        [list("iptables"), list("ip6tables")].concat().matches("weft:weft").count()
    }

    /// A source and a destination for each of two families, all there and nowhere else.
    #[track_caller]
    fn is_open(&self, limit: Duration, chain: &str, other: &str) {
        within(limit, || match (self.ours(chain), self.ours(other)) {
            (4, 0) => Ok(()),
            other => Err(format!("{other:?} rules of ours in {chain} and elsewhere")),
        });
    }
}

fn both_ways(client: &Pod, server: &Pod) -> Result<(), LabError> {
    client.reaches(server)?;
    client.reaches(server.v6())?;
    server.reaches(client)?;
    server.reaches(client.v6())
}

fn a_closed_forward_chain_is_opened(kind: &'static str, limit: Duration) -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new(&format!("forward-{kind}")).weft(weft).hosts(["ash", "birch"]).network(DUAL_STACK);
    let lab = lab
        .overlay_args([if kind == "nft" { "--iptables-resync=3600" } else { "--iptables-resync=1" }])
        .up()?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    within(SOON, || both_ways(&client, &server));
    let ash = lab.host("ash");
    let iptables = Iptables(&ash, kind);

    // Without the daemon, a closed chain is closed.
    ash.stop_overlay()?;
    iptables.run("-P FORWARD DROP")?;
    client.reaches(&server).expect_err("it is closed");
    client.reaches(server.v6()).expect_err("it is closed");
    ash.start_overlay()?;
    iptables.is_open(Duration::ZERO, "FORWARD", "INPUT");
    both_ways(&client, &server)?;

    // Somebody reloads a firewall.
    let heals = ash.metric("weft_overlay_heals_total{kind=\"iptables\"")?;
    iptables.run("-F FORWARD")?;
    iptables.is_open(limit, "FORWARD", "INPUT");
    both_ways(&client, &server)?;
    within(SOON, || ash.metric("weft_overlay_heals_total{kind=\"iptables\"").is_ok_and(|now| now > heals));

    // Docker comes: our rules belong in its chain for others' rules, and the user's stay first.
    iptables.run("-N DOCKER-USER")?;
    iptables.run("-A DOCKER-USER -i nowhere -j DROP")?;
    iptables.run("-A DOCKER-USER -j RETURN")?;
    iptables.run("-I FORWARD -j DOCKER-USER")?;
    iptables.is_open(limit, "DOCKER-USER", "FORWARD");
    both_ways(&client, &server)?;
    iptables.run("-D DOCKER-USER -i nowhere -j DROP")?;
    for rule in ["-s", "-d"] {
        for (program, subnet) in [("iptables", "10.42.0.0/16"), ("ip6tables", "fd42::/48")] {
            let rule = format!("{rule} {subnet} -m comment --comment weft:weft -j ACCEPT");
            ash.run(format!("{program}-{kind} -w 10 -D DOCKER-USER {rule}")).ok()?;
            iptables.is_open(limit, "DOCKER-USER", "FORWARD");
        }
    }
    both_ways(&client, &server)?;

    // Docker goes: nothing is in the way, so no rule of ours is needed.
    iptables.run("-P FORWARD ACCEPT")?;
    within(limit, || iptables.ours("DOCKER-USER") + iptables.ours("FORWARD") == 0);
    both_ways(&client, &server)?;
    lab.down()
}

#[test]
fn iptables_nft_that_drops_what_is_forwarded_is_opened() -> Result<(), LabError> {
    a_closed_forward_chain_is_opened("nft", HEALED)
}

#[test]
fn iptables_legacy_that_drops_what_is_forwarded_is_opened() -> Result<(), LabError> {
    a_closed_forward_chain_is_opened("legacy", FOUND)
}

/// A firewall that rejects at the end of an open chain is somebody's wish: it is named, with the
/// commands that would help, and not touched.
#[test]
fn a_firewall_that_rejects_is_named_and_left_alone() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("reject").weft(weft).hosts(["ash", "birch"]).up()?;
    let (client, server) = (lab.pod_on("ash")?, lab.pod_on("birch")?);
    let ash = lab.host("ash");
    within(SOON, || client.reaches(&server));
    ash.run("iptables-nft -A FORWARD -j REJECT --reject-with icmp-host-prohibited").ok()?;
    within(HEALED, || {
        let answer = ash.api("/readyz?verbose").map_err(|error| error.chain())?;
        let told = answer.body.contains("iptables -I FORWARD -s 10.42.0.0/16 -j ACCEPT");
        if answer.status == 200 && told { Ok(()) } else { Err(format!("{} {}", answer.status, answer.body)) }
    });
    client.reaches(&server).expect_err("it is rejected");
    assert!(!ash.run("iptables-nft -S").ok()?.contains("weft:"));
    // The commands that were named do help.
    for side in ["-s", "-d"] {
        ash.run(format!("iptables -I FORWARD {side} 10.42.0.0/16 -j ACCEPT")).ok()?;
    }
    within(HEALED, || client.reaches(&server));
    lab.down()
}

/// A pod may not borrow another's address, in either family: the reply would go astray, and a policy
/// by address would be worth nothing.
#[test]
fn pods_cannot_borrow_addresses() -> Result<(), LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let lab = Lab::new("borrow").weft(weft).hosts(["ash", "birch"]).network(DUAL_STACK).up()?;
    let ash = lab.host("ash");
    let (thief, victim, server) = (ash.pod("thief")?, ash.pod("victim")?, lab.pod_on("birch")?);
    within(SOON, || both_ways(&thief, &server));
    for (address, to) in [(victim.ip(), Endpoint::from(&server)), (victim.ip6(), server.v6())] {
        thief
            .run(format!(
                "ip address add {address} dev eth0 {}",
                if address.is_ipv6() { "nodad" } else { "" }
            ))
            .ok()?;
        let ping = |from: IpAddr| thief.run(format!("ping -n -c 1 -W 1 -I {from} {}", to.address));
        assert!(!ping(address).success(), "{address} was borrowed");
        let own = if address.is_ipv6() { thief.ip6() } else { thief.ip() };
        within(SOON, || ping(own).ok().map(drop));
    }
    within(SOON, || both_ways(&victim, &server));
    lab.down()
}
