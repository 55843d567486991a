//! What a lab promises without any overlay: hosts, an underlay to break, and nothing left behind.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use weft_lab::traffic::Endpoint;
use weft_lab::{CutFrom, Exit, Lab, LabError, Offloads, ProcessId, within};

/// Long enough for a starved machine. What is waited for takes milliseconds.
const SOON: Duration = Duration::from_secs(30);

/// A lab whose hosts have no daemon.
fn lab(story: &str) -> weft_lab::Builder {
    Lab::new(story).hosts(["ash", "birch"]).etcd_members(0).without_daemons()
}

/// Network namespaces whose names begin so.
fn namespaces(prefix: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Mounts that speak of this.
fn mounts(word: &str) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
}

#[test]
fn hosts_reach_each_other_the_router_and_the_outside() -> Result<(), LabError> {
    let lab = lab("reach").hosts_on(2, ["cedar"]).up()?;
    let (ash, birch, cedar) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"));
    within(SOON, || ash.reaches(&birch));
    within(SOON, || ash.reaches(Endpoint::new(&birch, birch.v6())));
    within(SOON, || ash.reaches(&cedar));
    within(SOON, || ash.reaches(Endpoint::new(&cedar, cedar.v6())));
    within(SOON, || cedar.reaches(&lab.outside()));
    within(SOON, || lab.outside().reaches(&ash));
    let whoami = lab.outside().tcp_whoami()?;
    assert_eq!(ash.seen_as(whoami.at(lab.outside().v4().into()))?, ash.v4());
    lab.down()
}

#[test]
fn labs_of_different_names_coexist_at_the_same_addresses() -> Result<(), LabError> {
    let (blue, green) = (lab("blue").up()?, lab("green").up()?);
    assert_eq!(blue.host("ash").v4(), green.host("ash").v4());
    let listener = blue.host("birch").tcp_echo()?;
    let address = listener.at(blue.host("birch").v4().into());
    blue.host("ash").tcp_connect(address)?;
    green.host("ash").tcp_connect(address).expect_err("nobody listens in the other lab");
    blue.down()?;
    within(SOON, || green.host("ash").reaches(&green.host("birch")));
    green.down()
}

#[test]
fn nothing_is_left_behind() -> Result<(), LabError> {
    let lab = Lab::new("trace").hosts(["ash", "birch"]).up()?;
    let prefix = format!("weft-{}-", lab.name());
    let (dir, etcd) = (lab.dir().to_owned(), lab.record()?.daemons["etcd"]);
    let sleeper = lab.host("ash").spawn(&["sleep", "1000"])?;
    let orphan: i32 = lab
        .host("birch")
        .run("setsid sleep 1000 >/dev/null 2>&1 & echo $!")
        .ok()?
        .trim()
        .parse()
        .expect("a pid");
    let orphan = ProcessId::of(orphan).expect("a session of its own outlives the command");
    lab.host("ash").namespace("bare")?;
    let names = ["ash", "ash-bare", "birch", "etcd", "lan", "outside", "router"];
    assert_eq!(namespaces(&prefix), names.map(|name| format!("{prefix}{name}")).into());
    assert!(etcd.is_alive() && dir.join("lab.json").exists());
    lab.down()?;
    assert_eq!(namespaces(&prefix), BTreeSet::new());
    assert_eq!(mounts(&prefix), Vec::<String>::new());
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert!(!etcd.is_alive() && !orphan.is_alive());
    assert_eq!(sleeper.wait(SOON).exit, Exit::Signal(9));
    Ok(())
}

#[test]
fn a_cut_cuts_exactly_what_it_says_and_heals() -> Result<(), LabError> {
    let lab = Lab::new("cut").hosts(["ash", "birch", "cedar"]).without_daemons().up()?;
    let (ash, birch, cedar) = (lab.host("ash"), lab.host("birch"), lab.host("cedar"));
    let etcd = &lab.etcd().members()[0];
    let table = [
        // whom ash is cut from             etcd   birch  cedar  the router
        (CutFrom::Etcd, [false, true, true, true]),
        (CutFrom::peer("birch"), [true, false, true, true]),
        (CutFrom::All, [false, false, false, false]),
    ];
    let far =
        [Endpoint::from(etcd), (&birch).into(), (&cedar).into(), Endpoint::new(&lab.router(), ash.gateway())];
    for (from, expected) in table {
        lab.cut("ash", from.clone())?;
        // A host that flushes its own rules does not undo it.
        ash.run("nft flush ruleset").ok()?;
        for (far, expected) in far.iter().zip(expected) {
            if expected {
                within(SOON, || ash.reaches(far));
            } else {
                let reached = ash.reaches(far);
                reached.expect_err(&format!("{} although cut from {from:?}", far.address));
            }
        }
        within(SOON, || birch.reaches(&cedar));
        lab.heal("ash", &from)?;
        far.iter().for_each(|far| within(SOON, || ash.reaches(far)));
    }
    lab.down()
}

#[test]
fn a_cut_across_the_router_leaves_the_other_segment() -> Result<(), LabError> {
    let lab = lab("far-cut").hosts_on(2, ["cedar", "dogwood"]).up()?;
    lab.cut("ash", CutFrom::peer("cedar"))?;
    let (ash, cedar, dogwood) = (lab.host("ash"), lab.host("cedar"), lab.host("dogwood"));
    within(SOON, || ash.reaches(&dogwood));
    ash.reaches(&cedar).expect_err("cut");
    cedar.reaches(Endpoint::new(&ash, ash.v6())).expect_err("cut in IPv6, and from the other side");
    lab.down()
}

#[test]
fn loss_loses_about_as_many_as_asked() -> Result<(), LabError> {
    let lab = lab("loss").up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    within(SOON, || ash.reaches(&birch));
    lab.lose("birch", 20)?;
    // Lost on the way there or back: 1 - 0.8 * 0.8 = 36 %. ARP may be lost too, for a second at a time.
    let probe = ash.udp_probe(&birch, Duration::from_millis(2))?;
    within(SOON, || probe.so_far().sent >= 1000);
    let report = probe.stop();
    let lost = report.lost() as f64 / report.sent as f64;
    assert!((0.2..0.7).contains(&lost), "{lost} of {report:?}");
    lab.lose("birch", 0)?;
    within(SOON, || ash.reaches(&birch));
    let probe = ash.udp_probe(&birch, Duration::from_millis(2))?;
    within(SOON, || probe.so_far().sent >= 200);
    probe.stop_without_loss()?;
    lab.down()
}

#[test]
fn shaping_gives_about_the_rate() -> Result<(), LabError> {
    let lab = lab("shape").up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    within(SOON, || ash.reaches(&birch));
    lab.shape(100)?;
    let shaped = ash.sends(&birch, 16 << 20)?.gbit_per_second();
    // The shaper's burst and a starved machine pull in different directions.
    assert!((0.03..0.15).contains(&shaped), "{shaped} Gbit/s where 0.1 was asked");
    lab.unshape()?;
    let free = ash.sends(&birch, 16 << 20)?.gbit_per_second();
    assert!(free > shaped, "{free} Gbit/s unshaped, {shaped} shaped");
    lab.down()
}

#[test]
fn offloads_are_set_on_every_veth_and_named() -> Result<(), LabError> {
    let lab = lab("offloads").up()?;
    let set = lab.set_offloads(Offloads::Off)?;
    // Each of ash, birch and outside has two ends, and so has the router on two segments.
    assert_eq!(set.len(), 10, "{set:#?}");
    let features = |place: &weft_lab::Place, link: &str| place.run(format!("ethtool -k {link}")).ok();
    for shown in [features(&lab.host("ash"), "eth0")?, features(&lab.lan(), "ash")?] {
        for feature in ["tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload"]
        {
            assert!(shown.contains(&format!("{feature}: off")), "{feature} in {shown}");
        }
    }
    lab.set_offloads(Offloads::NoTso)?;
    let shown = features(&lab.host("ash"), "eth0")?;
    assert!(shown.contains("generic-receive-offload: on") && shown.contains("tcp-segmentation-offload: off"));
    lab.host("ash").sends(&lab.host("birch"), 1 << 20)?;
    lab.down()
}

#[test]
fn a_small_hop_answers_large_packets_with_icmp() -> Result<(), LabError> {
    let lab = lab("pmtu").hosts_on(2, ["cedar"]).up()?;
    let (ash, cedar) = (lab.host("ash"), lab.host("cedar"));
    within(SOON, || ash.reaches(&cedar));
    lab.set_router_mtu(Some(1400))?;
    for (from, to) in [(&ash, &cedar), (&cedar, &ash)] {
        for to in [Endpoint::from(to), Endpoint::new(to, to.v6())] {
            // 1452 bytes of ICMP make a packet of at least 1480 bytes. The answer names the hop's MTU.
            let large = from.run(format!("ping -n -c 1 -W 2 -M do -s 1452 {}", to.address));
            let said = large.stdout.clone() + &large.stderr;
            assert!(!large.success() && said.contains("1400"), "{said}");
            from.sends(to, 1 << 20)?;
        }
    }
    lab.set_router_mtu(None)?;
    ash.run("ip route flush cache; ip -6 route flush cache").ok()?;
    within(SOON, || ash.run(format!("ping -n -c 1 -W 2 -M do -s 1452 {}", cedar.v4())).ok());
    lab.down()
}

#[test]
fn a_smaller_mtu_is_set_at_both_ends() -> Result<(), LabError> {
    let lab = lab("mtu").up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    lab.set_mtu(1280)?;
    within(SOON, || ash.reaches(&birch));
    let refused = ash.run(format!("ping -n -c 1 -W 2 -M do -s 1300 {}", birch.v4()));
    assert!(!refused.success(), "{}", refused.stdout);
    ash.sends(&birch, 1 << 20)?;
    lab.down()
}

#[test]
fn a_host_that_loses_power_is_gone_and_comes_back_empty() -> Result<(), LabError> {
    let lab = lab("power").up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    within(SOON, || ash.reaches(&birch));
    let sleeper = birch.spawn(&["sleep", "1000"])?;
    birch.run("ip link add name left type bridge").ok()?;
    std::fs::create_dir_all(birch.state_dir()).expect("a directory of the lab's own");
    std::fs::create_dir_all(birch.run_dir()).expect("a directory of the lab's own");
    // A thread in the namespace keeps it from vanishing; the cable is out all the same.
    let echo = birch.udp_echo()?;
    birch.die()?;
    assert!(!birch.is_on()?);
    assert_eq!(sleeper.wait(SOON).exit, Exit::Signal(9));
    ash.reaches(&birch).expect_err("nobody answers");
    drop(echo);
    birch.boot()?;
    assert!(birch.is_on()?);
    within(SOON, || ash.reaches(&birch));
    assert!(!birch.run("ip link show left").success(), "links do not survive a power cut");
    assert!(birch.state_dir().exists(), "disks do");
    assert!(!birch.run_dir().exists(), "/run does not");
    lab.down()
}

#[test]
fn a_pulled_cable_comes_back() -> Result<(), LabError> {
    let lab = lab("cable").up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    birch.unplug()?;
    ash.reaches(&birch).expect_err("no cable");
    birch.plug()?;
    within(SOON, || ash.reaches(&birch));
    lab.down()
}

#[test]
fn commands_are_bounded_and_their_exit_is_told() -> Result<(), LabError> {
    let lab = lab("commands").up()?;
    let ash = lab.host("ash");
    assert_eq!(ash.run("exit 7").exit, Exit::Code(7));
    assert_eq!(ash.run("kill -9 $$").exit, Exit::Signal(9));
    let limit = Duration::from_millis(200);
    let start = Instant::now();
    assert_eq!(ash.run_for(limit, "sleep 1000").exit, Exit::TimedOut(limit));
    assert!(start.elapsed() < SOON);
    let said = ash.run("echo oops >&2; exit 1").ok().expect_err("exit 1").to_string();
    assert!(said.contains("oops") && said.contains("exited with 1"), "{said}");
    assert_eq!(ash.run_with_stdin(&["tr", "a-z", "A-Z"], b"weft").ok()?, "WEFT");
    lab.down()
}

#[test]
fn bytes_arrive_whole_and_conversations_tell_their_pauses() -> Result<(), LabError> {
    let lab = lab("traffic").up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    within(SOON, || ash.reaches(&birch));
    let transfer = ash.sends(&birch, (100 << 20) + 17)?;
    assert_eq!((transfer.bytes, transfer.sha256.len()), ((100 << 20) + 17, 64));
    let talk = ash.converse(&birch, Duration::from_millis(10))?;
    let pings = ash.pinger(Endpoint::new(&birch, birch.v6()), Duration::from_millis(10))?;
    within(SOON, || talk.so_far().received >= 20 && pings.so_far().received >= 20);
    birch.unplug()?;
    let silence = Duration::from_secs(1);
    within(SOON, || talk.so_far().longest_pause >= silence);
    birch.plug()?;
    let so_far = talk.so_far().received;
    within(SOON, || talk.so_far().received > so_far);
    let (talk, pings) = (talk.stop(), pings.stop());
    assert!(talk.broken.is_none() && talk.lost() == 0, "TCP survives: {talk:?}");
    assert!(talk.longest_pause >= silence);
    assert!(pings.lost() > 0, "pings do not: {pings:?}");
    lab.down()
}

#[test]
fn a_lab_that_is_up_is_not_raised_twice() -> Result<(), LabError> {
    let name = format!("t-twice-{}", std::process::id());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let raise = || Lab::named(&name).etcd_members(0).dir(dir.path()).up();
    raise()?;
    let again = raise().expect_err("it is up").to_string();
    assert!(again.contains(&format!("weft down --name {name}")), "{again}");
    assert_eq!(weft_lab::list(dir.path())?, std::slice::from_ref(&name));
    assert_eq!(Lab::open(dir.path(), &name)?.name(), name);
    assert!(weft_lab::down(dir.path(), &name)?);
    assert!(!weft_lab::down(dir.path(), &name)?, "the second time there is nothing to do");
    assert_eq!(namespaces(&format!("weft-{name}-")), BTreeSet::new());
    Ok(())
}

#[test]
fn a_lab_that_cannot_be_raised_leaves_nothing() {
    let name = format!("t-fails-{}", std::process::id());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let missing = Path::new("/nowhere/weft");
    let error =
        Lab::named(&name).hosts(["ash"]).weft(missing).dir(dir.path()).up().expect_err("no such binary");
    assert!(error.to_string().contains("ash"), "{error}");
    assert_eq!(namespaces(&format!("weft-{name}-")), BTreeSet::new());
    assert!(!dir.path().join(&name).exists());
}
