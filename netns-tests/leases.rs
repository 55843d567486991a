//! Who has which subnet: joining, coming back, losing it, setting it aside.

use std::time::{Duration, Instant};

use serde_json::json;
use weft_lab::{CutFrom, Host, LabError, Pod, wait_for, within};

use crate::seen::{
    BEAT, SOON, flannels, is_well, lab, lease_key, lease_of, lossless, owner_key, put_leased, routes_to,
    says, subnet, value,
};

/// A host that starts is of use at once, and what it writes is what flanneld would.
#[test]
fn a_fresh_host_joins_within_two_seconds() -> Result<(), LabError> {
    let lab = lab("join").hosts(["ash", "birch", "cedar", "oak"]).without_daemons().up()?;
    // The promise is for a machine with time to spare; of three joins the fastest is the least disturbed.
    let mut fastest = Duration::MAX;
    for host in lab.hosts() {
        let start = Instant::now();
        host.start_overlay()?;
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest <= Duration::from_secs(2), "the fastest join took {fastest:?}");

    let (ash, etcd) = (lab.host("ash"), lab.etcd());
    let key = lease_key(&subnet(&ash)?);
    let written = etcd.get(&key)?.unwrap_or_default();
    let mac = ash.run("cat /sys/class/net/weft.1/address").ok()?;
    assert_eq!(written, flannels("192.0.2.11", mac.trim()));
    let lease = lease_of(&etcd, &key)?.expect("it dies with an etcd lease");
    let told = etcd.ctl(&["lease", "timetolive", &format!("{lease:x}")])?.ok()?;
    assert!(told.contains("granted with TTL(86400s)"), "{told}");
    let prefixes =
        ["/coreos.com/network/config", "/coreos.com/network/subnets/", "/coreos.com/network/weft/"];
    for key in etcd.keys("/")? {
        assert!(prefixes.iter().any(|prefix| key.starts_with(prefix)), "{key}");
    }
    lab.down()
}

/// ash is restarted, loses its files, moves to another address: it keeps its subnet, and its pods work.
#[test]
fn a_host_keeps_its_subnet() -> Result<(), LabError> {
    let lab = lab("keep").hosts(["ash", "birch"]).overlay_args(["--liveness-ttl=3s"]).up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    let (web, client) = (ash.pod("web")?, birch.pod("client")?);
    let first = subnet(&ash)?;
    within(SOON, || client.reaches(&web));

    let pings = client.pinger(&web, BEAT)?;
    ash.restart_overlay()?;
    assert_eq!(subnet(&ash)?, first, "a restart");
    ash.kill_overlay()?;
    std::fs::remove_file(ash.subnet_file()).expect("the daemon wrote it");
    ash.start_overlay()?;
    assert_eq!(subnet(&ash)?, first, "the subnet file was lost");
    ash.stop_overlay()?;
    std::fs::remove_dir_all(ash.state_dir().join("weft/cache")).unwrap_or_default();
    std::fs::remove_file(ash.state_dir().join("weft/cache.json")).expect("the daemon wrote it");
    ash.start_overlay()?;
    assert_eq!(subnet(&ash)?, first, "the cache was lost");
    lossless(pings);

    // The address changes under the running daemon. Its peer must follow without a restart.
    move_to(&ash, "192.0.2.99")?;
    let key = lease_key(&first);
    within(SOON, || value(&lab.etcd(), &key).map(|lease| lease["PublicIP"] == json!("192.0.2.99")));
    within(SOON, || forwards_to(&birch, "192.0.2.99"));
    within(SOON, || client.reaches(&web));
    assert_eq!(subnet(&ash)?, first, "it moved while it ran");

    // And while the daemon was down: a flanneld would have taken another subnet.
    ash.stop_overlay()?;
    move_to(&ash, "192.0.2.98")?;
    ash.start_overlay()?;
    assert_eq!(subnet(&ash)?, first, "it moved while it was down");
    within(SOON, || forwards_to(&birch, "192.0.2.98"));
    within(SOON, || client.reaches(&web));
    lab.down()
}

/// A host that ran flanneld until now has a key and no record: the address in it says whose it is.
#[test]
fn a_flannel_lease_with_our_address_becomes_ours() -> Result<(), LabError> {
    let lab = lab("adopt").hosts(["ash"]).without_daemons().up()?;
    let (ash, etcd) = (lab.host("ash"), lab.etcd());
    let (ours, theirs) = ("10.42.77.0/24", "10.42.78.0/24");
    put_leased(&etcd, &lease_key(theirs), &flannels("192.0.2.55", "0e:00:00:00:00:55"))?;
    put_leased(&etcd, &lease_key(ours), &flannels("192.0.2.11", "0e:00:00:00:00:11"))?;
    ash.start_overlay()?;
    assert_eq!(subnet(&ash)?, ours);
    assert_eq!(value(&etcd, &owner_key(ours))?["node"], json!("ash"));
    routes_to(&ash, theirs).map_err(|what| LabError::Traffic { what })?;

    // Everything on disk is lost, and the record too: the address still tells.
    ash.stop_overlay()?;
    std::fs::remove_dir_all(ash.state_dir()).expect("the daemon made it");
    std::fs::remove_file(ash.subnet_file()).expect("the daemon wrote it");
    etcd.delete(&owner_key(ours))?;
    ash.start_overlay()?;
    assert_eq!(subnet(&ash)?, ours);
    assert_eq!(value(&etcd, &owner_key(ours))?["node"], json!("ash"));
    lab.down()
}

/// etcd comes back empty under running hosts. They say again who they are, and no packet notices.
#[test]
fn a_wiped_etcd_learns_the_same_subnets() -> Result<(), LabError> {
    let lab = lab("wipe").hosts(["ash", "birch"]).overlay_args(["--liveness-ttl=3s"]).up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    let (web, client) = (ash.pod("web")?, birch.pod("client")?);
    let subnets = [subnet(&ash)?, subnet(&birch)?];
    within(SOON, || client.reaches(&web));
    let pings = client.pinger(&web, BEAT)?;
    let config = etcd.get("/coreos.com/network/config")?.unwrap_or_default();

    for wipe in [weft_lab::Etcd::wipe, weft_lab::Etcd::wipe_keeping_id] {
        wipe(&etcd)?;
        for (host, node) in subnets.iter().zip(["ash", "birch"]) {
            within(SOON, || value(&etcd, &owner_key(host)).map(|record| record["node"] == json!(node)));
            within(SOON, || {
                value(&etcd, &lease_key(host)).map(|lease| lease["BackendType"] == json!("vxlan"))
            });
        }
        etcd.put("/coreos.com/network/config", &config)?;
        within(SOON, || is_well(&ash));
        within(SOON, || is_well(&birch));
    }
    lossless(pings);
    assert_eq!([subnet(&ash)?, subnet(&birch)?], subnets);
    lab.down()
}

/// Fifty-one daemons start at once on a range of fifty. All but one get a subnet of their own; that
/// one waits, says so, and takes the first that frees.
#[test]
fn fifty_hosts_share_fifty_subnets_and_the_next_one_waits() -> Result<(), LabError> {
    let names: Vec<String> = (1..=51).map(|number| format!("host-{number}")).collect();
    let range = json!({
        "Network": "10.42.0.0/16", "SubnetMin": "10.42.1.0", "SubnetMax": "10.42.50.0",
        "Backend": {"Type": "alloc"},
    });
    let lab = lab("fifty").hosts(names).network(range).without_daemons().up()?;
    let hosts = lab.hosts();
    hosts.iter().try_for_each(Host::launch_overlay)?;
    let long = Duration::from_secs(120);
    let settled = within(long, || {
        let (ready, waiting): (Vec<&Host>, Vec<&Host>) = hosts.iter().partition(|host| is_well(host).is_ok());
        let told = waiting.len() == 1 && says(waiting[0], 503, &["all 50 are in use"]).is_ok();
        told.then_some((ready, waiting[0])).ok_or_else(|| format!("{} wait", waiting.len()))
    });
    let (ready, waiting) = settled;
    let mut subnets = ready.iter().map(|host| subnet(host)).collect::<Result<Vec<_>, _>>()?;
    subnets.sort();
    subnets.dedup();
    assert_eq!(subnets.len(), 50, "{subnets:?}");
    assert!(subnets.iter().all(|subnet| !subnet.starts_with("10.42.0.")), "{subnets:?}");
    assert!(hosts.iter().all(|host| host.overlay().is_some()), "none has ended");

    let (leaver, freed) = (ready[0], subnet(ready[0])?);
    leaver.run(format!("weft lease drain --etcd-endpoints=$WEFT_ETCD_ENDPOINTS {}", leaver.name())).ok()?;
    within(SOON, || subnet(waiting).map(|subnet| subnet == freed));
    within(SOON, || is_well(waiting));
    within(SOON, || says(leaver, 503, &["drained"]));
    lab.down()
}

/// ash is cut off while its subnet is given to cedar. When it is back it must not take it again:
/// it moves to another subnet, and its pods in the lost one are cut off and named.
#[test]
fn a_host_that_lost_its_subnet_does_not_take_it_back() -> Result<(), LabError> {
    let lab = lab("lost").hosts(["ash", "birch", "cedar"]).without_daemons().up()?;
    let (ash, birch, cedar, etcd) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"), lab.etcd());
    ash.start_overlay()?;
    birch.start_overlay()?;
    let (web, first) = (ash.pod("web")?, subnet(&ash)?);

    lab.cut("ash", CutFrom::Etcd)?;
    etcd.delete(&lease_key(&first))?;
    etcd.delete(&owner_key(&first))?;
    // What makes cedar want this one: an earlier flanneld's subnet file.
    std::fs::create_dir_all(cedar.run_dir()).expect("a directory of the lab");
    let wanted = format!("FLANNEL_SUBNET={}\n", first.replace(".0/", ".1/"));
    std::fs::write(cedar.subnet_file(), wanted).expect("a file of the lab");
    cedar.start_overlay()?;
    assert_eq!(subnet(&cedar)?, first);
    let given = etcd.get(&lease_key(&first))?;

    lab.heal("ash", &CutFrom::Etcd)?;
    let told = within(SOON, || ash.log().contains("lost the subnet").then(Instant::now));
    is_cut_off(&ash, &web, told)?;
    within(SOON, || subnet(&ash).map(|subnet| subnet != first));
    within(SOON, || says(&ash, 503, &["attachments not ready", &web.ip().to_string()]));
    assert_eq!(etcd.get(&lease_key(&first))?, given, "cedar's key was not touched");
    let reborn = cedar.pod("reborn")?;
    let client = birch.pod("client")?;
    within(SOON, || client.reaches(&reborn));
    web.remove()?;
    within(SOON, || is_well(&ash));

    // The same while ash is switched off: it comes back and finds birch's key where its own was.
    let second = subnet(&ash)?;
    ash.die()?;
    let key = lease_key(&second);
    put_leased(&etcd, &key, &flannels("192.0.2.55", "0e:00:00:00:00:55"))?;
    let given = etcd.get(&key)?;
    ash.boot()?;
    ash.start_overlay()?;
    within(SOON, || subnet(&ash).map(|subnet| subnet != second));
    assert_eq!(etcd.get(&key)?, given, "the flannel host's key was not touched");

    // A flanneld that writes over a living host's key has won, too: at once.
    let (web, third) = (ash.pod("web")?, subnet(&ash)?);
    put_leased(&etcd, &lease_key(&third), &flannels("192.0.2.56", "0e:00:00:00:00:56"))?;
    is_cut_off(&ash, &web, Instant::now())?;
    within(SOON, || subnet(&ash).map(|subnet| subnet != third));
    within(SOON, || routes_to(&ash, &third));
    let log = ash.log();
    for lost in [&first, &third] {
        assert!(log.lines().any(|line| line.contains("lost the subnet") && line.contains(lost.as_str())));
    }
    lab.down()
}

/// A reservation is for ever: no restart and no time gives its key a lease.
#[test]
fn a_reservation_outlives_restarts_and_leases() -> Result<(), LabError> {
    let short = ["--lease-ttl=2s", "--liveness-ttl=2s"];
    let lab = lab("reserve").hosts(["ash", "birch"]).overlay_args(short).without_daemons().up()?;
    let (ash, birch, etcd) = (lab.host("ash"), lab.host("birch"), lab.etcd());
    // One as people made them for flannel, by hand; one by our command, for a host that runs.
    let flannel = "10.42.99.0/24";
    etcd.put(&lease_key(flannel), r#"{"PublicIP":"192.0.2.12"}"#)?;
    ash.start_overlay()?;
    birch.start_overlay()?;
    assert_eq!(subnet(&birch)?, flannel);
    let ours = subnet(&ash)?;
    ash.run(format!("weft lease reserve --etcd-endpoints=$WEFT_ETCD_ENDPOINTS {ours}")).ok()?;
    within(SOON, || says(&ash, 200, &[]));

    for host in [&ash, &birch] {
        host.restart_overlay()?;
    }
    assert_eq!((subnet(&ash)?, subnet(&birch)?), (ours.clone(), flannel.to_owned()));
    for host in [&ash, &birch] {
        host.stop_overlay()?;
    }
    // Both are away for longer than any lease: the etcd leases of their liveness tell when.
    within(SOON, || etcd.keys("/coreos.com/network/weft/live/").map(|keys| keys.is_empty()));
    for key in [lease_key(&ours), lease_key(flannel)] {
        assert_eq!(lease_of(&etcd, &key)?, None, "{key} has no lease");
    }
    for host in [&ash, &birch] {
        host.start_overlay()?;
    }
    assert_eq!((subnet(&ash)?, subnet(&birch)?), (ours.clone(), flannel.to_owned()));
    assert_eq!(lease_of(&etcd, &lease_key(flannel))?, None);
    assert_eq!(lease_of(&etcd, &lease_key(&ours))?, None);
    let listed = ash.run("weft lease ls --etcd-endpoints=$WEFT_ETCD_ENDPOINTS").ok()?;
    assert_eq!(listed.matches("never").count(), 2, "{listed}");
    lab.down()
}

/// From this moment on the pod's link is down within a second.
fn is_cut_off(host: &Host, pod: &Pod, since: Instant) -> Result<(), LabError> {
    let alias = format!("weft:weft:pod:{}", pod.netns());
    let is_down = || {
        let links = host.run("ip -d -o link").stdout;
        let link = links.lines().find(|line| line.contains(&alias)).map(str::to_owned);
        match link {
            Some(link) if link.contains("state DOWN") => Ok(()),
            other => Err(format!("{other:?} among {links}")),
        }
    };
    wait_for(SOON, is_down).map_err(|error| LabError::Traffic { what: error.to_string() })?;
    let took = since.elapsed();
    assert!(took <= Duration::from_secs(1), "it took {took:?}");
    Ok(())
}

/// Gives a host another address, and its way out again.
fn move_to(host: &Host, address: &str) -> Result<(), LabError> {
    let line = format!(
        "link=$(ip -o -4 route show default | awk '{{print $5}}'); ip addr flush dev $link scope global; \
         ip addr add {address}/24 dev $link; ip route add default via {}",
        host.gateway()
    );
    host.run(line).ok().map(drop)
}

fn forwards_to(host: &Host, address: &str) -> Result<(), String> {
    let fdb = host.run("bridge fdb show dev weft.1").stdout;
    if fdb.contains(&format!("dst {address} ")) { Ok(()) } else { Err(fdb) }
}
