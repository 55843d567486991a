//! What the proxy counts of services' traffic, for `/metrics`.

pub mod connections;
pub mod relayed;
pub mod traffic;

use std::collections::BTreeMap;

use weft_daemon::metrics::{Counter, Family};

use crate::model::{Model, PortName};
use crate::plan::Frontend;
use crate::run::World;

/// The most endpoints that have series of their own: of each metric a scrape of these is some two
/// megabytes.
const MOST: usize = 10_000;

/// The labels of a service port: `namespace`, `service`, `port`, `protocol`.
fn labels(port: &PortName) -> [String; 4] {
    let protocol = port.protocol.to_string();
    [port.service.namespace.to_string(), port.service.name.to_string(), port.port.to_string(), protocol]
}

/// Has exactly these series, with these sums.
fn show<const N: usize>(family: &Family<Counter, N>, sums: &BTreeMap<[String; N], u64>) {
    for (labels, sum) in sums {
        family.with(labels.each_ref().map(String::as_str)).mirror(*sum);
    }
    family.retain(|labels| sums.contains_key(labels));
}

/// The service port that holds a frontend.
fn holder(world: &World, frontend: &Frontend) -> Option<PortName> {
    let (name, index) = world.claims.holder(frontend)?;
    let port = world.model.service(name)?.ports.get(index)?;
    Some(PortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol })
}

/// Whether there is such a service port.
fn has(model: &Model, port: &PortName) -> bool {
    let service = model.service(&port.service);
    service.is_some_and(|it| it.ports.iter().any(|it| it.name == port.port && it.protocol == port.protocol))
}
