//! The semantics of Services row by row: each row is a world, a packet and its fate, and both the
//! simulator and the plan have to see it so. The rows are named after kube-proxy's features and
//! Kubernetes' end-to-end tests.

mod endpoints;
mod frontends;
mod masquerade;

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::host::{DetectLocal, Host, NodePortAddresses, Observed, Settings, Strict};
use crate::model::{Change, Model, NodeName, Object, Protocol, ServiceName, read};
use crate::plan::agreement::{Fate, expected, follow};
use crate::plan::{self, Claims};
use crate::simulate::Packet;

/// Two hosts, `ash` (us, zone east) and `birch` (zone west), and a service `shop/web` with everything
/// a service can be reached by and one ready endpoint on each host.
#[derive(Clone)]
struct World {
    service: Value,
    others: Vec<Value>,
    endpoints: Vec<Value>,
    settings: Settings,
    zone: Option<&'static str>,
}

const HERE: &str = "10.1.0.5";
const THERE: &str = "10.1.1.5";
/// Both endpoints, in the words of a fate.
const BOTH: &str = "10.1.0.5:8080, 10.1.1.5:8080";
const BOTH_MASQUERADED: &str = "10.1.0.5:8080 masqueraded, 10.1.1.5:8080 masqueraded";

/// Who asks: a pod of this host, a pod elsewhere, somebody outside, a process of this host.
const POD: &str = "10.1.0.9@pod0";
const FAR_POD: &str = "10.1.1.9@uplink";
const OUTSIDE: &str = "192.168.7.1@uplink";
const PROCESS: &str = "192.0.2.1";

/// What is asked.
const CLUSTER_IP: &str = "10.96.0.10:80/tcp";
const EXTERNAL_IP: &str = "198.51.100.7:80/tcp";
const BALANCER: &str = "203.0.113.5:80/tcp";
const NODE_PORT: &str = "192.0.2.1:30080/tcp";

fn world() -> World {
    World {
        service: json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.10",
                "externalIPs": ["198.51.100.7"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}},
        }),
        others: Vec::new(),
        endpoints: vec![endpoint(HERE, "ash", READY), endpoint(THERE, "birch", READY)],
        settings: Settings { detect_local: DetectLocal::Bridge("pod0".to_owned()), ..Settings::default() },
        zone: Some("east"),
    }
}

/// Ready, serving, terminating.
type Conditions = [bool; 3];
const READY: Conditions = [true, true, false];
const UNREADY: Conditions = [false, false, false];
const LEAVING: Conditions = [false, true, true];
const DEAD: Conditions = [false, false, true];
/// `publishNotReadyAddresses` makes the slice controller call every pod ready, those that end too.
const PUBLISHED: Conditions = [true, false, true];

fn endpoint(address: &str, node: &str, [ready, serving, terminating]: Conditions) -> Value {
    let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

fn hinted(mut endpoint: Value, zones: &[&str], nodes: &[&str]) -> Value {
    let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    endpoint["hints"] = json!({"forZones": named(zones), "forNodes": named(nodes)});
    endpoint
}

impl World {
    fn spec(mut self, field: &str, value: Value) -> Self {
        self.service["spec"][field] = value;
        self
    }

    fn meta(mut self, field: &str, value: Value) -> Self {
        self.service["metadata"][field] = value;
        self
    }

    fn ingress(mut self, value: Value) -> Self {
        self.service["status"]["loadBalancer"]["ingress"] = value;
        self
    }

    fn internal_local(self) -> Self {
        self.spec("internalTrafficPolicy", json!("Local"))
    }

    fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    fn endpoints(mut self, endpoints: &[Value]) -> Self {
        self.endpoints = endpoints.to_vec();
        self
    }

    fn also(mut self, service: Value) -> Self {
        self.others.push(service);
        self
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn model(&self) -> Model {
        let mut model = Model::default();
        let slice = |name: &str, family: &str, endpoints: &[&Value]| {
            json!({
                "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": family,
                "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
                "endpoints": endpoints,
            })
        };
        let is_v6 = |it: &&Value| it["addresses"][0].as_str().unwrap().contains(':');
        let (v6, v4): (Vec<&Value>, Vec<&Value>) = self.endpoints.iter().partition(is_v6);
        let node = json!({
            "metadata": {"name": "ash", "labels": self.zone.map(|zone| json!({"topology.kubernetes.io/zone": zone}))},
            "spec": {"podCIDRs": ["10.1.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
                                     {"type": "InternalIP", "address": "2001:db8:2::1"}]},
        });
        let mut readings = vec![read::node(&serde_json::from_value(node).unwrap())];
        for service in [&self.service].into_iter().chain(&self.others) {
            readings.push(read::service(&serde_json::from_value(service.clone()).unwrap()));
        }
        for (name, family, endpoints) in [("web-4", "IPv4", v4), ("web-6", "IPv6", v6)] {
            readings.push(read::slice(&serde_json::from_value(slice(name, family, &endpoints)).unwrap()));
        }
        for reading in readings {
            assert_eq!(reading.problems, []);
            model.apply(reading.change.unwrap());
        }
        model
    }

    fn host(&self, model: &Model) -> Host {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let addresses = ["192.0.2.1", "192.0.2.11", "2001:db8:2::1", "203.0.113.5"].map(ip);
        let observed = Observed { addresses: addresses.into(), primary: Vec::new() };
        Host::on(model, NodeName::new("ash"), observed, self.settings.clone())
    }

    /// The fate of the packet, in words: the same by the simulator and by the plan.
    fn fate(&self, source: &str, destination: &str, remembered: Option<&str>) -> String {
        let model = self.model();
        let host = self.host(&model);
        let packet = packet(source, destination);
        let remembered: Option<SocketAddr> = remembered.map(|text| text.parse().unwrap());
        let plan = plan::everything(&model, &Claims::of(&model), &host);
        let fate = expected(&model, &host, &packet, remembered);
        assert_eq!(follow(&plan, &host, &packet, remembered), fate, "{packet}");
        words(&fate)
    }
}

/// `10.1.0.9@pod0` and `10.96.0.10:80/tcp` as a packet.
fn packet(source: &str, destination: &str) -> Packet {
    let (source, input) = match source.split_once('@') {
        Some((source, link)) => (source, Some(link.to_owned())),
        None => (source, None),
    };
    let (destination, protocol) = destination.split_once('/').unwrap();
    let protocol = Protocol::ALL.into_iter().find(|it| it.to_string() == protocol).unwrap();
    Packet { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, input }
}

fn words(fate: &Fate) -> String {
    match fate {
        Fate::Untouched => "untouched".to_owned(),
        Fate::Reject => "reject".to_owned(),
        Fate::Drop => "drop".to_owned(),
        Fate::To(_, chances) => {
            let each = chances.iter().map(|(endpoint, masquerade)| match masquerade {
                true => format!("{endpoint} masqueraded"),
                false => endpoint.to_string(),
            });
            each.collect::<Vec<_>>().join(", ")
        }
    }
}

/// Case, world, who asks, what, and what becomes of it.
type Row = (&'static str, World, &'static str, &'static str, &'static str);

fn check(rows: Vec<Row>) {
    for (case, world, source, destination, expected) in rows {
        assert_eq!(world.fate(source, destination, None), expected, "{case}");
    }
}
