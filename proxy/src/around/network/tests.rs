//! The watch on a real kernel. Each test runs in a network namespace of its own. Needs root.

use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::host::{Host, NodePortAddresses, Settings as HostSettings};
use crate::model::{Model, NodeName};
use crate::plan::Claims;
use crate::run::{Commits, World};

/// For everything that is waited for: enough on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// Runs a test in a fresh network namespace with two links, on a thread that ends with it.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        ip("link set lo up");
        ip("link add eth0 type veth peer name far0");
        ip("address add 192.0.2.1/24 dev eth0");
        ip("link set eth0 up");
        ip("link set far0 up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn read(setting: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/{setting}")).unwrap().trim().to_owned()
}

/// Waits until it is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "{what}: {}", ip("route show table main"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Our route to the range, if it is there.
fn our_route() -> bool {
    ip("route show 10.96.0.0/12 proto 87").contains("dev eth0 scope link src 192.0.2.1 metric 100087")
}

struct Keeper {
    addresses: watch::Receiver<Observed>,
    state_dir: tempfile::TempDir,
    commits: Commits,
    health: Health,
    task: tokio::task::JoinHandle<()>,
}

async fn keep(node_ports: &[&str]) -> Keeper {
    let (network, addresses) = Network::open(vec!["10.96.0.0/12".parse().unwrap()]).await.unwrap();
    let node_ports = NodePortAddresses::parse(node_ports.iter().copied()).unwrap();
    let settings = HostSettings { node_ports, ..HostSettings::default() };
    let model = Model::default();
    let observed = addresses.borrow().clone();
    let host = Host::on(&model, NodeName::new("ash"), observed, settings);
    let shared = Shared::new(World { model, claims: Claims::default(), host });
    let state_dir = tempfile::tempdir().unwrap();
    let (commits, health) = (Commits::default(), Health::needing(&[ROUTES, SETTINGS]));
    let (path, heard, told) = (state_dir.path().to_owned(), commits.subscribe(), health.clone());
    let task = tokio::spawn(async move {
        network.keep(Wishes { accounting: true, ..Wishes::default() }, path, shared, heard, told).await;
    });
    Keeper { addresses, state_dir, commits, health, task }
}

#[test]
fn addresses_are_told_as_they_come_and_go() {
    in_namespace(|| async {
        let mut keeper = keep(&[]).await;
        let has = |text: &str| {
            let address = text.parse().unwrap();
            move |observed: &Observed| observed.addresses.contains(&address)
        };
        assert!(has("192.0.2.1")(&keeper.addresses.borrow()));
        assert_eq!(keeper.addresses.borrow().primary, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        ip("address add 198.51.100.9/32 dev lo");
        tokio::time::timeout(LONG, keeper.addresses.wait_for(has("198.51.100.9"))).await.unwrap().unwrap();
        ip("address del 198.51.100.9/32 dev lo");
        let gone = |observed: &Observed| !has("198.51.100.9")(observed);
        tokio::time::timeout(LONG, keeper.addresses.wait_for(gone)).await.unwrap().unwrap();
        ip("link del eth0");
        let none = |observed: &Observed| observed.primary.is_empty();
        tokio::time::timeout(LONG, keeper.addresses.wait_for(none)).await.unwrap().unwrap();
    });
}

#[test]
fn a_route_to_cluster_addresses_is_kept_until_another_one_leads_there() {
    in_namespace(|| async {
        let before = ip("route show table all");
        let keeper = keep(&[]).await;
        until("the route is made", our_route).await;
        // A connection gets as far as the rules, with the host's address; without a route it does not.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.96.0.10:53").unwrap();
        assert_eq!(socket.local_addr().unwrap().ip().to_string(), "192.0.2.1");
        ip("route del 10.96.0.0/12 proto 87");
        until("a deleted route is back", our_route).await;
        ip("link set eth0 down");
        ip("link set eth0 up");
        until("so is one that went with its link", our_route).await;
        ip("route add default via 192.0.2.254");
        until("the default route makes it unnecessary", || !our_route()).await;
        ip("route del default");
        until("and needed again when it goes", our_route).await;
        tokio::time::timeout(LONG, keeper.health.wait_until(|report| report.ready && !report.degraded))
            .await
            .unwrap();
        keeper.task.abort();
        assert!(keeper.task.await.unwrap_err().is_cancelled());
        let undone = undo(keeper.state_dir.path());
        assert_eq!((undone.routes, undone.failures), (1, vec![]));
        assert_eq!(ip("route show table all"), before);
    });
}

#[test]
fn settings_are_made_kept_and_put_back() {
    in_namespace(|| async {
        let names = [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/route_localnet",
            "net/netfilter/nf_conntrack_acct",
            "net/netfilter/nf_conntrack_events",
            "net/netfilter/nf_conntrack_tcp_timeout_established",
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
        ];
        let values = move || names.map(read);
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_events", "0").unwrap();
        let before = values();
        assert_eq!(before[..2], ["0", "0"]);
        let keeper = keep(&["primary", "localhost"]).await;
        let as_wanted = move || values() == ["1", "1", "1", "1", "86400", "3600"];
        until("settings are made", as_wanted).await;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        until("what somebody changed is put right", as_wanted).await;
        // Of this one the kernel tells nobody; it is looked at when the first rules are in.
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "7").unwrap();
        keeper.commits.tell(Committed::Some(Arc::new([])));
        until("and when rules have loaded connection tracking", as_wanted).await;
        tokio::time::timeout(LONG, keeper.health.wait_until(|report| report.ready && !report.degraded))
            .await
            .unwrap();
        keeper.task.abort();
        assert!(keeper.task.await.unwrap_err().is_cancelled());
        let undone = undo(keeper.state_dir.path());
        assert_eq!(undone.failures, Vec::<String>::new());
        assert!(undone.settings >= 5, "{undone:?}");
        assert_eq!(values(), before);
    });
}
