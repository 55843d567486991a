//! The services that are loaded: many alike, and one that traffic goes to. Pure.
//!
//! | range | what |
//! |---|---|
//! | 10.96.0.0/12 | cluster addresses, as kubeadm sets it |
//! | 10.128.0.0/9 | endpoints: each address is the server's, so that every service answers |
//! | 10.42.1.0/24 | the client's and the server's own address |

use std::net::Ipv4Addr;
use std::ops::Range;

use serde_json::{Value, json};

/// The namespace of all of them.
pub(super) const NAMESPACE: &str = "bench";
/// Where all endpoints are.
pub(super) const ENDPOINTS: &str = "10.128.0.0/9";
/// The port of every service, and the one that its endpoints listen at.
pub(super) const PORT: u16 = 80;
pub(super) const TARGET_PORT: u16 = 8080;
/// The first cluster address and the first endpoint, counted from their ranges' begin.
const FIRST: u32 = 256;
/// The first node port. The usual range has room for 2,768; a proxy takes any.
const FIRST_NODE_PORT: u32 = 10_000;
/// How many addresses each service may have for its endpoints in the course of a run.
const ADDRESSES: u32 = 4;
/// How many services are in one file.
const PER_FILE: u32 = 500;
/// How many services change, each with its slice in a file of its own.
pub(super) const CHANGING: u32 = 16;

/// One of the many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service(pub(super) u32);

impl Service {
    /// Its name.
    pub(super) fn name(self) -> String {
        format!("s{:05}", self.0)
    }

    /// Its cluster address.
    pub(super) fn cluster(self) -> Ipv4Addr {
        at(Ipv4Addr::new(10, 96, 0, 0), FIRST + self.0)
    }

    /// Its port on every address of the host: there are fewer than 50,000 services.
    pub(super) fn node_port(self) -> u16 {
        u16::try_from(FIRST_NODE_PORT + self.0).unwrap_or(u16::MAX)
    }

    /// One of its endpoints' addresses.
    pub(super) fn endpoint(self, number: u8) -> Ipv4Addr {
        at(Ipv4Addr::new(10, 128, 0, 0), FIRST + self.0 * ADDRESSES + u32::from(number))
    }

    fn declared(self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name(), "namespace": NAMESPACE},
            "spec": {
                "type": "NodePort",
                "clusterIP": self.cluster(),
                "clusterIPs": [self.cluster()],
                "ipFamilies": ["IPv4"],
                "selector": {"app": self.name()},
                "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT,
                           "nodePort": self.node_port()}],
            },
        })
    }

    fn slice(self, endpoints: &[u8]) -> Value {
        let ports = json!([{"name": "http", "protocol": "TCP", "port": TARGET_PORT}]);
        let addresses: Vec<Ipv4Addr> = endpoints.iter().map(|number| self.endpoint(*number)).collect();
        slice(&self.name(), &addresses, &ports)
    }
}

/// How many services, with how many endpoints each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) services: u32,
    pub(super) endpoints: u8,
}

impl Load {
    /// So many services: with two endpoints each, or with one if there are very many.
    pub(super) const fn of(services: u32) -> Self {
        Self { services, endpoints: if services > 10_000 { 1 } else { 2 } }
    }

    pub(super) fn services(self) -> impl Iterator<Item = Service> {
        (0..self.services).map(Service)
    }

    /// Which endpoints each service has at first, by number.
    pub(super) fn at_first(self) -> Vec<u8> {
        (0..self.endpoints).collect()
    }

    /// The service that the `turn`th change is about.
    pub(super) fn changed(self, turn: u32) -> Service {
        Service(turn / KINDS % CHANGING.min(self.services))
    }

    /// Its endpoints from then on: one more, then another one instead, then one fewer.
    pub(super) fn after(self, turn: u32) -> Vec<u8> {
        let extra = match turn % KINDS {
            0 => Some(self.endpoints),
            1 => Some(self.endpoints + 1),
            _ => None,
        };
        (0..self.endpoints).chain(extra).collect()
    }

    /// The files that declare all of it, by name, and the target where there is one.
    pub(super) fn files(self, target: Option<&Target>) -> Vec<(String, String)> {
        let starts = (0..self.services).step_by(PER_FILE as usize);
        let many = starts.map(|start| {
            let services = start..self.services.min(start + PER_FILE);
            (format!("services-{start:05}.json"), list(self.declared(services)))
        });
        let changing =
            (0..CHANGING.min(self.services)).map(|number| self.change(Service(number), self.at_first()));
        let target = target.map(|target| ("target.json".to_owned(), list(target.declared().into())));
        many.chain(changing).chain(target).collect()
    }

    /// All of it, object by object.
    pub(super) fn objects(self, target: &Target) -> Vec<Value> {
        let endpoints = self.at_first();
        let many = self.services().flat_map(|service| [service.declared(), service.slice(&endpoints)]);
        many.chain(target.declared()).collect()
    }

    /// The file that holds the endpoints of a service that changes.
    pub(super) fn change(self, service: Service, endpoints: Vec<u8>) -> (String, String) {
        (format!("slice-{}.json", service.name()), service.slice(&endpoints).to_string())
    }

    fn declared(self, services: Range<u32>) -> Vec<Value> {
        let endpoints = self.at_first();
        services
            .flat_map(|number| {
                let service = Service(number);
                let slice = (number >= CHANGING).then(|| service.slice(&endpoints));
                [Some(service.declared()), slice].into_iter().flatten()
            })
            .collect()
    }
}

/// One endpoint more, another one instead, one fewer.
pub(super) const KINDS: u32 = 3;

/// The service that bulk traffic goes to: two endpoints that are both the server, one port for each
/// tool, the same there as here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) endpoints: [Ipv4Addr; 2],
    pub(super) ports: [u16; 3],
}

impl Target {
    pub(super) const NAME: &str = "target";
    /// Its cluster address.
    pub(super) const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

    fn declared(&self) -> [Value; 2] {
        let name = |port: u16| format!("p{port}");
        let ports = self
            .ports
            .map(|port| json!({"name": name(port), "protocol": "TCP", "port": port, "targetPort": port}));
        let listens = self.ports.map(|port| json!({"name": name(port), "protocol": "TCP", "port": port}));
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": Self::NAME, "namespace": NAMESPACE},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": Self::CLUSTER,
                "clusterIPs": [Self::CLUSTER],
                "ipFamilies": ["IPv4"],
                "selector": {"app": Self::NAME},
                "ports": ports,
            },
        });
        [service, slice(Self::NAME, &self.endpoints, &json!(listens))]
    }
}

fn slice(service: &str, addresses: &[Ipv4Addr], ports: &Value) -> Value {
    let endpoint = |address: &Ipv4Addr| json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-x1"),
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": ports,
    })
}

fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn at(base: Ipv4Addr, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_services_share_anything_and_all_fits() {
        let load = Load::of(45_000);
        let clusters: BTreeSet<Ipv4Addr> = load.services().map(Service::cluster).collect();
        let node_ports: BTreeSet<u16> = load.services().map(Service::node_port).collect();
        let endpoints: BTreeSet<Ipv4Addr> =
            load.services().flat_map(|service| (0..4).map(move |n| service.endpoint(n))).collect();
        assert_eq!([clusters.len(), node_ports.len(), endpoints.len()], [45_000, 45_000, 180_000]);
        assert!(
            clusters
                .iter()
                .all(|address| address.octets()[0] == 10 && (96..112).contains(&address.octets()[1]))
        );
        assert!(endpoints.iter().all(|address| address.octets()[0] == 10 && address.octets()[1] >= 128));
        assert!(!clusters.contains(&Target::CLUSTER) && !node_ports.contains(&u16::MAX));
    }

    #[test]
    fn a_change_is_one_endpoint_and_three_of_them_lead_back() {
        for (services, begin) in [(1000, vec![0, 1]), (45_000, vec![0])] {
            let load = Load::of(services);
            let mut now = load.at_first();
            assert_eq!(now, begin);
            for turn in 0..9 {
                let next = load.after(turn);
                let (was, is): (BTreeSet<u8>, BTreeSet<u8>) =
                    (now.into_iter().collect(), next.iter().copied().collect());
                assert!(was.difference(&is).count() <= 1 && is.difference(&was).count() <= 1 && was != is);
                now = next;
                assert_eq!(load.changed(turn), Service(turn / 3));
            }
            assert_eq!(now, begin);
        }
        assert_eq!(Load::of(10).changed(30), Service(0));
    }

    #[test]
    fn every_object_is_in_exactly_one_file() {
        let target = Target { endpoints: [Ipv4Addr::new(10, 42, 1, 3); 2], ports: [1, 2, 3] };
        let files = Load::of(1001).files(Some(&target));
        let objects = files.iter().flat_map(|(_, contents)| {
            let value: Value = serde_json::from_str(contents).unwrap();
            let items = value["items"].as_array().cloned();
            items.unwrap_or_else(|| vec![value])
        });
        let names: Vec<String> =
            objects.map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect();
        assert_eq!(names.len(), 2 * 1002);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let in_files: BTreeSet<&String> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(in_files.len(), 3 + 16 + 1);
        let (name, contents) = Load::of(1001).change(Service(7), vec![0, 2]);
        assert!(in_files.contains(&name));
        assert!(contents.contains("\"10.128.1.28\"") && contents.contains("\"10.128.1.30\""), "{contents}");
    }
}
