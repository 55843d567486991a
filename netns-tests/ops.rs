//! What an operator does and sees: drain and release, health and numbers, errors and secrets.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::json;
use weft_lab::{LabError, within};

use crate::seen::{
    BEAT, SOON, is_well, key, lab, lease_key, lossless, owner_key, routes_to, says, subnet, value,
};

/// ash is drained: no new pods; when the last one has left it gives its subnet up and waits, until
/// the drain is taken back. birch releases its subnet when it stops, because it was told to.
#[test]
fn a_host_is_drained_and_another_released() -> Result<(), LabError> {
    let lab = lab("drain").hosts(["ash", "birch", "cedar"]).without_daemons().up()?;
    let (ash, birch, cedar, etcd) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"), lab.etcd());
    ash.start_overlay()?;
    birch.launch_overlay_with(&["--release-on-exit"])?;
    birch.wait_until_ready(SOON)?;
    cedar.start_overlay()?;
    let (last, peer) = (ash.pod("last")?, cedar.pod("peer")?);
    let (ours, birchs) = (subnet(&ash)?, subnet(&birch)?);
    within(SOON, || peer.reaches(&last));

    let pings = peer.pinger(&last, BEAT)?;
    let weft = |verb: &str| ash.run(format!("weft lease {verb} --etcd-endpoints={}", etcd.endpoints())).ok();
    weft("drain ash")?;
    within(SOON, || says(&ash, 200, &["lease degraded: this host is being drained"]));
    // One that was already on its way may still be taken.
    within(SOON, || match ash.new_pod() {
        Ok(pod) => pod.remove().map_err(|error| error.chain()).and_then(|()| Err("it took a pod".into())),
        Err(error) if error.chain().contains("drained") => Ok(()),
        Err(error) => Err(error.chain()),
    });
    lossless(pings);
    last.remove()?;
    within(SOON, || says(&ash, 503, &["lease not ready: drained"]));
    within(SOON, || routes_to(&cedar, &ours).is_err());
    assert_eq!(etcd.get(&lease_key(&ours))?, None);
    weft("drain --undo ash")?;
    within(SOON, || is_well(&ash));
    let again = ash.pod("again")?;
    within(SOON, || peer.reaches(&again));

    birch.stop_overlay()?;
    within(SOON, || routes_to(&cedar, &birchs).is_err());
    assert_eq!(etcd.get(&lease_key(&birchs))?, None);
    assert_eq!(value(&etcd, &owner_key(&birchs))?["released"], json!(true));
    assert!(!etcd.keys(&key("weft/live/"))?.iter().any(|key| key.ends_with("/birch")), "it is not alive");
    // cedar was not told to release: a stopped daemon's subnet stays.
    cedar.stop_overlay()?;
    assert!(etcd.get(&lease_key(&subnet(&cedar)?))?.is_some());
    lab.down()
}

/// Every metric of the daemon, with the beginnings of lines that must be there while one peer is.
const METRICS: &[(&str, &[&str])] = &[
    ("weft_overlay_lease_held", &[" 1"]),
    ("weft_overlay_lease_expiry_seconds", &[" "]),
    ("weft_overlay_leases", &["{kind=\"leased\"} 2", "{kind=\"reserved\"} 0"]),
    ("weft_overlay_store_connected", &[" 1"]),
    ("weft_overlay_store_revision", &[" "]),
    ("weft_overlay_store_silence_seconds", &[" 0"]),
    ("weft_overlay_programmed_revision", &[" "]),
    (
        "weft_overlay_objects",
        &[
            "{kind=\"link\",state=\"desired\"} 1",
            "{kind=\"link\",state=\"programmed\"} 1",
            "{kind=\"route\",state=\"desired\"}",
            "{kind=\"route\",state=\"programmed\"}",
            "{kind=\"neighbour\",state=\"desired\"} 1",
            "{kind=\"neighbour\",state=\"programmed\"} 1",
            "{kind=\"fdb\",state=\"desired\"} 1",
            "{kind=\"fdb\",state=\"programmed\"} 1",
        ],
    ),
    ("weft_overlay_heals_total", &["{kind=\"pod\"} 0", "{kind=\"route\"}", "{kind=\"link\"}"]),
    ("weft_overlay_peers", &["{state=\"live\"} 1"]),
    ("weft_overlay_probes_total", &["{subnet=\"SUBNET\",address="]),
    ("weft_overlay_probes_lost_total", &["{subnet=\"SUBNET\",address="]),
    ("weft_overlay_probe_rtt_seconds", &["{subnet=\"SUBNET\",address="]),
    (
        "weft_overlay_peer_total",
        &[
            "{subnet=\"SUBNET\",node=\"birch\",tunnel=\"vxlan\",what=\"sent_packets\"}",
            "{subnet=\"SUBNET\",node=\"birch\",tunnel=\"vxlan\",what=\"sent_bytes\"}",
            "{subnet=\"SUBNET\",node=\"birch\",tunnel=\"vxlan\",what=\"received_packets\"}",
            "{subnet=\"SUBNET\",node=\"birch\",tunnel=\"vxlan\",what=\"received_bytes\"}",
            "{subnet=\"SUBNET\",node=\"birch\",tunnel=\"vxlan\",what=\"drop_spoofed\"} 0",
        ],
    ),
    (
        "weft_overlay_link_bytes_total",
        &["{link=\"weft.1\",direction=\"in\"}", "{link=\"weft.1\",direction=\"out\"}"],
    ),
    (
        "weft_overlay_link_packets_total",
        &["{link=\"weft.1\",direction=\"in\"}", "{link=\"weft.1\",direction=\"out\"}"],
    ),
    (
        "weft_overlay_link_drops_total",
        &["{link=\"weft.1\",direction=\"in\"}", "{link=\"weft.1\",direction=\"out\"}"],
    ),
    ("weft_overlay_dropped_total", &["{check=\"tunnel\"} 0", "{check=\"pod\"} 0", "{check=\"outside\"} 0"]),
    // The tunnel in user space tells its own where it runs (spoofing.rs, data.rs).
    ("weft_overlay_udp_total", &[]),
    ("weft_reconcile_runs_total", &["{loop=\"overlay\""]),
    ("weft_reconcile_triggers_total", &["{loop=\"overlay\""]),
    ("weft_reconcile_changes_total", &["{loop=\"overlay\""]),
    ("weft_reconcile_seconds", &["_count{loop=\"overlay\"", "_bucket{loop=\"overlay\""]),
    ("weft_reconcile_failing", &["{loop=\"overlay\"} 0"]),
];

/// Liveness, readiness and numbers, over the socket and over TCP; and systemd hears when it is ready.
#[test]
fn health_and_numbers_are_served() -> Result<(), LabError> {
    let lab = lab("health").hosts(["ash", "birch"]).etcd_members(1).without_daemons().up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    let config = etcd.get(&key("config"))?.unwrap_or_default();
    etcd.delete(&key("config"))?;
    birch.launch_overlay()?;
    let manager = ash.dir().join("notify");
    std::fs::create_dir_all(ash.dir()).expect("a directory of the lab");
    let heard = UnixDatagram::bind(&manager).expect("a socket of the lab");
    heard.set_nonblocking(true).expect("a socket takes it");
    let arguments = [
        "env",
        &format!("NOTIFY_SOCKET={}", manager.display()),
        crate::seen::WEFT,
        "overlay",
        "--network=weft",
        "--node-id=ash",
        &format!("--run-dir={}", ash.run_dir().display()),
        &format!("--state-dir={}", ash.state_dir().display()),
        &format!("--subnet-file={}", ash.subnet_file().display()),
        &format!("--etcd-endpoints={}", etcd.endpoints()),
        "--healthz-ip=192.0.2.11",
        "--healthz-port=9400",
    ];
    let daemon = ash.spawn(&arguments)?;
    let mut told = String::new();
    let mut listen = || {
        let mut datagram = [0; 4096];
        while let Ok(length) = heard.recv(&mut datagram) {
            told.push_str(&String::from_utf8_lossy(&datagram[..length]));
            told.push('\n');
        }
        told.clone()
    };
    within(SOON, || says(&ash, 503, &["not ready\n", "config not ready"]));
    assert_eq!(ash.api("/healthz")?.status, 200, "alive, though not ready");
    assert!(!listen().contains("READY=1"), "{}", listen());

    etcd.put(&key("config"), &config)?;
    within(SOON, || is_well(&ash).and_then(|()| is_well(&birch)));
    within(SOON, || listen().contains("READY=1"));
    let theirs = subnet(&birch)?;
    within(SOON, || routes_to(&ash, &theirs));
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    within(SOON, || client.reaches(&server));

    let get =
        |path: &str| birch.run(format!("curl -sS -w '\\n%{{http_code}}' http://192.0.2.11:9400{path}")).ok();
    assert!(get("/readyz")?.ends_with("200"));
    assert!(get("/healthz")?.ends_with("200"));
    let metrics = get("/metrics")?;
    for (name, labels) in METRICS {
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} in\n{metrics}");
        for labels in *labels {
            let line = format!("{name}{}", labels.replace("SUBNET", &theirs));
            assert!(metrics.lines().any(|found| found.starts_with(&line)), "{line} in\n{metrics}");
        }
    }
    let known: Vec<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    let told = metrics.lines().filter_map(|line| line.strip_prefix("# HELP weft_")?.split(' ').next());
    let untold: Vec<&str> = told.filter(|name| !known.contains(&format!("weft_{name}").as_str())).collect();
    assert!(untold.is_empty(), "no row of the table looks at {untold:?}");
    within(SOON, || {
        let live = ash.metric("weft_overlay_peers{state=\"live\"}")?;
        let (heard, done) =
            (ash.metric("weft_overlay_store_revision")?, ash.metric("weft_overlay_programmed_revision")?);
        let good = live.to_bits() == 1f64.to_bits() && done >= 1.0 && done.to_bits() == heard.to_bits();
        good.then_some(())
            .ok_or_else(|| LabError::Traffic { what: format!("{live} live, {done} of {heard}") })
    });
    let expiry = ash.metric("weft_overlay_lease_expiry_seconds")?;
    assert!((86_000.0..=86_400.0).contains(&expiry), "{expiry}");
    let desired = ash.metric("weft_overlay_objects{kind=\"route\",state=\"desired\"")?;
    assert!(desired >= 1.0, "{desired}");
    let objects = |state: &str| ash.metric(&format!("weft_overlay_objects{{kind=\"fdb\",state=\"{state}\""));
    within(SOON, || {
        let (desired, programmed) = (objects("desired")?, objects("programmed")?);
        let same = desired >= 1.0 && (desired - programmed).abs() < 0.5;
        same.then_some(()).ok_or_else(|| LabError::Traffic { what: format!("{desired} {programmed}") })
    });

    let counted = |direction: &str| {
        ash.metric(&format!("weft_overlay_link_bytes_total{{link=\"weft.1\",direction=\"{direction}\""))
    };
    let before = (counted("out")?, counted("in")?);
    client.sends(&server, 1 << 20)?;
    let now = (counted("out")?, counted("in")?);
    assert!(now.0 - before.0 >= f64::from(1 << 20) && now.1 > before.1, "{before:?} {now:?}");
    within(SOON, || {
        let asked = ash.metric(&format!("weft_overlay_probes_total{{subnet=\"{theirs}\""))?;
        let rtt = ash.metric(&format!("weft_overlay_probe_rtt_seconds{{subnet=\"{theirs}\""))?;
        let good = asked >= 1.0 && rtt > 0.0 && rtt < 5.0;
        good.then_some(()).ok_or_else(|| LabError::Traffic { what: format!("{asked} probes, {rtt} s") })
    });
    etcd.stop()?;
    within(SOON, || ash.metric("weft_overlay_store_connected").map(|connected| connected < 0.5));
    within(SOON, || ash.metric("weft_overlay_store_silence_seconds").map(|silence| silence > 0.0));
    etcd.start()?;
    ash.run(format!("kill {}", daemon.pid())).ok()?;
    within(SOON, || listen().contains("STOPPING=1"));
    assert_eq!(daemon.wait(SOON).exit, weft_lab::Exit::Code(0));
    lab.down()
}

/// No secret is printed, however talkative the daemon is.
#[test]
fn secrets_stay_secret() -> Result<(), LabError> {
    let lab = lab("secrets").hosts(["ash"]).without_daemons().up()?;
    let (ash, etcd) = (lab.host("ash"), lab.etcd());
    let (secret, mistyped) = ("correct-horse-battery", "incorrect-horse");
    for line in [&format!("user add root:{secret}"), "user grant-role root root", "auth enable"] {
        etcd.ctl(&line.split(' ').collect::<Vec<_>>())?.ok()?;
    }
    let launch = |password: &str| {
        ash.launch_overlay_with(&["--etcd-username=root", &format!("--etcd-password={password}"), "--v=99"])
    };
    launch(mistyped)?;
    within(SOON, || says(&ash, 503, &["store not ready", "authentication failed"]));
    ash.stop_overlay()?;
    launch(secret)?;
    within(SOON, || is_well(&ash));
    let answers =
        ["/readyz?verbose", "/metrics", "/peers", "/diff"].map(|path| ash.api(path).map(|a| a.body));
    ash.stop_overlay()?;
    let log = ash.log();
    assert!(log.contains("TRACE"), "it was talkative");
    for text in answers.into_iter().chain([Ok(log)]) {
        let text = text?;
        let told = text.lines().find(|line| line.contains(secret) || line.contains(mistyped));
        assert_eq!(told, None);
    }
    lab.down()
}

/// Wrong usage is one line that names the flag, and exit code 2; what is in the way otherwise is 1.
#[test]
fn mistakes_cost_one_line() -> Result<(), LabError> {
    let lab = lab("mistakes").hosts(["ash"]).up()?;
    let ash = lab.host("ash");
    let table = [
        ("--iface-regexp=eth0", 2, "--iface-regexp"),
        ("--liveness-ttl=soon", 2, "--liveness-ttl: `soon`"),
        ("--public-ip=192.0.2.256", 2, "--public-ip: `192.0.2.256`"),
        ("--lease-ttl=1s", 2, "--lease-ttl: `1s`"),
        ("--kube-subnet-mgr", 2, "--kube-subnet-mgr: weft leases subnets from etcd"),
        ("--network=other --etcd-endpoints=https://192.0.2.2 --etcd-cafile=/nowhere", 2, "/nowhere"),
        ("--node-id=a/b", 2, "--node-id: `a/b`"),
        // A second daemon for the same network on this host.
        ("--etcd-endpoints=http://127.0.0.1:1", 1, "another `weft overlay` runs for network weft"),
    ];
    for (flag, code, said) in table {
        let flags =
            format!("--run-dir={} --state-dir={}", ash.run_dir().display(), ash.state_dir().display());
        let answer = ash.run_for(Duration::from_secs(20), format!("weft overlay {flags} {flag}"));
        let errors: Vec<&str> = answer.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(answer.exit, weft_lab::Exit::Code(code), "{flag}: {}", answer.stderr);
        assert!(errors.len() == 1 && errors[0].contains(said), "{flag}: {}", answer.stderr);
    }
    within(SOON, || is_well(&ash));
    lab.down()
}
