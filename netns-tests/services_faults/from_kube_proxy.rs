//! Taking over from kube-proxy and giving back, as docs/migrating-from-kube-proxy.md tells it: one of
//! both has rules at any moment, so nothing is lost. kube-proxy's rules are played by their like.

use std::fmt::Write as _;

use weft_lab::Output;

use super::*;

/// Rules like those of one of kube-proxy's modes.
struct KubeProxy {
    /// A shell command for each.
    begin: String,
    /// What `kube-proxy --cleanup` does.
    cleanup: String,
}

/// One family's: its cluster address, the host's own, and the endpoints.
struct Family<'a> {
    number: &'a str,
    vip: &'a str,
    host: IpAddr,
    endpoints: Vec<IpAddr>,
}

fn families(stage: &Stage) -> [Family<'static>; 2] {
    let endpoints = |ip: fn(&Pod) -> IpAddr| stage.servers.iter().map(|(pod, _)| ip(pod)).collect();
    let ash = stage.ash();
    let [v4, v6] = VIPS;
    [
        Family { number: "", vip: v4, host: ash.v4().into(), endpoints: endpoints(|pod| pod.ip()) },
        Family { number: "6", vip: v6, host: ash.v6().into(), endpoints: endpoints(|pod| pod.ip6()) },
    ]
}

fn nftables(stage: &Stage) -> KubeProxy {
    let (mut begin, mut cleanup) = (String::new(), String::new());
    for Family { number, vip, host, endpoints } in families(stage) {
        let ip = format!("ip{number}");
        let slots: Vec<String> =
            endpoints.iter().enumerate().map(|(n, ip)| format!("{n} : {ip} . {PORT}")).collect();
        let _ = write!(
            begin,
            "nft -f - <<'END'
table {ip} kube-proxy {{
  chain endpoints {{ meta l4proto {{ tcp, udp }} dnat {ip} addr . port to numgen random mod 3 map {{ {} }}; }}
  chain external {{ meta mark set meta mark | 0x4000; goto endpoints; }}
  chain services {{
    {ip} daddr {vip} meta l4proto {{ tcp, udp }} th dport 80 goto endpoints
    {ip} daddr {host} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} goto external
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; meta mark & 0x4000 == 0x4000 masquerade; }}
}}
END
",
            slots.join(", ")
        );
        let _ = writeln!(cleanup, "nft delete table {ip} kube-proxy");
    }
    KubeProxy { begin, cleanup }
}

fn iptables(stage: &Stage) -> KubeProxy {
    let (mut begin, mut cleanup) = (String::new(), String::new());
    for Family { number, vip, host, endpoints } in families(stage) {
        let mut chains = String::new();
        for protocol in ["tcp", "udp"] {
            let _ = writeln!(chains, "-A KUBE-SERVICES -d {vip} -p {protocol} --dport 80 -j KUBE-SVC-WEB");
            let _ = writeln!(
                chains,
                "-A KUBE-SERVICES -d {host} -p {protocol} --dport {NODE_PORT} -j KUBE-EXT-WEB"
            );
            for (taken, endpoint) in endpoints.iter().enumerate() {
                let to = SocketAddr::new(*endpoint, PORT);
                let every = endpoints.len() - taken;
                let chance = match every {
                    1 => String::new(),
                    _ => format!("-m statistic --mode nth --every {every} --packet 0 "),
                };
                let _ =
                    writeln!(chains, "-A KUBE-SVC-WEB -p {protocol} {chance}-j DNAT --to-destination {to}");
            }
        }
        let _ = write!(
            begin,
            "ip{number}tables-nft-restore --noflush <<'END'
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-EXT-WEB - [0:0]
-A KUBE-EXT-WEB -j MARK --or-mark 0x4000
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
{chains}-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
COMMIT
END
"
        );
        let _ = write!(
            cleanup,
            "ip{number}tables-nft-restore --noflush <<'END'
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-EXT-WEB - [0:0]
-D PREROUTING -j KUBE-SERVICES
-D OUTPUT -j KUBE-SERVICES
-D POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
-X KUBE-SERVICES
-X KUBE-EXT-WEB
-X KUBE-SVC-WEB
COMMIT
END
"
        );
    }
    KubeProxy { begin, cleanup }
}

fn weft_cleanup(host: &Host) -> Output {
    let dirs = [("--run-dir", host.run_dir()), ("--state-dir", host.state_dir())];
    let dirs = dirs.map(|(flag, dir)| format!("{flag}={}", dir.display()));
    host.run_args(&["weft", "cleanup", "--only=proxy", &dirs[0], &dirs[1]])
}

fn there_and_back(stage: &Stage, kube_proxy: &KubeProxy, mode: &str) -> Result<(), LabError> {
    let (ash, proxy) = (stage.ash(), stage.ash().proxy());
    assert!(proxy.stop()?, "it leaves when it is asked to");
    ash.run(&kube_proxy.begin).ok()?;
    weft_cleanup(&ash).ok()?;
    let left = ash.run("nft list tables; iptables-save").ok()?;
    assert!(!left.contains("weft-proxy") && !left.contains(":WEFT-"), "{left}");
    stage.undisturbed_by("from kube-proxy to weft", || {
        proxy.launch_with(&[mode])?;
        proxy.wait_until_ready(SOON)?;
        ash.run(&kube_proxy.cleanup).ok().map(drop)
    })?;
    within(SOON, || proxy.as_planned());
    stage.undisturbed_by("and back", || {
        assert!(proxy.stop()?, "it leaves when it is asked to");
        ash.run(&kube_proxy.begin).ok()?;
        weft_cleanup(&ash).ok().map(drop)
    })?;
    ash.run(&kube_proxy.cleanup).ok().map(drop)
}

#[test]
fn nothing_is_lost_on_the_way_from_kube_proxy_and_back() -> Result<(), LabError> {
    let stage = Stage::new("proxy-takeover")?;
    for (kube_proxy, mode) in [
        (nftables(&stage), "--mode=nftables"),
        (iptables(&stage), "--mode=nftables"),
        (iptables(&stage), "--mode=iptables"),
    ] {
        there_and_back(&stage, &kube_proxy, mode)?;
        stage.ash().proxy().start()?;
    }
    stage.lab.down()
}
