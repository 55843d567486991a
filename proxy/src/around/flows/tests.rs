//! Flows of a real kernel: those to an endpoint that is gone are forgotten, and no others. In a network
//! namespace of its own. Needs root.

use std::net::UdpSocket;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::host::{Host, Observed, Settings};
use crate::manifests::Folder;
use crate::model::{Model, NodeName};
use crate::nftables::Program;
use crate::plan::Claims;
use crate::run::Commits;
use weft_kernel::nft::{Nft, Transaction};

const LONG: Duration = Duration::from_secs(30);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]}
";

fn slice(addresses: &str) -> String {
    let head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: dns-1, namespace: shop, \
                labels: {kubernetes.io/service-name: dns}}\naddressType: IPv4\nports: [{port: 5353, protocol: UDP}]\n";
    format!("{head}endpoints: [{addresses}]\n")
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The daemon's part of the story: the world, and the kernel that holds its plans.
struct Rules {
    folder: Folder,
    shared: Shared,
    commits: Commits,
    nft: Nft,
}

impl Rules {
    /// The slice is this now, in the world and then in the kernel.
    fn endpoints(&mut self, addresses: &str) {
        let mut world = self.shared.read().clone();
        for (file, text) in [("service.yaml", SERVICE.to_owned()), ("slice.yaml", slice(addresses))] {
            let update = self.folder.put(file, &text);
            assert!(update.problems.is_empty(), "{:?}", update.problems);
            for change in update.changes {
                let touched = world.model.apply(change);
                let _ = world.claims.absorb(&world.model, &touched.services);
            }
        }
        let plans: Vec<(ServiceName, ServicePlan)> = world.plans().collect();
        let table = Program::load(&world.host, plans.iter().cloned(), None).table();
        self.shared.change(|known| *known = world);
        self.nft.commit(&Transaction::new().replace(&table)).unwrap();
        self.commits.tell(Committed::Some(plans.into()));
    }
}

fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    Conntrack::open().unwrap().each(Protocol::Udp, false, |flow| flows.push(flow)).unwrap();
    flows
}

/// A datagram through the service; what arrives at which of the servers.
fn send(client: &UdpSocket, to: &str) {
    client.send_to(b"?", to).unwrap();
}

#[test]
fn only_flows_to_an_endpoint_that_is_gone_are_forgotten() {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        run("ip route add 10.96.0.0/12 dev lo");
        for address in ["10.1.0.5", "10.1.0.6", "10.2.0.1"] {
            run(&format!("ip address add {address}/32 dev lo"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(story());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn story() {
    let model = Model::default();
    let host = Host::on(&model, NodeName::new("ash"), Observed::default(), Settings::default());
    let shared = Shared::new(World { model, claims: Claims::default(), host });
    let mut rules = Rules {
        folder: Folder::default(),
        shared: shared.clone(),
        commits: Commits::default(),
        nft: Nft::open().unwrap(),
    };
    let metrics = Metrics::new();
    let counts = Counts::new(&metrics);
    tokio::spawn(follow(shared, rules.commits.subscribe(), counts.clone()));

    let servers = ["10.1.0.5:5353", "10.1.0.6:5353", "10.2.0.1:53"].map(|at| UdpSocket::bind(at).unwrap());
    servers.iter().for_each(|server| server.set_read_timeout(Some(LONG)).unwrap());
    let five = "{addresses: [10.1.0.5], conditions: {ready: true}}";
    let six = "{addresses: [10.1.0.6], conditions: {ready: true}}";
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let arrives_at = |server: &UdpSocket| {
        let mut buffer = [0; 8];
        server.recv_from(&mut buffer).map(|(_, from)| from)
    };

    // The client sends before there are rules, to nobody: that flow must not last.
    run("nft add table inet t");
    run("nft add chain inet t c { type nat hook output priority 0 ; }");
    run("nft add rule inet t c ct state established accept");
    send(&client, "10.96.0.10:53");
    assert_eq!(flows().len(), 1);
    rules.endpoints(five);
    until("the flow to nobody is forgotten", &counts, 1).await;
    send(&client, "10.96.0.10:53");
    assert_eq!(arrives_at(&servers[0]).unwrap(), client.local_addr().unwrap());

    // Others that must stay: one straight to the endpoint, one to somebody else.
    let bystander = UdpSocket::bind("127.0.0.1:0").unwrap();
    send(&bystander, "10.1.0.5:5353");
    send(&bystander, "10.2.0.1:53");
    arrives_at(&servers[0]).unwrap();
    arrives_at(&servers[2]).unwrap();
    let others = || {
        let port = bystander.local_addr().unwrap().port();
        let mut flows = flows();
        flows.retain(|flow| flow.original.source.port() == port);
        flows.sort();
        flows
    };
    let before = others();
    assert_eq!(before.len(), 2);

    // One more endpoint is no reason to move anybody.
    rules.endpoints(&format!("{five}, {six}"));
    send(&client, "10.96.0.10:53");
    arrives_at(&servers[0]).unwrap();

    rules.endpoints(six);
    until("the flow to who is gone is forgotten", &counts, 2).await;
    send(&client, "10.96.0.10:53");
    assert_eq!(arrives_at(&servers[1]).unwrap(), client.local_addr().unwrap());

    // Nobody at all: the flow is left for who comes back.
    rules.endpoints("");
    rules.endpoints(six);
    send(&client, "10.96.0.10:53");
    arrives_at(&servers[1]).unwrap();
    let ids = |flows: &[Flow]| flows.iter().map(|flow| flow.id).collect::<Vec<_>>();
    assert_eq!(ids(&others()), ids(&before));
    assert_eq!(forgotten(&counts), 2);
}

fn forgotten(counts: &Counts) -> u64 {
    counts.deleted.iter().map(Counter::total).sum()
}

async fn until(what: &str, counts: &Counts, deleted: u64) {
    let deadline = Instant::now() + LONG;
    while forgotten(counts) < deleted {
        assert!(Instant::now() < deadline, "{what}: {:?}", flows());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
