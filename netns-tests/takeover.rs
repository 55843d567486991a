//! A host moves from flanneld to weft and back in place: its link, its MAC, its subnet and every
//! connection stay.
//!
//! flannel's state is made by hand, as flanneld leaves it; where `flanneld` is on PATH, the same story
//! is told with it too.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weft_lab::traffic::{Endpoint, Probe};
use weft_lab::{Host, Lab, LabError, Place, Running, within};

const SOON: Duration = Duration::from_secs(60);
const CONFIG: &str = r#"{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// What flanneld has in the packet filter, by its iptables mode.
const RULES: &str = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.42.7.0/24 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.42.0.0/16 -d 10.42.7.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;
/// And by its nftables mode.
const TABLES: &str = "
table ip flannel-ipv4 {
    chain postrtg { type nat hook postrouting priority srcnat; }
}
table ip6 flannel-ipv6 {
    chain forward { type filter hook forward priority filter; }
}
";

/// A host under flannel: its subnet's third number, and its VTEP's MAC.
struct Flannels {
    host: Host,
    number: u8,
    mac: String,
}

impl Flannels {
    fn by_hand(lab: &Lab, name: &str, number: u8) -> Result<Self, LabError> {
        let host = lab.host(name);
        let mac = format!("9e:00:00:00:00:{number:02x}");
        let line = format!(
            "ip link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev eth0 local {} dstport 8472 \
             nolearning && ip address add 10.42.{number}.0/32 dev flannel.1 && ip link set flannel.1 up && \
             sysctl -qw net.ipv4.ip_forward=1",
            host.v4()
        );
        host.run(line).ok()?;
        let env = format!(
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.{number}.1/24\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ=true\n"
        );
        std::fs::create_dir_all(host.run_dir()).expect("a directory of the lab");
        std::fs::write(host.subnet_file(), env).expect("a file of the lab");
        let granted = lab.etcd().ctl(&["lease", "grant", "86400"])?.ok()?;
        let lease = granted.split_whitespace().nth(1).expect("etcdctl names the lease").to_owned();
        let value = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#,
            host.v4()
        );
        lab.etcd().ctl(&["put", "--lease", &lease, &key(number), &value])?.ok()?;
        Ok(Self { host, number, mac })
    }

    /// What flanneld sets for a peer: neighbour, FDB entry, route.
    fn knows(&self, peer: &Self) -> Result<(), LabError> {
        let (number, mac) = (peer.number, &peer.mac);
        let line = format!(
            "ip neigh replace 10.42.{number}.0 lladdr {mac} dev flannel.1 nud permanent && \
             bridge fdb replace {mac} dev flannel.1 dst {} self permanent && \
             ip route replace 10.42.{number}.0/24 via 10.42.{number}.0 dev flannel.1 onlink",
            peer.host.v4()
        );
        self.host.run(line).ok().map(drop)
    }

    /// flannel's rules in every form that it ever had.
    fn has_rules(&self) -> Result<(), LabError> {
        for restore in ["iptables-nft-restore", "iptables-legacy-restore"] {
            self.host.run_with_stdin(&[restore, "--noflush"], RULES.as_bytes()).ok()?;
        }
        self.host.run_with_stdin(&["nft", "-f", "-"], TABLES.as_bytes()).ok().map(drop)
    }

    /// A container on flannel's bridge: nothing of weft's, before or after.
    fn container(&self) -> Result<(Place, Endpoint), LabError> {
        let number = self.number;
        let place = self.host.namespace("web")?;
        let line = format!(
            "ip link add cni0 mtu 1450 type bridge && ip address add 10.42.{number}.1/24 dev cni0 && \
             ip link set cni0 up && ip link add veth0 mtu 1450 type veth peer name eth0 mtu 1450 netns {} && \
             ip link set veth0 up master cni0",
            place.netns()
        );
        self.host.run(line).ok()?;
        let address = [10, 42, number, 5];
        let line = format!(
            "ip address add 10.42.{number}.5/24 dev eth0 && ip link set eth0 up && \
             ip route add default via 10.42.{number}.1"
        );
        place.run(line).ok()?;
        let end = Endpoint::new(&place, address);
        Ok((place, end))
    }

    /// The tunnel's device, whatever it is called: it is the same one, and so is its MAC.
    fn device(&self, name: &str) -> Result<String, LabError> {
        self.host.run(format!("cat /sys/class/net/{name}/ifindex /sys/class/net/{name}/address")).ok()
    }

    /// All that flannel's peers, and flanneld when it is back, rely on.
    fn tunnel(&self) -> Result<String, LabError> {
        let shown = "ip -4 -o address show dev flannel.1 | sed 's/ *valid_lft.*//'; \
            ip route show dev flannel.1; ip neigh show dev flannel.1 nud permanent; \
            bridge fdb show dev flannel.1 | sort; ip -o link show flannel.1; cat /sys/class/net/flannel.1/ifalias";
        self.host.run(shown).ok()
    }

    fn rules(&self) -> Result<String, LabError> {
        let shown = "iptables-nft-save; iptables-legacy-save; nft list tables";
        self.host.run(shown).ok().map(|all| {
            let flannels = |line: &&str| line.to_lowercase().contains("flannel");
            all.lines().filter(flannels).collect::<Vec<_>>().join("\n")
        })
    }

    fn published(&self, lab: &Lab) -> Result<Value, LabError> {
        let value = lab.etcd().get(&key(self.number))?.unwrap_or_default();
        Ok(serde_json::from_str(&value).unwrap_or(Value::Null))
    }

    /// weft takes the host over: the same device under its own name, nothing of flannel's left.
    fn is_taken_over(&self, lab: &Lab) -> Result<(), LabError> {
        let device = self.device("flannel.1")?;
        self.host.launch_overlay_with(&["--take-over-flannel", "--ip-masq"])?;
        self.host.wait_until_ready(SOON)?;
        within(SOON, || self.host.as_planned());
        assert_eq!(self.device("weft.1")?, device, "the device is the same, and its MAC");
        within(SOON, || match self.rules() {
            Ok(rules) if rules.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let routes = self.host.run("ip route show dev weft.1").ok()?;
        assert!(routes.lines().all(|route| route.contains("proto 87")) && !routes.is_empty(), "{routes}");
        self.is_published_as(lab, &self.mac)
    }

    fn is_published_as(&self, lab: &Lab, mac: &str) -> Result<(), LabError> {
        let published = self.published(lab)?;
        assert_eq!(published["PublicIP"], self.host.v4().to_string(), "{published}");
        assert_eq!(published["BackendData"]["VtepMAC"], mac, "{published}");
        Ok(())
    }

    fn is_given_back(&self) -> Result<(), LabError> {
        assert!(self.host.stop_overlay()?, "the daemon leaves by itself");
        let host = &self.host;
        let line = format!(
            "weft cleanup --give-back-flannel --run-dir {} --state-dir {} --subnet-file {}",
            host.run_dir().display(),
            host.state_dir().display(),
            host.subnet_file().display()
        );
        let said = host.run(line).ok()?;
        assert!(said.contains("gave back link weft.1 as flannel.1"), "{said}");
        Ok(())
    }
}

fn key(number: u8) -> String {
    format!("/coreos.com/network/subnets/10.42.{number}.0-24")
}

fn lab(story: &str) -> Result<Lab, LabError> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    Lab::new(story).weft(weft).hosts(["ash", "birch"]).network(CONFIG).without_daemons().up()
}

/// A TCP connection and pings from one container to the other, to the end of the story.
struct Traffic(Vec<Probe>);

impl Traffic {
    fn between(client: &Place, server: &Endpoint) -> Result<Self, LabError> {
        within(SOON, || client.reaches(server));
        let every = Duration::from_millis(5);
        Ok(Self(vec![client.converse(server, every)?, client.pinger(server, every)?]))
    }

    /// Not a packet was lost, and the connection is the one it was.
    fn was_never_interrupted(self) -> Result<(), LabError> {
        for probe in self.0 {
            println!("{:?}", probe.stop_without_loss()?);
        }
        Ok(())
    }
}

#[test]
fn a_host_is_taken_over_from_flannel_and_given_back_without_a_lost_packet() -> Result<(), LabError> {
    let lab = lab("takeover")?;
    let (ash, birch) = (Flannels::by_hand(&lab, "ash", 7)?, Flannels::by_hand(&lab, "birch", 8)?);
    ash.knows(&birch)?;
    birch.knows(&ash)?;
    ash.has_rules()?;
    let ((client, _), (_, server)) = (ash.container()?, birch.container()?);
    let traffic = Traffic::between(&client, &server)?;
    let (flannels, subnet_file) = (ash.tunnel()?, ash.host.subnet_env()?);

    // birch still is flannel's, and its flanneld hears nothing of this.
    ash.is_taken_over(&lab)?;
    let now = ash.host.subnet_env()?;
    assert_eq!(now["FLANNEL_SUBNET"], subnet_file["FLANNEL_SUBNET"]);

    // The MAC is remembered by the lease, whatever becomes of the host's own files.
    let device = ash.device("weft.1")?;
    ash.host.kill_overlay()?;
    std::fs::remove_dir_all(ash.host.state_dir()).expect("the daemon's state");
    ash.host.start_overlay()?;
    within(SOON, || ash.host.as_planned());
    assert_eq!(ash.device("weft.1")?, device);
    ash.is_published_as(&lab, &ash.mac)?;

    birch.is_taken_over(&lab)?;
    let keys = lab.etcd().keys("/coreos.com/network/subnets/")?;
    assert_eq!(keys, [key(7), key(8)], "both kept their subnets");

    ash.is_given_back()?;
    assert_eq!(ash.tunnel()?, flannels, "as flanneld had left it");
    traffic.was_never_interrupted()?;
    lab.down()
}

#[test]
fn without_the_flag_what_flannel_left_is_a_conflict_and_is_not_touched() -> Result<(), LabError> {
    let lab = lab("leftover")?;
    let (ash, birch) = (Flannels::by_hand(&lab, "ash", 7)?, Flannels::by_hand(&lab, "birch", 8)?);
    ash.knows(&birch)?;
    ash.has_rules()?;
    let (tunnel, rules) = (ash.tunnel()?, ash.rules()?);
    ash.host.launch_overlay()?;
    within(SOON, || {
        let answer = ash.host.api("/readyz").map_err(|error| error.chain())?;
        let told =
            answer.status == 503 && ["flannel.1", "VNI 1"].iter().all(|word| answer.body.contains(word));
        if told { Ok(()) } else { Err(format!("{} {}", answer.status, answer.body)) }
    });
    assert_eq!((ash.tunnel()?, ash.rules()?), (tunnel, rules));
    lab.down()
}

/// flanneld itself, where it is installed.
mod flanneld {
    use super::*;

    fn is_on_path() -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join("flanneld").is_file())
    }

    fn starts(lab: &Lab, host: &Host) -> Result<Running, LabError> {
        let endpoints = format!("-etcd-endpoints={}", lab.etcd().endpoints());
        let subnet_file = format!("-subnet-file={}", host.subnet_file().display());
        std::fs::create_dir_all(host.run_dir()).expect("a directory of the lab");
        host.spawn(&["flanneld", &endpoints, &subnet_file, "-ip-masq", "-iface=eth0"])
    }

    fn under_flanneld(lab: &Lab, name: &str) -> Result<(Flannels, Running), LabError> {
        let host = lab.host(name);
        let flanneld = starts(lab, &host)?;
        let subnet = within(SOON, || host.subnet());
        let number = subnet.to_string().split('.').nth(2).and_then(|n| n.parse().ok()).expect("10.42.N.0/24");
        let mac = host.run("cat /sys/class/net/flannel.1/address").ok()?.trim().to_owned();
        host.run("sysctl -qw net.ipv4.ip_forward=1").ok()?;
        Ok((Flannels { host, number, mac }, flanneld))
    }

    #[test]
    fn the_same_with_flanneld_itself_if_it_is_installed() -> Result<(), LabError> {
        if !is_on_path() {
            println!("flanneld is not on PATH: told with flannel's state made by hand only");
            return Ok(());
        }
        let lab = lab("flanneld")?;
        let ((ash, ashs), (birch, _birchs)) = (under_flanneld(&lab, "ash")?, under_flanneld(&lab, "birch")?);
        let ((client, _), (_, server)) = (ash.container()?, birch.container()?);
        let traffic = Traffic::between(&client, &server)?;
        let device = ash.device("flannel.1")?;

        drop(ashs);
        ash.is_taken_over(&lab)?;
        ash.is_given_back()?;
        let revision = lab.etcd().revision()?;
        let _again = starts(&lab, &ash.host)?;
        // It writes its lease anew, with the link it found.
        within(SOON, || lab.etcd().revision().is_ok_and(|now| now > revision));
        within(SOON, || ash.rules().is_ok_and(|rules| !rules.is_empty()));
        assert_eq!(ash.device("flannel.1")?, device);
        ash.is_published_as(&lab, &ash.mac)?;
        traffic.was_never_interrupted()?;
        lab.down()
    }
}
