//! A pod: a namespace that weft's CNI plugin wires to its host.

use std::net::IpAddr;
use std::ops::Deref;

use serde_json::{Value, json};
use weft_kernel::netns::NetNs;

use crate::layout::pod_netns;
use crate::process::run;
use crate::record::PodRecord;
use crate::traffic::Endpoint;
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
    record: PodRecord,
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
        let mut record = PodRecord {
            host: self.name().into(),
            name: name.into(),
            netns: pod_netns(&self.node, name)?,
            addresses: vec![],
            result: Value::Null,
        };
        self.lab.home.update(|lab| {
            lab.namespaces.push(record.netns.clone());
            lab.pods.push(record.clone());
        })?;
        let added = netns::add_with_loopback(&record.netns).and_then(|()| self.cni("ADD", &record));
        match added.and_then(|result| Ok((addresses(&result)?, result))) {
            Ok((addresses, result)) => {
                (record.addresses, record.result) = (addresses, result);
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
        netns::add_with_loopback(&netns)?;
        Ok(Place::new(self.lab.clone(), format!("{}/{name}", self.name()), netns, vec![]))
    }

    /// Calls the plugin as a runtime does: the verb and the pod in the environment, the network's
    /// configuration on stdin, the answer on stdout.
    fn cni(&self, verb: &str, pod: &PodRecord) -> Result<Value, LabError> {
        let weft = self.lab.spec.weft.as_ref().ok_or_else(|| self.lab.without("weft binary"))?;
        let mut config = json!({
            "cniVersion": CNI_VERSION,
            "name": self.lab.spec.network,
            "type": "weft",
            "network": self.lab.spec.network,
            "runDir": self.run_dir(),
            "stateDir": self.state_dir(),
            "subnetFile": self.subnet_file(),
        });
        if !pod.result.is_null() {
            config["prevResult"] = pod.result.clone();
        }
        let mut command = self.command(&[weft.display().to_string().as_str(), "cni"])?;
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.netns)
            .env("CNI_NETNS", netns::path(&pod.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", weft.parent().unwrap_or(weft));
        let shown = format!("{}: CNI {verb} {}", self.name(), pod.name);
        let answer = run(command, shown, config.to_string().as_bytes(), LIMIT);
        if !answer.success() {
            // The refusal is on stdout, what led to it on stderr.
            let said = format!("{} {}", answer.stdout.trim(), answer.stderr.trim());
            return Err(LabError::Command { command: answer.command, exit: answer.exit, said });
        }
        if answer.stdout.trim().is_empty() { Ok(Value::Null) } else { answer.json() }
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
        Self { place, host, record: record.clone() }
    }

    /// The host it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its addresses, as the plugin gave them.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.record.addresses
    }

    /// What CNI ADD answered.
    pub fn result(&self) -> &Value {
        &self.record.result
    }

    /// Its IPv4 address, or else its IPv6 address.
    ///
    /// # Panics
    /// If it is not attached.
    #[track_caller]
    pub fn ip(&self) -> IpAddr {
        let v4 = self.addresses().iter().find(|address| address.is_ipv4());
        *v4.or(self.addresses().first()).expect("an attached pod has an address")
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// If the network has no IPv6.
    #[track_caller]
    pub fn ip6(&self) -> IpAddr {
        *self.addresses().iter().find(|address| address.is_ipv6()).expect("the network has IPv6")
    }

    /// Itself at its IPv6 address, as the far end of traffic.
    #[track_caller]
    pub fn v6(&self) -> Endpoint {
        Endpoint::new(self, self.ip6())
    }

    /// CNI CHECK: the plugin says whether everything is as it made it.
    pub fn check(&self) -> Result<(), LabError> {
        self.host.cni("CHECK", &self.record).map(drop)
    }

    /// CNI DEL, then the namespace is removed.
    pub fn remove(self) -> Result<(), LabError> {
        self.host.cni("DEL", &self.record)?;
        self.host.forget(&self.record)
    }

    /// Removes the namespace without a word to the plugin, as a crash would.
    pub fn vanish(self) -> Result<(), LabError> {
        self.host.forget(&self.record)
    }
}

/// The addresses of a CNI result: `ips[].address`, each with a prefix length.
fn addresses(result: &Value) -> Result<Vec<IpAddr>, LabError> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses: Vec<IpAddr> =
        ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect();
    if addresses.is_empty() {
        return Err(LabError::Traffic { what: format!("CNI ADD gave no address: {result}") });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_a_cni_result() {
        let table = [
            (json!({"ips": [{"address": "10.42.7.3/32"}, {"address": "fd42::3/128"}]}), 2),
            (json!({"ips": [{"address": "nonsense"}]}), 0),
            (json!({"cniVersion": "1.0.0"}), 0),
            (json!({"ips": {}}), 0),
            (Value::Null, 0),
        ];
        for (result, expected) in table {
            assert_eq!(addresses(&result).map_or(0, |found| found.len()), expected, "{result}");
        }
    }
}
