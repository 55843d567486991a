//! Services, EndpointSlices and Nodes for the proxies of a lab: their shapes as Kubernetes writes them,
//! and the folder that all proxies read.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Inner;
use crate::layout::{Families, Role, first_router};
use crate::traffic::{Answer, Protocol};
use crate::wait::wait_for;
use crate::{Host, Lab, LabError};

/// How long what was declared may take to be in every kernel, on a starved machine.
const PROGRAMMED: Duration = Duration::from_secs(30);
/// How long a host may take to be told that nobody answers at an address: its own kernel tells it at once.
/// Shorter than TCP's first pause of a second, in which a SYN that came too early would be waited for.
const TOLD: Duration = Duration::from_millis(100);
/// The service whose presence says that everything declared before it is in the kernel, too.
const MARKER: &str = "declared";

/// The folder of manifests of a lab.
#[derive(Clone, Debug)]
pub struct Manifests {
    lab: Arc<Inner>,
}

impl Lab {
    /// What its service proxies read.
    pub fn manifests(&self) -> Manifests {
        Manifests { lab: self.inner().clone() }
    }
}

impl Host {
    pub(crate) fn manifests(&self) -> Manifests {
        Manifests { lab: self.lab.clone() }
    }
}

impl Manifests {
    /// Where it is.
    pub fn dir(&self) -> Result<PathBuf, LabError> {
        let dir = self.lab.home.dir().join("manifests");
        fs::create_dir_all(&dir).map_err(LabError::io(format!("make {}", dir.display())))?;
        Ok(dir)
    }

    /// Declares objects, each instead of what had its name before, and waits until every proxy that
    /// runs has programmed them.
    pub fn apply(&self, objects: &[Value]) -> Result<(), LabError> {
        self.write(objects)?;
        self.programmed()
    }

    /// As [`Manifests::apply`] without waiting. No proxy ever sees half an object.
    pub fn write(&self, objects: &[Value]) -> Result<(), LabError> {
        let dir = self.dir()?;
        objects.iter().try_for_each(|object| {
            let file = file_of(object);
            let (aside, path) = (dir.join(format!(".{file}.new")), dir.join(&file));
            fs::write(&aside, object.to_string())
                .and_then(|()| fs::rename(&aside, &path))
                .map_err(LabError::io(format!("write {}", path.display())))
        })
    }

    /// Takes objects away, whatever else is known of them than their names, and waits until every proxy
    /// that runs has done so.
    pub fn delete(&self, objects: &[Value]) -> Result<(), LabError> {
        let dir = self.dir()?;
        for object in objects {
            let path = dir.join(file_of(object));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LabError::io(format!("remove {}", path.display()))(error));
                }
                _ => {}
            }
        }
        self.programmed()
    }

    /// Waits until everything written before is in the kernel of every host whose proxy runs.
    ///
    /// It asks no proxy: a last service is declared, and a host is done when connections to it are refused:
    /// at one port by the host, because it has no endpoints, at the other by the router, which is its
    /// endpoint, and where cluster addresses refuse what they have no port for, at a third one for that
    /// reason. In iptables mode these are three steps in two tables, the last one ends the change, and the
    /// families' are apart, too.
    pub fn programmed(&self) -> Result<(), LabError> {
        let declared = || self.lab.declared.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut declared = declared();
            *declared += 1;
            let markers = self.markers(*declared);
            let ips: Vec<IpAddr> = markers.iter().map(|(marker, _)| *marker).collect();
            let ports = json!([{"name": "none", "port": 1}, {"name": "router", "port": 2}]);
            let slices = markers.iter().map(|(marker, router)| {
                let name = format!("{MARKER}-{}", if marker.is_ipv4() { "4" } else { "6" });
                slice(&name, MARKER, json!([{"name": "router", "port": 1}]), &[endpoint(*router, "router")])
            });
            let slices: Vec<Value> = slices.collect();
            self.write(&slices)?;
            self.write(&[service(MARKER, json!({"clusterIPs": ips, "ports": ports}))])?;
        }
        let mut args = self.lab.spec.proxy_args.iter().flatten();
        let last_port = if args.any(|arg| arg.starts_with("--service-cidrs")) { 3 } else { 2 };
        let off = self.lab.off()?;
        let on = self.lab.layout.with_role(Role::Host).filter(|node| !off.contains(&node.name));
        let hosts = on.map(|node| Host::new(self.lab.clone(), node.clone()));
        for host in hosts.filter(|host| host.proxy().process().is_some()) {
            // Others may have declared more meanwhile; the marker says so of all that came before it.
            wait_for(PROGRAMMED, || {
                let markers = self.markers(*declared());
                let ports = |ip: IpAddr| (1..=last_port).map(move |port| SocketAddr::new(ip, port));
                for at in markers.iter().flat_map(|(marker, _)| ports(*marker)) {
                    match host.asks(at, Protocol::Tcp, TOLD) {
                        Answer::Refused | Answer::Reset => {}
                        other => return Err(format!("{at}: {other:?}")),
                    }
                }
                Ok(())
            })
            .map_err(|timed_out| LabError::Late {
                what: format!("{} has not programmed what was declared", host.name()),
                timed_out,
                log: self.lab.log_tail(&crate::proxy::daemon(host.name())),
            })?;
        }
        Ok(())
    }

    /// The addresses of the last service when it is declared for that time, and of its endpoints. They are
    /// in corners of the space that no network of a lab uses (RFC 6598, RFC 4193).
    fn markers(&self, number: u32) -> Vec<(IpAddr, IpAddr)> {
        let [_, high, middle, low] = number.to_be_bytes();
        let v4 = IpAddr::from(Ipv4Addr::new(100, 112 + (high & 15), middle, low));
        let v6 = IpAddr::from(Ipv6Addr::from_bits((0xfd77_u128 << 112) + u128::from(number)));
        let [router4, router6] = first_router();
        match self.lab.spec.families {
            Families::Both => vec![(v4, router4), (v6, router6)],
            Families::V4 => vec![(v4, router4)],
            Families::V6 => vec![(v6, router6)],
        }
    }
}

/// A Service of this name. Of the two fields for cluster addresses the newer one is enough.
pub fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": spec,
    });
    if let Some(first) = service["spec"]["clusterIPs"].get(0).cloned() {
        service["spec"]["clusterIP"] = first;
    }
    service
}

/// An EndpointSlice of a service: `ports` as in the API, endpoints of one family.
pub fn slice(name: &str, service: &str, ports: Value, endpoints: &[Value]) -> Value {
    let first = endpoints.first().and_then(|endpoint| endpoint["addresses"][0].as_str());
    let v6 = first.is_some_and(|address| address.contains(':'));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": name,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A ready endpoint of a slice.
pub fn endpoint(address: IpAddr, node: &str) -> Value {
    json!({
        "addresses": [address],
        "nodeName": node,
        "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}

/// The endpoint, not ready yet.
pub fn unready(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    endpoint
}

/// The endpoint on its way out; whether it still serves is what its readiness probe says.
pub fn terminating(mut endpoint: Value, serving: bool) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": serving, "terminating": true});
    endpoint
}

/// A host as a Node: its addresses, the range of its pods, perhaps a zone.
pub fn node(host: &Host, zone: Option<&str>) -> Value {
    let address = |address: IpAddr| json!({"type": "InternalIP", "address": address});
    let addresses = match host.lab.spec.families {
        Families::Both => vec![address(host.v4().into()), address(host.v6().into())],
        Families::V4 => vec![address(host.v4().into())],
        Families::V6 => vec![address(host.v6().into())],
    };
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": host.name()},
        "spec": {},
        "status": {"addresses": addresses},
    });
    // Without an overlay there are none.
    if let Ok(subnets) = host.subnets() {
        node["spec"]["podCIDRs"] = json!(subnets);
    }
    if let Some(zone) = zone {
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
    }
    node
}

/// The file of an object: one for each.
fn file_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    format!("{}.{}.json", text(&object["kind"]), text(&object["metadata"]["name"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_shapes_of_the_api() {
        let v4 = endpoint("10.42.1.2".parse().expect("an address"), "ash");
        let v6 = endpoint("fd42::2".parse().expect("an address"), "ash");
        let of = |endpoints: &[Value]| slice("web-1", "web", json!([{"port": 80}]), endpoints);
        assert_eq!(of(std::slice::from_ref(&v4))["addressType"], "IPv4");
        assert_eq!(of(&[v6])["addressType"], "IPv6");
        assert_eq!(of(std::slice::from_ref(&v4))["endpoints"][0]["conditions"]["ready"], true);
        assert_eq!(terminating(v4.clone(), true)["conditions"]["serving"], true);
        assert_eq!(unready(v4)["conditions"]["ready"], false);
        let web = service("Web", json!({"clusterIPs": ["10.96.0.10", "fd96::10"]}));
        assert_eq!(web["spec"]["clusterIP"], "10.96.0.10");
        assert_eq!(file_of(&web), "service.web.json");
    }
}
