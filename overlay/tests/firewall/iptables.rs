//! Opening and closing iptables, with the real programs: both back ends, both families.

use std::io::Write;
use std::process::{Command, Stdio};

use weft_kernel::iptables::{Backend, Iptables, Restore};
use weft_kernel::nft::Nft;
use weft_overlay::firewall::{forward, leftovers};

use crate::world::{World, heard, ip, net};

fn save(world: &World, tables: Iptables) -> String {
    // Counters differ with every packet, and the remarks hold the time.
    let text = world.run("host1", tables.save_program());
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap().to_owned() + "\n").collect()
}

fn restore(world: &World, tables: Iptables, restore: &Restore) {
    let mut command = Command::new(tables.restore_program());
    command.args(Restore::ARGUMENTS).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = world.inside("host1", || command.spawn().unwrap());
    child.stdin.take().unwrap().write_all(restore.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{restore}: {}", String::from_utf8_lossy(&output.stderr));
}

fn in_use(world: &World, tables: Iptables) -> bool {
    world.inside("host1", || {
        let legacy = std::fs::read_to_string(tables.legacy_tables_file());
        tables.is_in_use(&Nft::open().unwrap().tables().unwrap(), &legacy.unwrap_or_default())
    })
}

/// The program for single rules.
fn program(tables: Iptables) -> String {
    tables.save_program().replace("-save", "")
}

/// Docker's rules as dockerd 20.10 makes them, and one of the user's.
fn docker(world: &World, tables: Iptables) {
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A DOCKER-USER -i nowhere -j DROP",
        "-A DOCKER-USER -j RETURN",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ] {
        world.run("host1", &format!("{} {rule}", program(tables)));
    }
}

/// A router between a pod's network and the rest.
fn world() -> World {
    let mut world = World::new();
    world.machine("host1", &["192.0.2.1/24", "2001:db8::1/64"]);
    world.pod(1);
    world.machine("outside", &["192.0.2.9/24", "2001:db8::9/64"]);
    world.run("outside", "ip route add 10.42.0.0/16 via 192.0.2.1");
    world.run("outside", "ip route add fd42::/48 via 2001:db8::1");
    world
}

#[test]
fn docker_s_drop_is_opened_and_closed_again() {
    for tables in Iptables::ALL {
        let world = world();
        assert!(!in_use(&world, tables), "{tables:?}");
        docker(&world, tables);
        assert!(in_use(&world, tables), "{tables:?}");
        let before = save(&world, tables);
        let ruleset = world.run("host1", "nft -s list ruleset");

        let (pods, pod, outside) = if tables.ipv6 {
            ("fd42::/48", "fd42:0:0:1::2", "2001:db8::9")
        } else {
            ("10.42.0.0/16", "10.42.1.2", "192.0.2.9")
        };
        let opened = forward::open(&before, "blue", Some(net(pods)));
        restore(&world, tables, &opened);
        let after = save(&world, tables);
        assert!(forward::open(&after, "blue", Some(net(pods))).is_empty(), "{after}");
        let user = after.find("-A DOCKER-USER -i nowhere").unwrap();
        assert!(user < after.find("weft:blue").unwrap(), "the user's rules come first: {after}");

        // Both directions, which are two rules.
        let [inside, outside] = [("pod1", pod), ("outside", outside)]
            .map(|(machine, addr)| world.socket(machine, ip(addr), 9000));
        for (from, to) in [(&inside, &outside), (&outside, &inside)] {
            heard(to, b"through", || drop(from.send_to(b"through", to.local_addr().unwrap())));
        }

        restore(&world, tables, &forward::close(&after, "blue"));
        assert_eq!(save(&world, tables), before);
        assert_eq!(world.run("host1", "nft -s list ruleset"), ruleset);
        let table = program(tables);
        world.run("host1", &format!("{table} -Z FORWARD"));
        inside.send_to(b"closed", outside.local_addr().unwrap()).unwrap();
        let counted = world.run("host1", &format!("{table} -nvL FORWARD"));
        assert!(
            counted.contains("policy DROP 1 packets"),
            "{tables:?}: the same packet is dropped: {counted}"
        );
    }
}

#[test]
fn a_closed_policy_without_docker_is_opened_in_forward() {
    for tables in Iptables::ALL.into_iter().filter(|tables| !tables.ipv6) {
        let world = world();
        world.run("host1", &format!("{} -P FORWARD DROP", program(tables)));
        let before = save(&world, tables);
        let opened = forward::open(&before, "blue", Some(net("10.42.0.0/16")));
        restore(&world, tables, &opened);
        let [inside, outside] = [("pod1", "10.42.1.2"), ("outside", "192.0.2.9")]
            .map(|(machine, addr)| world.socket(machine, ip(addr), 9000));
        heard(&outside, b"through", || drop(inside.send_to(b"through", "192.0.2.9:9000")));
        // Docker comes later: the rules move to its chain.
        docker(&world, tables);
        restore(&world, tables, &forward::open(&save(&world, tables), "blue", Some(net("10.42.0.0/16"))));
        let after = save(&world, tables);
        assert_eq!(after.matches("-A DOCKER-USER -s 10.42.0.0/16 -m comment").count(), 1, "{after}");
        assert_eq!(after.matches("weft:blue").count(), 2, "{after}");
    }
}

#[test]
fn flannel_s_chains_are_taken_away() {
    for tables in Iptables::ALL.into_iter().filter(|tables| tables.backend == Backend::Nft || !tables.ipv6) {
        let world = world();
        let pods = if tables.ipv6 { "fd42::/48" } else { "10.42.0.0/16" };
        world.run("host1", &format!("{} -t nat -N OTHER", program(tables)));
        world.run("host1", &format!("{} -P FORWARD ACCEPT", program(tables)));
        let before = save(&world, tables);
        for rule in [
            "-t nat -N FLANNEL-POSTRTG".to_owned(),
            "-t nat -A POSTROUTING -m comment --comment flanneld_masq -j FLANNEL-POSTRTG".to_owned(),
            format!("-t nat -A FLANNEL-POSTRTG -s {pods} -j MASQUERADE --random-fully"),
            "-N FLANNEL-FWD".to_owned(),
            "-A FORWARD -j FLANNEL-FWD".to_owned(),
            format!("-A FLANNEL-FWD -s {pods} -j ACCEPT"),
        ] {
            world.run("host1", &format!("{} {rule}", program(tables)));
        }
        restore(&world, tables, &leftovers::iptables(&save(&world, tables)));
        assert_eq!(save(&world, tables), before, "{tables:?}");
    }
}

#[test]
fn flannel_s_nftables_are_taken_away() {
    let world = world();
    world.run("host1", "nft add table ip flannel-ipv4");
    world.run("host1", "nft add table ip6 flannel-ipv6");
    world.run("host1", "nft add table ip other");
    world.inside("host1", || {
        let mut nft = Nft::open().unwrap();
        let present = nft.tables().unwrap();
        nft.commit(&leftovers::nftables(&present)).unwrap();
        let left: Vec<String> = nft.tables().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(left, ["ip other"]);
    });
}
