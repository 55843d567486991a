//! UDP flows that go on while endpoints come and go: the kernel remembers where a flow leads for as long
//! as its client sends, and must be made to forget what is gone, and nothing else.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::manifests::{terminating, unready};
use weft_lab::{LabError, throughout, within};

use crate::scene::{Case, SOON};
use crate::stories;

stories![Each:
    flows_follow_to_the_next_server,
    flows_follow_at_node_ports,
    flows_follow_at_load_balancers,
    flows_that_began_before_an_endpoint_was_ready,
    flows_that_began_before_there_was_a_service,
    flows_of_who_stays_are_left_alone,
    flows_to_who_terminates_are_left_alone,
];

/// By when a client that goes on sending must be served by somebody else.
const MOVED: Duration = Duration::from_secs(5);

/// A client that sends from one port all the time.
struct Flow {
    what: String,
    socket: UdpSocket,
}

impl Flow {
    fn begin(case: &Case, from: &str, to: SocketAddr) -> Result<Self, LabError> {
        let socket = case.scene.place(from).udp_connect(to)?;
        let io = |source| LabError::Io { what: format!("talk to {to}"), source };
        socket.set_read_timeout(Some(Duration::from_millis(300))).map_err(io)?;
        Ok(Self { what: format!("{from} -> {to}"), socket })
    }

    /// Sends once; who answers.
    fn ask(&self) -> Result<String, String> {
        let mut answer = [0; 200];
        // A refusal of an earlier datagram is reported with the next one.
        let asked = self.socket.send(b"?").and_then(|_| self.socket.recv(&mut answer));
        let read = asked.map_err(|error| format!("{}: {error}", self.what))?;
        let text = String::from_utf8_lossy(answer.get(..read).unwrap_or_default()).into_owned();
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Is answered by this server, if not at once then soon.
    #[track_caller]
    fn comes_to(&self, server: &str) {
        within(MOVED, || match self.ask()? {
            who if who == server => Ok(()),
            who => Err(format!("{} is answered by {who}, not {server}", self.what)),
        });
    }

    /// As [`Flow::comes_to`], whoever of them it is.
    #[track_caller]
    fn is_served(&self) -> String {
        within(SOON, || self.ask())
    }
}

/// Replaces the only server again and again, under flows from all of these clients.
fn cycle(case: &Case, service: &Value, clients: &[(&str, SocketAddr)]) -> Result<(), LabError> {
    let servers = ["birch/one", "ash/one", "cedar/one"];
    let mut up = case.serve(0, &servers[..1])?;
    case.declare(&[service.clone(), case.slice(0, &case.endpoints(&servers[..1]))])?;
    let flows: Result<Vec<Flow>, _> = clients.iter().map(|(from, to)| Flow::begin(case, from, *to)).collect();
    let flows = flows?;
    flows.iter().for_each(|flow| flow.comes_to(servers[0]));
    for server in servers.into_iter().skip(1).chain([servers[0]]) {
        up = case.serve(0, &[server])?.into_iter().chain(up).take(1).collect();
        case.declare(&[case.slice(0, &case.endpoints(&[server]))])?;
        flows.iter().for_each(|flow| flow.comes_to(server));
    }
    drop(up);
    Ok(())
}

/// UDP survives server cycling for a cluster address, on the same host and on another one.
fn flows_follow_to_the_next_server(case: &Case) -> Result<(), LabError> {
    let clients = ["ash/two", "birch/two", "cedar/two", "ash", "birch"].map(|from| (from, case.web(0)));
    cycle(case, &case.service(0, json!({})), &clients)
}

fn flows_follow_at_node_ports(case: &Case) -> Result<(), LabError> {
    let at = |host| case.at(host, 0);
    let clients = [
        ("outside", at("ash")),
        ("outside", at("cedar")),
        ("ash/two", at("ash")),
        ("ash/two", at("birch")),
        ("ash", at("ash")),
        ("cedar", at("birch")),
    ];
    cycle(case, &case.node_port_service(0, json!({})), &clients)
}

fn flows_follow_at_load_balancers(case: &Case) -> Result<(), LabError> {
    case.routed(case.public(0), "ash")?;
    let mut service = case.service(0, json!({"type": "LoadBalancer", "ports": case.both(Some(0))}));
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": case.public(0)}]}});
    let to = SocketAddr::new(case.public(0), 80);
    cycle(case, &service, &[("outside", to), ("ash/two", to), ("birch", to)])
}

/// Initial unready to ready, while the client already sends.
fn flows_that_began_before_an_endpoint_was_ready(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    let endpoint = case.endpoint("birch/one");
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, &[unready(endpoint.clone())])])?;
    let clients = [
        ("ash/two", case.web(0)),
        ("cedar", case.web(0)),
        ("outside", case.at("ash", 0)),
        ("birch/two", case.at("birch", 0)),
    ];
    let flows: Result<Vec<Flow>, _> = clients.iter().map(|(from, to)| Flow::begin(case, from, *to)).collect();
    let flows = flows?;
    flows.iter().for_each(|flow| assert!(flow.ask().is_err(), "{}: nobody is ready", flow.what));
    case.declare(&[case.slice(0, &[endpoint])])?;
    flows.iter().for_each(|flow| flow.comes_to("birch/one"));
    Ok(())
}

/// Without rules its datagrams leave the host as they are, and the kernel remembers that, too.
fn flows_that_began_before_there_was_a_service(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    let to = SocketAddr::new(case.public(0), 80);
    case.routed(case.public(0), "ash")?;
    let flows: Result<Vec<Flow>, _> =
        ["ash/two", "cedar", "outside"].iter().map(|from| Flow::begin(case, from, to)).collect();
    let flows = flows?;
    flows.iter().for_each(|flow| assert!(flow.ask().is_err(), "{}: there is no service", flow.what));
    let service = case.service(0, json!({"externalIPs": [case.public(0)]}));
    case.declare(&[service, case.slice(0, &case.endpoints(&["birch/one"]))])?;
    flows.iter().for_each(|flow| flow.comes_to("birch/one"));
    Ok(())
}

/// Every flow whose server serves is answered by it, with every datagram.
#[track_caller]
fn undisturbed(flows: &[(Flow, String)]) {
    throughout(Duration::from_secs(1), || {
        flows.iter().try_for_each(|(flow, server)| match flow.ask() {
            Ok(who) if who == *server => Ok(()),
            Ok(who) => Err(format!("{} moved from {server} to {who}", flow.what)),
            // A datagram may be late on a starved machine; a forgotten flow would not come back to it.
            Err(_) => flow.ask().map(drop),
        })
    });
}

/// Others come and go, of this service and of another one, whose flows those are not.
fn flows_of_who_stays_are_left_alone(case: &Case) -> Result<(), LabError> {
    let servers = ["ash/one", "birch/one", "cedar/one"];
    let _up = [case.serve(0, &servers)?, case.serve(1, &servers)?];
    let all = case.endpoints(&servers);
    case.declare(&[
        case.node_port_service(0, json!({})),
        case.slice(0, &all),
        case.service(1, json!({})),
        case.slice(1, &all),
    ])?;
    // Every port that a client uses is a flow of its own, so twelve of them come to all three servers.
    let mut flows = vec![];
    for (from, to) in [("ash/two", case.web(0)), ("outside", case.at("ash", 0)), ("birch/two", case.web(1))] {
        for _ in 0..4 {
            let flow = Flow::begin(case, from, to)?;
            let server = flow.is_served();
            flows.push((flow, server));
        }
    }
    undisturbed(&flows);
    for gone in servers {
        let left: Vec<&str> = servers.into_iter().filter(|server| *server != gone).collect();
        case.declare(&[case.slice(0, &case.endpoints(&left))])?;
        let (stay, go): (Vec<_>, Vec<_>) = flows
            .into_iter()
            .partition(|(flow, server)| *server != gone || flow.what.ends_with(&case.web(1).to_string()));
        undisturbed(&stay);
        flows = stay;
        for (flow, _) in go {
            // Where to is chance.
            within(MOVED, || match flow.ask()? {
                who if left.contains(&who.as_str()) => Ok(()),
                who => Err(format!("{} is still answered by {who}", flow.what)),
            });
            let server = flow.is_served();
            flows.push((flow, server));
        }
        case.declare(&[case.slice(0, &all)])?;
        undisturbed(&flows);
    }
    // Nobody at all is left: perhaps its only pod is being replaced, so what runs goes on.
    case.declare(&[case.slice(0, &[])])?;
    undisturbed(&flows);
    Ok(())
}

/// An endpoint that terminates and serves keeps its flows; one that no longer serves loses them.
fn flows_to_who_terminates_are_left_alone(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["ash/one", "birch/one"])?;
    let [ash, birch] = ["ash/one", "birch/one"].map(|place| case.endpoint(place));
    case.declare(&[case.node_port_service(0, json!({})), case.slice(0, std::slice::from_ref(&ash))])?;
    let mut flows = vec![];
    for (from, to) in [("cedar/two", case.web(0)), ("outside", case.at("birch", 0))] {
        let flow = Flow::begin(case, from, to)?;
        flow.comes_to("ash/one");
        flows.push((flow, "ash/one".to_owned()));
    }
    case.declare(&[case.slice(0, &[terminating(ash.clone(), true), birch.clone()])])?;
    undisturbed(&flows);
    case.declare(&[case.slice(0, &[terminating(ash, false), birch])])?;
    flows.iter().for_each(|(flow, _)| flow.comes_to("birch/one"));
    Ok(())
}
