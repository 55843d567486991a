//! Golden cases: what weft changes in a kernel, given what etcd says and what the kernel holds.
//!
//! A case is a directory under tests/cases/data-path:
//!
//! ```text
//! store.txt      keys and values, as etcdctl prints them with one space between
//! host.txt       who we are: `node`, `subnet`, and options of the daemon that matter
//! observed.txt   the kernel, in the words in which weft prints it
//! changes.txt    what weft does, what it cannot do, and why: written with BLESS=1, and to be read
//! ```
//!
//! Lines that begin with `#` explain the case.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use weft_kernel::net::{
    Address, Change, FdbEntry, Link, LinkKind, LinkName, Neighbour, Route, RouteKey, RouteKind, Rtnetlink,
    State, Vni, Vxlan,
};
use weft_kernel::netns::NetNs;
use weft_overlay::believe;
use weft_overlay::diff::diff;
use weft_overlay::key::{Key, Prefix, parse_subnet_name};
use weft_overlay::model::{Family, Me, Model};
use weft_overlay::options::UnderlayChoice;
use weft_overlay::plan::{Desired, Scope, plan};
use weft_overlay::registry::Registry;
use weft_overlay::takeover::{self, take_over};
use weft_overlay::underlay::{self, Wanted};
use weft_store::{ClusterId, KeyValue, LeaseId, Revision, Snapshot};

#[test]
fn every_case_gives_the_changes_written_there() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data-path");
    let mut names: Vec<PathBuf> = fs::read_dir(&cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty(), "no cases in {}", cases.display());
    let mut wrong = Vec::new();
    for case in &names {
        let found = Case::read(case).changes();
        let golden = case.join("changes.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &found).unwrap();
        }
        let wanted = fs::read_to_string(&golden).unwrap_or_default();
        if found != wanted {
            wrong.push(format!("{}\n--- wanted\n{wanted}\n--- found\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "BLESS=1 rewrites these; read the difference:\n{}", wrong.join("\n"));
}

/// The cases that start from an empty host, on a real kernel: it takes every change, shows what was
/// wanted, and leaves nothing to do.
#[test]
fn a_real_kernel_takes_and_shows_what_is_planned() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data-path");
    for name in [
        "first-start",
        "first-start-in-both-families",
        "ipv6-pods-over-ipv4-hosts",
        "direct-routing-from-nothing",
        "host-gw",
    ] {
        let case = Case::read(&cases.join(name));
        let desired = plan(&case.model());
        let ns = NetNs::anonymous().unwrap();
        let net = Rtnetlink::open_in(&ns).unwrap();
        let refused = net.apply_blocking(&case.host_of_its_own());
        assert!(refused.is_empty(), "{name}: {refused:?}");
        let changes = diff(&desired.kernel, &net.observe_blocking().unwrap(), &desired.scope).changes;
        assert!(!changes.is_empty(), "{name}");
        let refused = net.apply_blocking(&changes);
        assert!(refused.is_empty(), "{name}: {refused:?}");
        let left = diff(&desired.kernel, &net.observe_blocking().unwrap(), &desired.scope);
        assert_eq!((left.changes, left.conflicts), (vec![], vec![]), "{name}");
    }
}

struct Case {
    registry: Registry,
    host: BTreeMap<String, Vec<String>>,
    observed: State,
}

impl Case {
    fn read(dir: &Path) -> Self {
        let lines = |file: &str| -> Vec<String> {
            let path = dir.join(file);
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let told = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            told.map(str::to_owned).collect()
        };
        let mut host: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in lines("host.txt") {
            let (key, value) = line.split_once(' ').unwrap_or((&line, ""));
            host.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        let registry = registry(&lines("store.txt"));
        Self { registry, host, observed: state(&lines("observed.txt")) }
    }

    fn one(&self, key: &str) -> Option<&str> {
        self.host.get(key).and_then(|values| values.first()).map(String::as_str)
    }

    fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        self.one(key).map(|raw| parse(raw))
    }

    fn model(&self) -> Model {
        let config = self.registry.config().expect("a config that can be used").clone();
        let choice = UnderlayChoice::default();
        let wanted = Wanted {
            choice: &choice,
            public_v4: None,
            public_v6: None,
            // As the daemon: a host may have an outer family that its pods have not.
            v4: self.one("outer").is_none_or(|outer| outer.contains("v4")),
            v6: self.one("outer").is_some_and(|outer| outer.contains("v6")),
            reach: None,
        };
        let chosen = underlay::choose(&wanted, &self.observed).unwrap_or_else(|error| panic!("{error}"));
        let me = Me {
            node: self.one("node").expect("host.txt names a node").to_owned().try_into().unwrap(),
            network: self.one("network").unwrap_or("blue").to_owned(),
            subnet: self.one("subnet").map(|raw| parse_subnet_name(raw).expect("a subnet as in a key")),
            public_v4: chosen.public_v4,
            public_v6: chosen.public_v6,
            underlay: chosen.underlay,
            adopted_mac_v4: self.get("adopted-mac"),
            adopted_mac_v6: None,
        };
        let peers = self.registry.peers(&me, &config).known;
        Model {
            me,
            config,
            peers: peers.into_iter().map(|(subnet, known)| (subnet, known.peer)).collect(),
            masquerade: false,
            masquerade_random: true,
            non_masquerade: BTreeSet::new(),
            forward_accept: true,
            anti_spoofing: true,
            extra_sources: BTreeSet::new(),
            blackhole: self.host.contains_key("ip-blackhole-route"),
        }
    }

    /// The observed host for a real kernel: its NIC is one end of a veth pair.
    fn host_of_its_own(&self) -> Vec<Change> {
        let nic = self.observed.links.values().next().expect("a NIC").clone();
        assert_eq!(self.observed.links.len(), 1, "only the NIC");
        let end = |link: &Link| Link { kind: LinkKind::Veth, index: 0, ..link.clone() };
        let far = Link { name: parse("far"), mac: None, ..end(&nic) };
        let pair = Change::AddVethPair { host: end(&nic), peer: far, peer_netns: None };
        let addresses = self.observed.addresses.iter().cloned().map(Change::AddAddress);
        let routes = self.observed.routes.values().cloned().map(Change::ReplaceRoute);
        std::iter::once(pair).chain(addresses).chain(routes).collect()
    }

    fn changes(&self) -> String {
        let mut out = String::new();
        let (mut model, mut observed) = (self.model(), self.observed.clone());
        if self.host.contains_key("take-over-flannel") {
            let found = take_over(&observed, &model.me, &model.config, &Scope::of(&model));
            (model.me.adopted_mac_v4, model.me.adopted_mac_v6) = (found.mac_v4, found.mac_v6);
            section(&mut out, "take over", &found.changes);
            found.changes.iter().for_each(|change| believe::apply(&mut observed, change));
        }
        let desired = plan(&model);
        let found = diff(&desired.kernel, &observed, &desired.scope);
        section(&mut out, "changes", &found.changes);
        section(&mut out, "conflicts", &found.conflicts);
        section(&mut out, "made by others first", &found.awaited);
        let skipped = desired.skipped.iter().map(|((subnet, _), skip)| format!("{subnet}: {skip}"));
        section(&mut out, "peers left out", skipped);
        let unusable = self.registry.peers(&model.me, &model.config).skipped;
        section(&mut out, "leases left out", unusable.iter().map(|(subnet, why)| format!("{subnet}: {why}")));
        section(&mut out, "beside the kernel", beside(&desired));
        found.changes.iter().for_each(|change| believe::apply(&mut observed, change));
        let again = diff(&desired.kernel, &observed, &desired.scope).changes;
        assert_eq!(again, [], "the changes lead to the plan");
        if self.host.contains_key("give-back") {
            section(&mut out, "give back", takeover::give_back(&observed, &Scope::of(&model)));
        }
        out
    }
}

fn beside(desired: &Desired) -> Vec<String> {
    let mut lines: Vec<String> =
        desired.sysctls.iter().map(|sysctl| format!("sysctl {} = {}", sysctl.path, sysctl.value)).collect();
    lines.push(format!("pod mtu {}", desired.pod_mtu));
    if let Some(udp) = &desired.udp {
        lines.push(format!("udp port {} by {} mtu {}", udp.port, udp.link, udp.mtu));
        lines.extend(udp.peers.iter().map(|(subnet, to)| format!("udp {subnet} to {to}")));
    }
    for ((subnet, inner), way) in &desired.ways {
        lines.push(format!("way to {} by {way}", subnet.of(*inner).unwrap()));
    }
    let probes = desired.probes.values().flatten().map(IpAddr::to_string).collect::<Vec<_>>();
    lines.push(format!("probe {}", if probes.is_empty() { "nobody".to_owned() } else { probes.join(" ") }));
    lines
}

fn section<T: ToString>(out: &mut String, title: &str, lines: impl IntoIterator<Item = T>) {
    let lines: Vec<String> = lines.into_iter().map(|line| line.to_string()).collect();
    if lines.is_empty() && title != "changes" {
        return;
    }
    writeln!(out, "{title}:").unwrap();
    for line in &lines {
        writeln!(out, "    {line}").unwrap();
    }
    if lines.is_empty() {
        writeln!(out, "    (none)").unwrap();
    }
}

/// A lease and its owner record were written by one transaction, so they share a revision.
fn registry(lines: &[String]) -> Registry {
    let prefix = Prefix::new(Prefix::DEFAULT);
    let mut revisions: BTreeMap<String, i64> = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for line in lines {
        let (key, value) = line.split_once(' ').expect("a key and a value");
        let next = i64::try_from(revisions.len()).unwrap() + 10;
        let together = match prefix.classify(key) {
            Key::Lease(subnet) | Key::Owner(subnet) => subnet.to_string(),
            _ => key.to_owned(),
        };
        let revision = Revision(*revisions.entry(together).or_insert(next));
        let entry = KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: revision,
            mod_revision: revision,
            lease: Some(LeaseId(1)),
        };
        entries.insert(key.to_owned(), entry);
    }
    let snapshot = Snapshot { cluster: ClusterId(1), revision: Revision(1000), entries };
    Registry::new(prefix, &snapshot).0
}

/// The words of a line in turn; each may be asked for once.
struct Words<'a> {
    line: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        Self { line, words: line.split_whitespace().collect() }
    }

    fn first(&mut self) -> &'a str {
        assert!(!self.words.is_empty(), "too short: {}", self.line);
        self.words.remove(0)
    }

    fn flag(&mut self, flag: &str) -> bool {
        let at = self.words.iter().position(|word| *word == flag);
        at.map(|at| self.words.remove(at)).is_some()
    }

    fn value<T: FromStr>(&mut self, key: &str) -> Option<T> {
        let at = self.words.iter().position(|word| *word == key)?;
        self.words.remove(at);
        assert!(at < self.words.len(), "{key} has no value: {}", self.line);
        Some(parse(self.words.remove(at)))
    }

    fn end(self) {
        assert!(self.words.is_empty(), "{:?} of `{}` mean nothing", self.words, self.line);
    }
}

fn parse<T: FromStr>(raw: &str) -> T {
    raw.parse().unwrap_or_else(|_| panic!("`{raw}` is no {}", std::any::type_name::<T>()))
}

fn state(lines: &[String]) -> State {
    let mut state = State::default();
    for line in lines {
        let mut words = Words::of(line);
        match words.first() {
            "link" => {
                let index = u32::try_from(state.links.len()).unwrap() + 2;
                let link = link(&mut words, index);
                state.links.insert(link.name.clone(), link);
            }
            "address" => {
                let network = parse(words.first());
                let link = words.value("dev").expect("an address is on a link");
                state.addresses.insert(Address { link, network });
            }
            "route" => {
                let route = route(&mut words);
                state.routes.insert(route.key.clone(), route);
            }
            "neighbour" => {
                let addr = parse(words.first());
                let (mac, link) = (words.value("lladdr"), words.value::<LinkName>("dev"));
                let (mac, link) = (mac.expect("a MAC"), link.expect("a link"));
                let permanent = !words.flag("learned");
                let neighbour = Neighbour { link: link.clone(), addr, mac, permanent };
                state.neighbours.insert((link, addr), neighbour);
            }
            "fdb" => {
                let mac = parse(words.first());
                let (dst, link) = (words.value("dst"), words.value("dev"));
                let permanent = !words.flag("learned");
                let (dst, link) = (dst.expect("a destination"), link.expect("a link"));
                state.fdb.insert(FdbEntry { link, mac, dst, permanent });
            }
            other => panic!("`{other}` is nothing a kernel holds: {line}"),
        }
        words.end();
    }
    state
}

fn link(words: &mut Words<'_>, index: u32) -> Link {
    let name = parse(words.first());
    let kind = if words.flag("vxlan") {
        LinkKind::Vxlan(Vxlan {
            vni: Vni::try_from(words.value::<u32>("vni").expect("a VNI")).unwrap(),
            port: words.value("port").expect("a port"),
            local: words.value("local"),
            underlay: words.value("dev"),
            learning: words.flag("learning"),
            gbp: words.flag("gbp"),
        })
    } else if words.flag("tun") {
        LinkKind::Tun
    } else if words.flag("veth") {
        LinkKind::Veth
    } else {
        LinkKind::Other(String::new())
    };
    let down = words.flag("down");
    words.flag("up");
    Link {
        name,
        index,
        kind,
        mac: words.value("address"),
        mtu: words.value("mtu").unwrap_or(1500),
        master: words.value("master"),
        up: !down,
        carrier: true,
        alias: words.value("alias"),
    }
}

fn route(words: &mut Words<'_>) -> Route {
    let kind = if words.flag("blackhole") { RouteKind::Blackhole } else { RouteKind::Unicast };
    let dst: IpNetwork = match words.first() {
        "default" => parse("0.0.0.0/0"),
        "default6" => parse("::/0"),
        network => parse(network),
    };
    let usual = if Family::of(dst.ip()) == Family::V6 { 1024 } else { 0 };
    let metric = words.value("metric").unwrap_or(usual);
    Route {
        key: RouteKey { table: words.value("table").unwrap_or(254), dst, metric },
        kind,
        via: words.value("via"),
        link: words.value("dev"),
        onlink: words.flag("onlink"),
        src: words.value("src"),
        mtu: words.value("mtu"),
        protocol: words.value("proto").unwrap_or(3),
    }
}
