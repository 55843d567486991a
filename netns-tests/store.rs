//! The store's bad days: garbage, silence, lost leaders, compaction, no store at all. Packets flow on.

use std::time::Duration;

use serde_json::json;
use weft_lab::{CutFrom, Etcd, Host, LabError, throughout, within};

use crate::seen::{
    BEAT, SOON, flannels, is_seen_as, is_well, key, lab, lease_key, lossless, owner_key, put_leased,
    routes_to, says, subnet, value,
};

/// Keys that flannel would choke on, beside and under its own: each costs one line in the log, and no
/// route. Among them a living host's own key, which it writes again.
#[test]
fn garbage_in_the_store_takes_nothing_away() -> Result<(), LabError> {
    let lab = lab("garbage").hosts(["ash", "birch"]).up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    let flannel = "10.42.200.0/24";
    put_leased(&etcd, &lease_key(flannel), &flannels("192.0.2.55", "0e:00:00:00:00:55"))?;
    within(SOON, || routes_to(&ash, flannel));
    within(SOON, || client.reaches(&server));
    let news = ash.spawn(&["ip", "monitor", "route", "neigh"])?;
    // A route of ours comes and goes until it is seen to: from then on it listens.
    within(SOON, || {
        ash.run("ip route add blackhole 198.51.100.99; ip route del blackhole 198.51.100.99")
            .ok()
            .map_err(|error| error.to_string())?;
        news.stdout_so_far().contains("198.51.100.99").then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    let pings = client.pinger(&server, BEAT)?;

    let theirs = lease_key(&subnet(&birch)?);
    let good = value(&etcd, &theirs)?;
    let garbage = [
        (key("subnets-backup/x"), "y", true),
        (key("subnets/garbage"), "{}", true),
        (key("subnets/10.42.9.0-240"), "{}", true),
        (lease_key("10.42.9.0/24"), "{not json", true),
        (lease_key("10.42.10.0/24"), r#"{"PublicIP":"nowhere"}"#, true),
        (lease_key(flannel), "\u{1f98a}", true),
        (owner_key("10.42.11.0/24"), "[]", true),
        (key("weft/live/a node"), "", false),
        (key("weft/what-is-this"), "", true),
        (theirs.clone(), "{", false),
    ];
    for (key, value, _) in &garbage {
        etcd.put(key, value)?;
    }
    // A lease after all of that: once it is programmed, the rest has been digested.
    let last = "10.42.201.0/24";
    put_leased(&etcd, &lease_key(last), &flannels("192.0.2.56", "0e:00:00:00:00:56"))?;
    within(SOON, || routes_to(&ash, last));
    within(SOON, || value(&etcd, &theirs).map(|now| now == good));
    within(SOON, || says(&ash, 200, &[]));
    lossless(pings);
    routes_to(&ash, flannel).map_err(|what| LabError::Traffic { what })?;
    let news = news.stop().stdout;
    let deleted = |line: &&str| line.contains("Deleted") && !line.contains("198.51.100.99");
    assert_eq!(news.lines().find(deleted), None);
    let log = ash.log();
    for (key, _, named) in &garbage {
        let lines = log.lines().filter(|line| line.contains("skipped") && line.contains(&format!("{key}\"")));
        assert!(!named || lines.count() == 1, "{key} in {log}");
    }
    // Read again by a restart: still there, still forwarding.
    ash.restart_overlay()?;
    within(SOON, || client.reaches(&server));
    lab.down()
}

/// etcd freezes, then stops for two lease times. Packets flow, /readyz says what is wrong, and
/// afterwards everybody has what he had.
#[test]
fn without_etcd_for_two_lease_times_nothing_is_lost() -> Result<(), LabError> {
    let ttl = Duration::from_secs(4);
    let short = ["--lease-ttl=4s", "--liveness-ttl=3s"];
    let lab = lab("outage").hosts(["ash", "birch"]).overlay_args(short).up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    let subnets = [subnet(&ash)?, subnet(&birch)?];
    within(SOON, || client.reaches(&server));
    let pings = client.pinger(&server, BEAT)?;
    let degraded = || says(&ash, 200, &["ready, degraded", "store degraded"]);

    type Fault = fn(&Etcd) -> Result<(), LabError>;
    let faults: [(Fault, Fault, Duration); 2] =
        [(Etcd::freeze, Etcd::thaw, Duration::from_secs(1)), (Etcd::stop, Etcd::start, 2 * ttl)];
    for (begin, end, time) in faults {
        begin(&etcd)?;
        within(SOON, degraded);
        throughout(time, degraded);
        routes_to(&ash, &subnets[1]).map_err(|what| LabError::Traffic { what })?;
        end(&etcd)?;
        for host in [&ash, &birch] {
            within(SOON, || is_well(host));
        }
        for (subnet, node) in subnets.iter().zip(["ash", "birch"]) {
            within(SOON, || value(&etcd, &owner_key(subnet)).map(|record| record["node"] == json!(node)));
            within(SOON, || etcd.get(&lease_key(subnet)).map(|key| key.is_some()));
        }
    }
    assert_eq!([subnet(&ash)?, subnet(&birch)?], subnets);
    lossless(pings);
    lab.down()
}

/// While ash hears nothing, peers come, go and move, and the history of it is compacted away.
#[test]
fn what_happened_while_cut_off_and_compacted_is_caught_up_with() -> Result<(), LabError> {
    let lab = lab("compact").hosts(["ash", "birch"]).up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    let (goes, moves, comes) = ("10.42.200.0/24", "10.42.201.0/24", "10.42.202.0/24");
    put_leased(&etcd, &lease_key(goes), &flannels("192.0.2.50", "0e:00:00:00:00:50"))?;
    put_leased(&etcd, &lease_key(moves), &flannels("192.0.2.51", "0e:00:00:00:00:51"))?;
    within(SOON, || routes_to(&ash, goes).and_then(|()| routes_to(&ash, moves)));
    within(SOON, || client.reaches(&server));
    let pings = client.pinger(&server, BEAT)?;

    lab.cut("ash", CutFrom::Etcd)?;
    etcd.delete(&lease_key(goes))?;
    put_leased(&etcd, &lease_key(moves), &flannels("192.0.2.61", "0e:00:00:00:00:61"))?;
    put_leased(&etcd, &lease_key(comes), &flannels("192.0.2.52", "0e:00:00:00:00:52"))?;
    etcd.compact()?;
    within(SOON, || says(&ash, 200, &["store degraded"]));
    lab.heal("ash", &CutFrom::Etcd)?;

    within(SOON, || routes_to(&ash, comes));
    within(SOON, || routes_to(&ash, goes).is_err());
    // flannel keeps the old address of a host that moved meanwhile (its snapshot compares keys only).
    let fdb = within(SOON, || {
        let fdb = ash.run("bridge fdb show dev weft.1").stdout;
        if fdb.contains("0e:00:00:00:00:61 dst 192.0.2.61") { Ok(fdb) } else { Err(fdb) }
    });
    assert!(!fdb.contains("192.0.2.51") && !fdb.contains("192.0.2.50"), "{fdb}");
    within(SOON, || is_well(&ash));
    lossless(pings);
    lab.down()
}

/// The leader of three members is killed, and one member is enough to be too few.
#[test]
fn a_lost_leader_and_a_lost_quorum_cost_no_packet() -> Result<(), LabError> {
    let lab = lab("leader").hosts(["ash", "birch"]).etcd_members(3).up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    within(SOON, || client.reaches(&server));
    let pings = client.pinger(&server, BEAT)?;

    let leader = within(SOON, || etcd.leader().map_err(|e| e.chain()).and_then(|l| l.ok_or("none".into())));
    etcd.kill_member(&leader)?;
    let left = etcd.members().into_iter().find(|member| member.name() != leader).expect("three");
    let url = format!("http://{}:2379", left.v4());
    let late = "10.42.201.0/24";
    let value = flannels("192.0.2.56", "0e:00:00:00:00:56");
    within(SOON, || {
        let put = etcd.ctl_at(&url, &["put", "--", &lease_key(late), &value]).and_then(weft_lab::Output::ok);
        put.map_err(|error| error.chain())
    });
    within(SOON, || routes_to(&ash, late));
    within(SOON, || is_well(&ash));

    etcd.kill_member(left.name())?;
    within(SOON, || says(&ash, 200, &["store degraded"]));
    routes_to(&ash, late).map_err(|what| LabError::Traffic { what })?;
    etcd.start()?;
    within(SOON, || is_well(&ash));
    within(SOON, || is_well(&birch));
    lossless(pings);
    lab.down()
}

/// A host that boots while etcd is down goes by what it remembers; one that remembers nothing waits.
#[test]
fn a_host_starts_without_etcd() -> Result<(), LabError> {
    let lab = lab("no-etcd").hosts(["ash", "birch", "cedar"]).without_daemons().up()?;
    let (ash, birch, cedar, etcd) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"), lab.etcd());
    ash.start_overlay()?;
    birch.start_overlay()?;
    let subnets = [subnet(&ash)?, subnet(&birch)?];
    within(SOON, || routes_to(&ash, &subnets[1]));
    let server = birch.pod("server")?;
    ash.stop_overlay()?;
    etcd.stop()?;
    ash.die()?;
    ash.boot()?;

    ash.start_overlay()?;
    within(SOON, || says(&ash, 200, &["ready, degraded", "store degraded"]));
    assert_eq!(subnet(&ash)?, subnets[0]);
    let client = ash.pod("client")?;
    within(SOON, || client.reaches(&server));
    let pings = client.pinger(&server, BEAT)?;
    is_seen_as(&ash, &subnets[1], "kept").map_err(|what| LabError::Traffic { what })?;

    cedar.launch_overlay()?;
    within(SOON, || says(&cedar, 503, &["store not ready", "config not ready", "waiting for the store"]));
    etcd.start()?;
    for host in [&ash, &birch, &cedar] {
        within(SOON, || is_well(host));
    }
    assert_eq!([subnet(&ash)?, subnet(&birch)?], subnets);
    let late = cedar.pod("late")?;
    within(SOON, || late.reaches(&server));
    lossless(pings);
    let started = |host: &Host| host.log().matches("weft overlay version").count();
    assert_eq!(started(&cedar), 1, "it waited, it was not started again");
    lab.down()
}
