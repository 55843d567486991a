//! Who is in the data path: hosts that die leave it soon, hosts that only look dead stay.

use std::time::{Duration, Instant};

use weft_lab::{CutFrom, Host, LabError, throughout, within};

use crate::seen::{BEAT, SOON, forgot, is_seen_as, is_well, lab, lossless, routes_to, says, subnet};

/// The promise: a dead host is out of its peers' kernels within 15 s, by default.
const DROPPED: Duration = Duration::from_secs(15);

/// cedar loses power, is dropped, and comes back to its subnet.
#[test]
fn a_dead_host_leaves_within_fifteen_seconds_and_keeps_its_subnet() -> Result<(), LabError> {
    let lab = lab("dead").hosts(["ash", "birch", "cedar"]).up()?;
    let (ash, birch, cedar) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"));
    let (client, server) = (ash.pod("client")?, birch.pod("server")?);
    let lost = subnet(&cedar)?;
    within(SOON, || client.reaches(&server));
    within(SOON, || routes_to(&ash, &lost).and_then(|()| routes_to(&birch, &lost)));
    let pings = client.pinger(&server, BEAT)?;

    cedar.die()?;
    let died = Instant::now();
    within(DROPPED, || forgot(&ash, &lost).and_then(|()| forgot(&birch, &lost)));
    assert!(died.elapsed() <= DROPPED, "{:?}", died.elapsed());
    let traces = "ip -d neigh show dev weft.1; bridge fdb show dev weft.1; nft list table inet weft-weft";
    let address = lost.replace("/24", "");
    let seen = ash.run(traces).ok()?;
    assert!(!seen.contains(&address) && !seen.contains("192.0.2.13"), "{seen}");
    within(SOON, || is_seen_as(&ash, &lost, "gone"));
    within(SOON, || is_well(&ash));

    cedar.boot()?;
    cedar.start_overlay()?;
    assert_eq!(subnet(&cedar)?, lost);
    let reborn = cedar.pod("reborn")?;
    within(SOON, || client.reaches(&reborn));
    lossless(pings);
    lab.down()
}

/// birch is cut off from etcd, and oak's daemon is killed: both look dead to the store, and both
/// answer. Nobody loses a packet.
#[test]
fn a_host_that_only_looks_dead_stays() -> Result<(), LabError> {
    let names = ["ash", "birch", "cedar", "elm", "oak", "pine"];
    let lab = lab("looks-dead").hosts(names).overlay_args(["--liveness-ttl=3s"]).up()?;
    let (ash, birch, oak) = (lab.host("ash"), lab.host("birch"), lab.host("oak"));
    let (client, on_birch, on_oak) = (ash.pod("client")?, birch.pod("web")?, oak.pod("web")?);
    within(SOON, || client.reaches(&on_birch));
    within(SOON, || client.reaches(&on_oak));
    let pings = [
        client.pinger(&on_birch, BEAT)?,
        client.pinger(&on_oak, BEAT)?,
        on_birch.pinger(&client, BEAT)?,
        on_oak.pinger(&on_birch, BEAT)?,
    ];
    lab.cut("birch", CutFrom::Etcd)?;
    oak.kill_overlay()?;
    let (birchs, oaks) = (subnet(&birch)?, subnet(&oak)?);
    let silent = || is_seen_as(&ash, &birchs, "silent").and_then(|()| is_seen_as(&ash, &oaks, "silent"));
    within(SOON, silent);
    // Longer than the time after which a dead one would have left: suspicion, grace, probes.
    throughout(Duration::from_secs(5), silent);
    within(SOON, || says(&birch, 200, &["store degraded"]));
    routes_to(&ash, &birchs).map_err(|what| LabError::Traffic { what })?;

    lab.heal("birch", &CutFrom::Etcd)?;
    oak.start_overlay()?;
    within(SOON, || is_seen_as(&ash, &birchs, "live").and_then(|()| is_seen_as(&ash, &oaks, "live")));
    assert_eq!((subnet(&birch)?, subnet(&oak)?), (birchs, oaks));
    pings.into_iter().for_each(lossless);
    lab.down()
}

/// Two of three peers fall silent together. That is more likely ash's own trouble, so that it keeps
/// them; once most are back, the one that is not is dropped.
#[test]
fn when_most_hosts_fall_silent_together_nothing_is_dropped() -> Result<(), LabError> {
    let names = ["ash", "birch", "cedar", "oak"];
    let lab = lab("most").hosts(names).overlay_args(["--liveness-ttl=3s"]).up()?;
    let ash = lab.host("ash");
    let dead: Vec<Host> = vec![lab.host("cedar"), lab.host("oak")];
    let lost = [subnet(&dead[0])?, subnet(&dead[1])?];
    within(SOON, || lost.iter().try_for_each(|subnet| routes_to(&ash, subnet)));
    dead.iter().try_for_each(Host::die)?;
    let kept = || {
        lost.iter().try_for_each(|lost| {
            is_seen_as(&ash, lost, "kept")?;
            routes_to(&ash, lost)
        })
    };
    within(SOON, kept);
    throughout(Duration::from_secs(8), kept);

    dead[0].boot()?;
    dead[0].start_overlay()?;
    within(SOON, || is_seen_as(&ash, &lost[0], "live"));
    within(SOON, || forgot(&ash, &lost[1]));
    routes_to(&ash, &lost[0]).map_err(|what| LabError::Traffic { what })?;
    lab.down()
}
