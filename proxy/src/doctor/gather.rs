//! Looking: every look is short, stands alone, and leaves a word in [`Facts::unseen`] when it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use weft_daemon::finding::Daemon;
use weft_daemon::http::client::Client;
use weft_daemon::log::chain;
use weft_kernel::iptables::programs;
use weft_kernel::net::{LinkName, Rtnetlink, State};
use weft_kernel::nft::Nft;
use weft_kernel::sysctl::Sysctl;

use super::facts::{Facts, Listener};
use crate::around::addresses::{MAIN_TABLE, is_global};
use crate::model::Protocol;
use crate::nftables;

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// What the chains of weft's iptables mode begin with, as `iptables-save` writes them.
const OUR_CHAINS: &[&str] = &[":WEFT-"];
/// The same of those that are kube-proxy's alone; kubelet has some beside them.
const KUBE_CHAINS: &[&str] = &[":KUBE-SERVICES", ":KUBE-NODEPORTS", ":KUBE-SVC-", ":KUBE-SEP-", ":KUBE-EXT-"];

/// Looks at everything in the network namespace of the calling thread; the proxy's socket is below
/// `run_dir`.
pub async fn gather(run_dir: &Path) -> Facts {
    let mut facts = Facts::default();
    let socket = run_dir.join("proxy").join("proxy.sock");
    facts.daemon = Daemon::ask(&socket, PATIENCE).await;
    if matches!(facts.daemon, Daemon::Answers(_)) {
        let client = Client::new(&socket).timeout(PATIENCE);
        match client.get_json("/services").await {
            Ok(overview) => facts.overview = Some(overview),
            Err(error) => facts.unseen.push(format!("services: {}", chain(&error))),
        }
        match client.get_json("/diff").await {
            Ok(drift) => facts.drift = Some(drift),
            Err(error) => facts.unseen.push(format!("the kernel's drift: {}", chain(&error))),
        }
    }
    // It blocks, and is all there is to do.
    tokio::task::block_in_place(|| {
        filters(&mut facts);
        network(&mut facts);
        settings(&mut facts);
        listeners(&mut facts);
    });
    facts
}

fn filters(facts: &mut Facts) {
    let tables = match Nft::open()
        .map_err(|error| error.to_string())
        .and_then(|mut nft| nft.tables().map_err(|error| chain(&error)))
    {
        Ok(tables) => tables,
        Err(error) => return facts.unseen.push(format!("nftables: {error}")),
    };
    if tables.contains(&nftables::table_key()) {
        facts.rules.push(format!("nftables table {}", nftables::table_key()));
    }
    let kube_proxy = tables.iter().filter(|table| table.name.as_str() == "kube-proxy");
    facts.kube_proxy.extend(kube_proxy.map(|table| format!("nftables table {table}")));
    for rules in programs::in_use(&tables) {
        let saved = match programs::save(rules) {
            Ok(saved) => saved,
            Err(error) => {
                facts.unseen.push(chain(&error));
                continue;
            }
        };
        let program = rules.save_program();
        for (beginnings, list) in [(OUR_CHAINS, &mut facts.rules), (KUBE_CHAINS, &mut facts.kube_proxy)] {
            let ours = |line: &&str| beginnings.iter().any(|beginning| line.starts_with(beginning));
            let count = saved.lines().filter(ours).count();
            if count > 0 {
                list.push(format!("{count} chains that {program} lists"));
            }
        }
    }
}

fn network(facts: &mut Facts) {
    let state = match Rtnetlink::open().and_then(|net| net.observe_blocking()) {
        Ok(state) => state,
        Err(error) => return facts.unseen.push(format!("links and routes: {}", chain(&error))),
    };
    facts.links = outside(&state);
    let main = state.routes.values().filter(|route| route.key.table == MAIN_TABLE);
    facts.routes = main.map(|route| route.key.dst).collect();
}

/// The links that lead out. Those of pods are many, and their packets are the overlay's matter: they have
/// link-local addresses at most.
fn outside(state: &State) -> BTreeSet<String> {
    let known = state.addresses.iter().filter(|address| is_global(address.network.ip()));
    let linked: BTreeSet<&LinkName> = known.map(|address| &address.link).collect();
    let up = state.links.values().filter(|link| link.up && link.name.as_str() != "lo");
    let outside = up.filter(|link| linked.contains(&link.name));
    outside.map(|link| link.name.to_string()).collect()
}

fn settings(facts: &mut Facts) {
    let fixed = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/all/route_localnet",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/ip_local_reserved_ports",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
    ];
    let of_links: Vec<String> =
        facts.links.iter().map(|link| format!("net/ipv4/conf/{link}/rp_filter")).collect();
    for path in fixed.map(str::to_owned).into_iter().chain(of_links) {
        match path.parse::<Sysctl>().map(|sysctl| sysctl.read()) {
            Ok(Ok(value)) => {
                facts.settings.insert(path, value);
            }
            Ok(Err(error)) if error.is_absent() => {}
            Ok(Err(error)) => facts.unseen.push(chain(&error)),
            Err(error) => facts.unseen.push(chain(&error)),
        }
    }
}

fn listeners(facts: &mut Facts) {
    let mut found: Vec<(Protocol, u16, u64)> = Vec::new();
    for (file, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        // The calling thread's own, whichever namespace that is; IPv6 may be built out.
        let Ok(text) = fs::read_to_string(format!("/proc/thread-self/net/{file}")) else { continue };
        found.extend(listening(&text, protocol).map(|(port, inode)| (protocol, port, inode)));
    }
    let wanted = |port: u16| {
        let services = facts.overview.iter().flat_map(|overview| &overview.services);
        let mut frontends = services.flat_map(|it| &it.ports).flat_map(|it| &it.frontends);
        frontends.any(|frontend| frontend.at.contains(&format!("node port {port}/")))
    };
    found.retain(|(_, port, _)| wanted(*port));
    let names = if found.is_empty() { BTreeMap::new() } else { processes() };
    facts.listeners = found
        .into_iter()
        .map(|(protocol, port, inode)| Listener { protocol, port, process: names.get(&inode).cloned() })
        .collect();
}

/// Ports and inodes of sockets that wait for anybody, from /proc/net/tcp and its like (proc(5)): for TCP
/// those in state `TCP_LISTEN`, for UDP those without a peer.
fn listening(text: &str, protocol: Protocol) -> impl Iterator<Item = (u16, u64)> {
    const LISTEN: &str = "0A";
    text.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        let (_, peer) = fields.get(2)?.rsplit_once(':')?;
        let waits = match protocol {
            Protocol::Tcp => *fields.get(3)? == LISTEN,
            _ => peer == "0000",
        };
        let inode = fields.get(9)?.parse().ok()?;
        waits.then_some((u16::from_str_radix(port, 16).ok()?, inode))
    })
}

/// The names of processes by the inodes of their sockets. A process that has gone is no matter.
fn processes() -> BTreeMap<u64, String> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        for fd in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                names.insert(inode, name.trim().to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::around::addresses::tests::host;

    #[test]
    fn pods_links_do_not_lead_out() {
        let mut state = host(&[
            "lo 127.0.0.1/8",
            "lo 203.0.113.1/32",
            "eth0 192.0.2.1/24",
            "eth0 fe80::1/64",
            "pod 169.254.1.1/32",
            "pod fe80::2/64",
            "gone 198.51.100.1/24",
        ]);
        state.links.get_mut(&"gone".parse::<LinkName>().unwrap()).unwrap().up = false;
        assert_eq!(outside(&state), ["eth0".to_owned()].into());
    }

    #[test]
    fn who_listens_is_read_from_the_kernels_list() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 00000000:7580 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n   \
            1: 0100007F:0050 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n\
            nonsense\n";
        assert_eq!(listening(text, Protocol::Tcp).collect::<Vec<_>>(), [(30080, 4711)]);
        assert_eq!(
            listening(text, Protocol::Udp).collect::<Vec<_>>(),
            [(30080, 4711)],
            "the other has a peer"
        );
    }

    #[test]
    fn a_listener_has_a_name() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let text = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let (_, inode) = listening(&text, Protocol::Tcp).find(|(found, _)| *found == port).unwrap();
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(processes().get(&inode).map(String::as_str), Some(own.trim()));
    }
}
