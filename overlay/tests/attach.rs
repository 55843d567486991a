//! Pods are wired and unwired for real: a namespace as the host, namespaces as pods.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use weft_kernel::netns::{NetNs, run_in};
use weft_overlay::attach::range::Range;
use weft_overlay::attach::records::Records;
use weft_overlay::attach::site::{Mode, Site};
use weft_overlay::attach::{AttachError, Attacher, Expected};
use weft_overlay::cni;

/// A host in a namespace of its own, with a daemon's offer and nothing else.
struct Host {
    ns: NetNs,
    dir: tempfile::TempDir,
}

/// A pod's namespace, kept by a descriptor and named by a path that any process can open.
struct Pod {
    ns: NetNs,
    name: String,
}

impl Host {
    fn new(mode: Mode) -> Self {
        let host = Self { ns: NetNs::anonymous().unwrap(), dir: tempfile::tempdir().unwrap() };
        let subnets: Vec<IpNetwork> =
            vec!["10.42.7.0/24".parse().unwrap(), "fd00:0:0:7::/64".parse().unwrap()];
        let bridge = (mode == Mode::Bridge).then(|| Site::bridge_name("weft").to_string());
        let site = Site {
            network: "weft".into(),
            networks: vec!["10.42.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
            ranges: subnets.iter().filter_map(|subnet| Range::of_subnet(*subnet)).collect(),
            subnets,
            mtu: 1450,
            mode,
            bridge: bridge.clone(),
        };
        let path = Site::path(host.dir.path(), "weft");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, serde_json::to_vec(&site).unwrap()).unwrap();
        host.ip("link set lo up");
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        if let Some(bridge) = bridge {
            host.ip(&format!("link add {bridge} up type bridge"));
            host.ip(&format!("addr add 10.42.7.1/24 dev {bridge}"));
            host.ip(&format!("addr add fd00:0:0:7::1/64 dev {bridge} nodad"));
        }
        host
    }

    fn attacher(&self) -> Attacher {
        Attacher::new(self.dir.path(), &self.dir.path().join("state"), "weft")
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(&self.ns, work).unwrap()
    }

    fn run(&self, line: &str) -> String {
        output(&self.ns, line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn ip(&self, args: &str) -> String {
        self.run(&format!("ip {args}"))
    }

    /// Links by name and routes, without the states that a bridge without ports changes by itself.
    fn objects(&self) -> (Vec<String>, Vec<String>) {
        let words = |text: String, keep: usize| -> Vec<String> {
            let line = |line: &str| line.split_whitespace().take(keep).collect::<Vec<_>>().join(" ");
            text.lines().map(line).collect()
        };
        let routes = self.ip("-4 route") + &self.ip("-6 route");
        (words(self.ip("-br link"), 1), words(routes, 3))
    }

    fn attach(&self, pod: &Pod, id: &str) -> Vec<IpAddr> {
        let attached = self.inside(|| self.attacher().attach(id, "eth0", &pod.path(), &[]));
        attached.unwrap_or_else(|error| panic!("attach {id}: {error}")).record.addresses
    }
}

impl Pod {
    fn new(tag: &str) -> Self {
        let name = format!("weft-t-attach-{}-{tag}", std::process::id());
        Self { ns: NetNs::create(&name).unwrap(), name }
    }

    fn path(&self) -> PathBuf {
        Path::new(weft_kernel::netns::RUN_DIR).join(&self.name)
    }

    fn pings(&self, addr: IpAddr) -> bool {
        output(&self.ns, &format!("ping -n -c 1 -W 5 {addr}")).is_ok()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.name);
    }
}

fn output(ns: &NetNs, line: &str) -> Result<String, String> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = run_in(ns, || command.output()).unwrap().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stdout) + &text(&output.stderr))
    }
}

/// Pods reach the host, each other and back, in both families, and leave nothing when they go.
fn pods_reach_each_other(mode: Mode, tag: &str) {
    let host = Host::new(mode);
    let before = host.objects();
    let (a, b) = (Pod::new(&format!("{tag}-a")), Pod::new(&format!("{tag}-b")));
    let (of_a, of_b) = (host.attach(&a, "a"), host.attach(&b, "b"));
    assert_eq!(of_a, ["10.42.7.2".parse::<IpAddr>().unwrap(), "fd00:0:0:7::2".parse().unwrap()]);
    for addr in &of_b {
        assert!(a.pings(*addr), "a to {addr}\n{}", host.ip("route"));
    }
    for addr in &of_a {
        assert!(b.pings(*addr), "b to {addr}");
        assert!(output(&host.ns, &format!("ping -n -c 1 -W 5 {addr}")).is_ok(), "host to {addr}");
    }
    let expected = host.inside(|| host.attacher().check("a", "eth0", &a.path(), &Expected::default()));
    expected.unwrap();
    for id in ["a", "b", "b"] {
        host.inside(|| host.attacher().detach(id, "eth0")).unwrap();
    }
    assert_eq!(host.objects(), before);
}

#[test]
fn routed_pods_reach_each_other() {
    pods_reach_each_other(Mode::Routed, "routed");
}

#[test]
fn pods_on_the_bridge_reach_each_other() {
    pods_reach_each_other(Mode::Bridge, "bridge");
}

/// A pod that sends with another pod's address is not heard.
#[test]
fn a_routed_pod_cannot_borrow_an_address() {
    let host = Host::new(Mode::Routed);
    let (a, b) = (Pod::new("spoof-a"), Pod::new("spoof-b"));
    host.attach(&a, "a");
    let of_b = host.attach(&b, "b");
    assert!(a.pings(of_b[0]));
    output(&a.ns, "ip addr add 10.42.7.77/32 dev eth0").unwrap();
    assert!(output(&a.ns, &format!("ping -n -c 1 -W 1 -I 10.42.7.77 {}", of_b[0])).is_err());
}

#[test]
fn the_same_attachment_again_gets_the_same_addresses() {
    let host = Host::new(Mode::Routed);
    let pod = Pod::new("again");
    let first = host.attach(&pod, "a");
    assert_eq!(host.attach(&pod, "a"), first);
    assert!(output(&host.ns, &format!("ping -n -c 1 -W 5 {}", first[0])).is_ok());
}

/// An interface of that name is already in the pod: refused, and neither it nor anything else is touched.
#[test]
fn a_failed_attachment_leaves_nothing() {
    let host = Host::new(Mode::Routed);
    let pod = Pod::new("taken");
    output(&pod.ns, "ip link add eth0 type bridge").unwrap();
    let before = host.ip("-br link");
    let error = host.inside(|| host.attacher().attach("a", "eth0", &pod.path(), &[])).unwrap_err();
    assert!(matches!(error, AttachError::Refused(_)), "{error}");
    assert_eq!(host.ip("-br link"), before);
    assert!(output(&pod.ns, "ip -br link show eth0").is_ok());
    let (other, freed) = (Pod::new("taken-other"), "10.42.7.2".parse::<IpAddr>().unwrap());
    let again = host.inside(|| host.attacher().attach("b", "eth0", &other.path(), &[freed]));
    assert_eq!(again.unwrap().record.addresses[0], freed, "the address is free again");
}

#[test]
fn a_pod_in_the_hosts_namespace_is_refused() {
    let host = Host::new(Mode::Routed);
    let error =
        host.inside(|| host.attacher().attach("a", "eth0", Path::new("/proc/thread-self/ns/net"), &[]));
    assert!(matches!(error, Err(AttachError::HostNamespace { .. })), "{error:?}");
}

/// One CNI call, as a runtime makes it.
fn call(host: &Host, command: &str, id: &str, pod: Option<&Pod>, extra: Value) -> (Option<Value>, bool) {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "weft",
        "runDir": host.dir.path(), "stateDir": host.dir.path().join("state"),
    });
    conf.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
    let env = |name: &str| match name {
        "CNI_COMMAND" => Some(command.to_owned()),
        "CNI_CONTAINERID" => Some(id.to_owned()),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        "CNI_NETNS" => pod.map(|pod| pod.path().display().to_string()),
        _ => None,
    };
    host.inside(|| cni::answer(env, conf.to_string().as_bytes()))
}

/// ADD, CHECK, GC, DEL, STATUS and VERSION, in a runtime's order.
#[test]
fn the_cni_plugin_serves_a_pods_whole_life() {
    let host = Host::new(Mode::Routed);
    let (a, b) = (Pod::new("cni-a"), Pod::new("cni-b"));
    assert_eq!(call(&host, "STATUS", "", None, json!({})), (None, true));
    let (versions, _) = call(&host, "VERSION", "", None, json!({}));
    assert_eq!(versions.unwrap()["supportedVersions"][3], "1.0.0");

    let (result, ok) = call(&host, "ADD", "a", Some(&a), json!({}));
    let result = result.unwrap();
    assert!(ok, "{result}");
    assert_eq!(result["ips"][0]["address"], "10.42.7.2/32");
    assert_eq!(result["interfaces"][1]["sandbox"], json!(a.path()));
    assert!(call(&host, "ADD", "b", Some(&b), json!({})).1);
    assert_eq!(call(&host, "CHECK", "a", Some(&a), json!({"prevResult": result})), (None, true));

    // Somebody takes the route away, or the way out of the pod: CHECK says so.
    let broken = |missing: &str| {
        let (refusal, ok) = call(&host, "CHECK", "a", Some(&a), json!({"prevResult": result}));
        assert!(!ok && refusal.as_ref().unwrap()["msg"].as_str().unwrap().contains(missing), "{refusal:?}");
    };
    let host_route = host.ip("route show 10.42.7.2");
    host.ip("route del 10.42.7.2");
    broken("10.42.7.2/32");
    host.ip(&format!("route add {}", host_route.trim()));
    output(&a.ns, "ip route del default").unwrap();
    broken("0.0.0.0/0 via 169.254.1.1");

    let keep_b = json!({"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]});
    assert_eq!(call(&host, "GC", "", None, keep_b), (None, true));
    assert!(!call(&host, "CHECK", "a", Some(&a), json!({"prevResult": result})).1, "a is collected");
    assert_eq!(call(&host, "DEL", "b", None, json!({})), (None, true));
    assert_eq!(call(&host, "DEL", "b", None, json!({})), (None, true), "DEL again");

    std::fs::remove_file(Site::path(host.dir.path(), "weft")).unwrap();
    let (refusal, ok) = call(&host, "ADD", "a", Some(&a), json!({}));
    assert_eq!((refusal.unwrap()["code"].as_u64(), ok), (Some(11), false), "try again later");
    assert_eq!(call(&host, "STATUS", "", None, json!({})).0.unwrap()["code"], 50);
}

fn code(answer: (Option<Value>, bool)) -> Option<u64> {
    let (answer, ok) = answer;
    if ok { None } else { answer.expect("a refusal is never silent")["code"].as_u64() }
}

fn pods(host: &Host) -> Vec<String> {
    let records = Records::new(&host.dir.path().join("state/weft")).list().unwrap();
    let mut ids: Vec<String> = records.into_iter().map(|record| record.id).collect();
    ids.sort();
    ids
}

#[test]
fn an_interface_that_is_there_is_refused_and_stays() {
    let host = Host::new(Mode::Routed);
    let pod = Pod::new("cni-twice");
    assert!(call(&host, "ADD", "a", Some(&pod), json!({})).1);
    for id in ["a", "b"] {
        assert_eq!(code(call(&host, "ADD", id, Some(&pod), json!({}))), Some(4), "{id}");
    }
    assert!(output(&host.ns, "ping -n -c 1 -W 5 10.42.7.2").is_ok());
    assert_eq!(pods(&host), ["a"]);
}

/// Runtimes and weft itself share a network: each one's list names only its own.
#[test]
fn garbage_is_collected_in_the_name_it_was_attached_in() {
    let host = Host::new(Mode::Routed);
    let (a, b, c) = (Pod::new("gc-a"), Pod::new("gc-b"), Pod::new("gc-c"));
    let others = json!({"name": "others"});
    assert!(call(&host, "ADD", "a", Some(&a), json!({})).1);
    assert!(call(&host, "ADD", "b", Some(&b), others).1);
    host.attach(&c, "c");
    let nothing = json!({"cni.dev/valid-attachments": [], "cni.dev/attachments": []});
    assert_eq!(call(&host, "GC", "", None, nothing), (None, true));
    assert_eq!(pods(&host), ["b", "c"]);
}

#[test]
fn del_needs_neither_the_namespace_nor_the_daemon() {
    let host = Host::new(Mode::Routed);
    let before = host.objects();
    let pod = Pod::new("cni-gone");
    assert!(call(&host, "ADD", "a", Some(&pod), json!({})).1);
    assert!(call(&host, "ADD", "b", Some(&Pod::new("cni-vanished")), json!({})).1);
    std::fs::remove_file(Site::path(host.dir.path(), "weft")).unwrap();
    for (id, pod) in [("a", Some(&pod)), ("a", None), ("b", None), ("never-added", None)] {
        assert_eq!(call(&host, "DEL", id, pod, json!({})), (None, true), "{id}");
    }
    assert_eq!((host.objects(), pods(&host)), (before, vec![]));
}

/// After a reboot a runtime starts the container it had, in a new namespace, without a DEL.
#[test]
fn a_container_that_returns_in_another_namespace_has_its_address() {
    let host = Host::new(Mode::Routed);
    let address = |answer: (Option<Value>, bool)| answer.0.unwrap()["ips"][0]["address"].clone();
    let first = address(call(&host, "ADD", "a", Some(&Pod::new("cni-boot-1")), json!({})));
    assert!(call(&host, "ADD", "b", Some(&Pod::new("cni-boot-2")), json!({})).1);
    let pod = Pod::new("cni-boot-3");
    assert_eq!(address(call(&host, "ADD", "a", Some(&pod), json!({}))), first);
    assert!(output(&host.ns, "ping -n -c 1 -W 5 10.42.7.2").is_ok());
}

/// A second network of a container takes what is for pods, and leaves the way to the world alone.
#[test]
fn anothers_default_route_stays() {
    let host = Host::new(Mode::Routed);
    let (a, b) = (Pod::new("cni-second"), Pod::new("cni-peer"));
    for line in [
        "ip link add eth9 type bridge",
        "ip link set eth9 up",
        "ip addr add 192.0.2.2/24 dev eth9",
        "ip route add default via 192.0.2.1",
    ] {
        output(&a.ns, line).unwrap();
    }
    let before = json!({
        "interfaces": [{"name": "eth9", "sandbox": a.path()}],
        "ips": [{"address": "192.0.2.2/24", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}],
    });
    let (result, ok) = call(&host, "ADD", "a", Some(&a), json!({"prevResult": before}));
    let result = result.unwrap();
    assert!(ok, "{result}");
    assert_eq!(result["routes"][0], before["routes"][0]);
    assert_eq!(result["routes"][1], json!({"dst": "10.42.0.0/16", "gw": "169.254.1.1"}));
    assert!(output(&a.ns, "ip route show default").unwrap().contains("via 192.0.2.1"));
    assert_eq!(call(&host, "CHECK", "a", Some(&a), json!({"prevResult": result})), (None, true));
    let peer = host.attach(&b, "b");
    assert!(a.pings(peer[0]));
}

#[test]
fn status_says_when_every_address_has_a_pod() {
    let host = Host::new(Mode::Routed);
    let path = Site::path(host.dir.path(), "weft");
    let mut site = Site::read(host.dir.path(), "weft").unwrap();
    site.ranges[0] = "10.42.7.2-10.42.7.2".parse().unwrap();
    std::fs::write(path, serde_json::to_vec(&site).unwrap()).unwrap();
    assert_eq!(call(&host, "STATUS", "", None, json!({})), (None, true));
    assert!(call(&host, "ADD", "a", Some(&Pod::new("cni-full")), json!({})).1);
    assert_eq!(code(call(&host, "STATUS", "", None, json!({}))), Some(50));
}
