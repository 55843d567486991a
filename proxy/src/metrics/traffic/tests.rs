//! Real kernels whose accounting is read. Each runs in a network namespace of its own and needs root.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tokio::sync::broadcast;
use weft_kernel::nft::{Nft, Transaction};

use super::*;
use crate::host::{Host, NodePortAddresses, Observed, Settings};
use crate::manifests::Folder;
use crate::model::{Model, NodeName};
use crate::nftables::Program;
use crate::plan::Claims;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{name: http, port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {clusterIP: 10.96.0.11, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.5]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: shop, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{port: 53, protocol: UDP}]
endpoints: [{addresses: [10.1.0.6]}]
";

/// By when anything that is bound to happen has happened on a starved machine.
const SOON: Duration = Duration::from_secs(30);

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Tells a story on a host with these services, whose traffic is counted.
fn counted<F: Future<Output = ()>>(story: impl FnOnce(Counts) -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip link set lo up");
        run("ip route add 10.96.0.0/12 dev lo");
        for address in ["192.0.2.1", "10.1.0.5", "10.1.0.6", "10.9.0.1"] {
            run(&format!("ip address add {address}/32 dev lo"));
        }
        let mut model = Model::default();
        let update = Folder::default().put("all.yaml", SERVICES);
        assert!(update.problems.is_empty(), "{:?}", update.problems);
        update.changes.into_iter().for_each(|change| drop(model.apply(change)));
        let claims = Claims::of(&model);
        let node_ports = NodePortAddresses::parse(["192.0.2.0/24"]).unwrap();
        let settings = Settings { node_ports, ..Settings::default() };
        let addresses = ["192.0.2.1", "10.1.0.5", "10.1.0.6", "10.9.0.1"].map(|it| it.parse().unwrap());
        let observed = Observed { addresses: addresses.into(), primary: vec![addresses[0]] };
        let host = Host::on(&model, NodeName::new("ash"), observed, settings);
        let world = World { model, claims, host };
        let table = Program::load(&world.host, world.plans(), None).table();
        Nft::open().unwrap().commit(&Transaction::new().replace(&table)).unwrap();
        run("sysctl -qw net.netfilter.nf_conntrack_acct=1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(story(Counts { metrics: Metrics::new(), shared: Shared::new(world) }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

struct Counts {
    metrics: Metrics,
    shared: Shared,
}

impl Counts {
    /// Begins to count, and has begun when this returns.
    async fn begin(&self) -> broadcast::Sender<Committed> {
        let (commits, follower) = broadcast::channel(4);
        tokio::spawn(follow(self.shared.clone(), follower, self.metrics.clone()));
        commits.send(Committed::All).unwrap();
        // It has read all flows when there is something to show.
        let begun = || self.metrics.render().contains("weft_proxy_traffic_lost_total 0");
        within(begun).await;
        commits
    }

    fn of(&self, name: &str, labels: &str) -> u64 {
        let series = format!("weft_proxy_{name}_total{{namespace=\"shop\",{labels}}}");
        let text = self.metrics.render();
        let line = text.lines().filter_map(|line| line.rsplit_once(' ')).find(|(found, _)| *found == series);
        line.map_or(0, |(_, value)| value.parse().unwrap())
    }
}

/// Ends these connections; the kernel tells of it as of every end.
fn forget(protocol: Protocol, which: impl Fn(&Flow) -> bool) {
    let mut conntrack = Conntrack::open().unwrap();
    let mut flows: Vec<Flow> = Vec::new();
    conntrack.pieces(|piece| flows.extend(piece.iter().filter(|flow| which(flow)))).unwrap();
    flows.retain(|flow| super::protocol(flow.protocol) == protocol);
    assert!(!flows.is_empty());
    flows.iter().for_each(|flow| assert!(conntrack.delete(flow).unwrap(), "{flow:?}"));
}

/// Waits until it is so.
async fn within(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.expect("it never became so");
}

const WEB: &str = r#"service="web",port="http",protocol="tcp""#;
const DNS: &str = r#"service="dns",port="",protocol="udp""#;

#[test]
fn a_connection_is_counted_while_it_lives_and_once_when_it_ended() {
    counted(async |counts| {
        let server = TcpListener::bind("10.1.0.5:8080").unwrap();
        let transfer = |to: &str, bytes: usize| {
            let mut client = TcpStream::connect(to).unwrap();
            let (mut served, _) = server.accept().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| served.write_all(&vec![7; bytes]).unwrap());
                client.read_exact(&mut vec![0; bytes]).unwrap();
            });
            (client, served)
        };
        let before = transfer("10.96.0.10:80", 50_000);
        let _commits = counts.begin().await;
        let (to, from) =
            (format!("{WEB},direction=\"to_endpoint\""), format!("{WEB},direction=\"from_endpoint\""));
        let endpoint = format!("{WEB},endpoint=\"10.1.0.5:8080\",direction=\"from_endpoint\"");
        assert_eq!(counts.of("service_bytes", &from), 0, "that was before");
        let sent = 3_000_000;
        // What was counted twice in one round is too much in the next one.
        for (round, address) in (1..).zip(["10.96.0.10:80", "192.0.2.1:30080", "10.96.0.10:80"]) {
            let (flow, past) = (transfer(address, sent), transfer("10.1.0.5:8080", sent));
            // What is carried beside the bytes of the stream: headers, and the little of before.
            let expected = round * sent as u64..round * (sent as u64 + sent as u64 / 20);
            within(|| expected.contains(&counts.of("service_bytes", &from))).await;
            let live = counts.of("service_bytes", &from);
            within(|| counts.of("endpoint_bytes", &endpoint) == live).await;
            let packets = counts.of("service_packets", &from);
            assert!((1..live / 40).contains(&packets), "{packets}");
            assert!((1..sent as u64 / 10).contains(&counts.of("service_bytes", &to)));
            drop((flow, past));
            forget(Protocol::Tcp, |flow| flow.original.destination == address.parse().unwrap());
            let ended = counts.of("service_bytes", &from);
            assert!(expected.contains(&ended) && ended >= live, "{address}: {live}, then {ended}");
        }
        drop(before);
    });
}

#[test]
fn a_crowd_of_flows_is_counted_exactly() {
    counted(async |counts| {
        let server = UdpSocket::bind("10.1.0.6:53").unwrap();
        let _commits = counts.begin().await;
        let labels = format!("{DNS},direction=\"to_endpoint\"");
        let ask = |from: u16| {
            let client = UdpSocket::bind(("10.9.0.1", from)).unwrap();
            client.send_to(b"?", "10.96.0.11:53").unwrap();
            let mut buffer = [0; 8];
            server.recv_from(&mut buffer).unwrap();
        };
        let (flows, first) = (20_000u64, 20_000);
        (0..20_000).for_each(|number| ask(first + number));
        within(|| counts.of("service_packets", &labels) == flows).await;
        // Half of them end, and as many begin anew; the other half carries more.
        forget(Protocol::Udp, |flow| flow.original.source.port() < 30_000);
        (0..20_000).for_each(|number| ask(first + number));
        within(|| counts.of("service_packets", &labels) == 2 * flows).await;
        forget(Protocol::Udp, |_| true);
        ask(first);
        within(|| counts.of("service_packets", &labels) == 2 * flows + 1).await;
        assert_eq!(counts.of("service_bytes", &labels), (2 * flows + 1) * 29);
        assert!(counts.metrics.render().contains("weft_proxy_traffic_lost_total 0"));
    });
}
