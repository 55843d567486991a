//! A pod: a namespace that weft's CNI plugin wires to its host.

use std::net::IpAddr;
use std::ops::Deref;

use serde_json::{Value, json};
use weft_kernel::netns::NetNs;

use crate::layout::pod_netns;
use crate::process::{Output, run};
use crate::record::PodRecord;
use crate::traffic::Endpoint;
use crate::wait::TimedOut;
use crate::{Host, LabError, Place, netns};

/// The version of the CNI specification that is spoken.
const CNI_VERSION: &str = "1.0.0";
/// How long the plugin may take.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// A pod. It is a [`Place`] and more.
#[derive(Clone, Debug)]
pub struct Pod {
    place: Place,
    host: Host,
    name: String,
    addresses: Vec<IpAddr>,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Host {
    /// Makes a pod and attaches it: CNI ADD, as a container runtime does it.
    pub fn pod(&self, name: &str) -> Result<Pod, LabError> {
        let netns = pod_netns(&self.node, name)?;
        let record = PodRecord { host: self.name().into(), name: name.into(), netns, addresses: vec![] };
        self.lab.home.update(|lab| {
            lab.namespaces.push(record.netns.clone());
            lab.pods.push(record.clone());
        })?;
        netns::add(&record.netns)?;
        let attached = self.cni("ADD", &record).and_then(|answer| addresses(&answer));
        match attached {
            Ok(addresses) => {
                let record = PodRecord { addresses, ..record };
                self.lab.home.update(|lab| {
                    lab.pods.retain(|pod| pod.netns != record.netns);
                    lab.pods.push(record.clone());
                })?;
                Ok(Pod::over(self.clone(), &record))
            }
            Err(error) => {
                self.forget(&record)?;
                Err(error)
            }
        }
    }

    /// Makes a pod whose name does not matter.
    pub fn new_pod(&self) -> Result<Pod, LabError> {
        let pods = self.lab.home.existing()?.pods;
        let taken = |name: &String| pods.iter().any(|pod| pod.host == self.name() && pod.name == *name);
        let name = (1..).map(|number| format!("pod-{number}")).find(|name| !taken(name));
        self.pod(&name.expect("numbers do not run out"))
    }

    /// The pod of this name, if there is one.
    pub fn find_pod(&self, name: &str) -> Result<Option<Pod>, LabError> {
        let pods = self.lab.home.existing()?.pods;
        let pod = pods.iter().find(|pod| pod.host == self.name() && pod.name == name);
        Ok(pod.map(|pod| Pod::over(self.clone(), pod)))
    }

    /// A bare namespace that ends with the lab: whoever asks wires it up.
    pub fn namespace(&self, name: &str) -> Result<Place, LabError> {
        let netns = pod_netns(&self.node, name)?;
        self.lab.home.update(|lab| lab.namespaces.push(netns.clone()))?;
        netns::add(&netns)?;
        Ok(Place::new(self.lab.clone(), format!("{}/{name}", self.name()), netns, vec![]))
    }

    /// Calls the plugin as a runtime does: the verb and the pod in the environment, the network's
    /// configuration on stdin.
    fn cni(&self, verb: &str, pod: &PodRecord) -> Result<Output, LabError> {
        let weft = self.lab.spec.weft.as_ref().ok_or_else(|| self.lab.without("weft binary"))?;
        let config = json!({
            "cniVersion": CNI_VERSION,
            "name": self.lab.spec.network,
            "type": "weft",
            "runDir": self.run_dir(),
            "stateDir": self.state_dir(),
            "subnetFile": self.subnet_file(),
        });
        let mut command = self.command(&[weft.display().to_string().as_str(), "cni"])?;
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.netns)
            .env("CNI_NETNS", netns::path(&pod.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", weft.parent().unwrap_or(weft));
        let shown = format!("{}: CNI {verb} {}", self.name(), pod.name);
        Ok(run(command, shown, config.to_string().as_bytes(), LIMIT))
    }

    fn forget(&self, pod: &PodRecord) -> Result<(), LabError> {
        self.lab.kill_inhabitants(std::slice::from_ref(&pod.netns))?;
        NetNs::delete(&pod.netns)?;
        self.lab.home.update(|lab| {
            lab.pods.retain(|known| known.netns != pod.netns);
            lab.namespaces.retain(|known| *known != pod.netns);
        })
    }
}

impl Pod {
    pub(crate) fn over(host: Host, record: &PodRecord) -> Self {
        let name = format!("{}/{}", record.host, record.name);
        let place = Place::new(host.lab.clone(), name, record.netns.clone(), vec![]);
        Self { place, host, name: record.name.clone(), addresses: record.addresses.clone() }
    }

    /// The host it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its addresses, as the plugin gave them.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its IPv4 address, or else its IPv6 address.
    ///
    /// # Panics
    /// If it has none: the plugin promised one.
    #[track_caller]
    pub fn ip(&self) -> IpAddr {
        let v4 = self.addresses.iter().find(|address| address.is_ipv4());
        *v4.or(self.addresses.first()).expect("attached with an address")
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// If the network has no IPv6.
    #[track_caller]
    pub fn ip6(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv6()).expect("the network has IPv6")
    }

    /// Itself at its IPv6 address, as the far end of traffic.
    #[track_caller]
    pub fn v6(&self) -> Endpoint {
        Endpoint::new(self, self.ip6())
    }

    /// CNI CHECK: the plugin says whether everything is as it made it.
    pub fn check(&self) -> Result<(), LabError> {
        // The specification wants the result of ADD back; weft's plugin needs only its own records.
        self.host.cni("CHECK", &self.record()).and_then(Output::ok).map(drop)
    }

    /// CNI DEL, then the namespace is removed.
    pub fn remove(self) -> Result<(), LabError> {
        let record = self.record();
        self.host.cni("DEL", &record).and_then(Output::ok)?;
        self.host.forget(&record)
    }

    fn record(&self) -> PodRecord {
        PodRecord {
            host: self.host.name().into(),
            name: self.name.clone(),
            netns: self.netns().into(),
            addresses: self.addresses.clone(),
        }
    }
}

/// The addresses of a CNI result: `ips[].address`, each with a prefix length.
fn addresses(output: &Output) -> Result<Vec<IpAddr>, LabError> {
    let result: Value = output.clone().json()?;
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses: Vec<IpAddr> =
        ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect();
    if addresses.is_empty() {
        let timed_out = TimedOut { limit: LIMIT, last: output.stdout.clone() };
        return Err(LabError::Late {
            what: format!("no address from {}", output.command),
            timed_out,
            log: String::new(),
        });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;

    #[test]
    fn addresses_are_read_from_a_cni_result() {
        let table = [
            (r#"{"ips":[{"address":"10.42.7.3/32"},{"address":"fd42::3/128"}]}"#, 2),
            (r#"{"ips":[{"address":"nonsense"}]}"#, 0),
            (r#"{"cniVersion":"1.0.0"}"#, 0),
            (r#"{"ips":{}}"#, 0),
        ];
        for (stdout, expected) in table {
            let output = Output {
                command: "CNI ADD".into(),
                stdout: stdout.into(),
                stderr: String::new(),
                exit: Exit::Code(0),
            };
            assert_eq!(addresses(&output).map_or(0, |found| found.len()), expected, "{stdout}");
        }
    }
}
