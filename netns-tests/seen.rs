//! What the stories see of an overlay from outside: subnets, readiness, routes, keys, numbers.

use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::traffic::Probe;
use weft_lab::{Builder, Etcd, Host, Lab, LabError, Place};

/// The binary just built.
pub(crate) const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// By when anything that is bound to happen has happened on a starved machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How often a pinger asks.
pub(crate) const BEAT: Duration = Duration::from_millis(50);
const PREFIX: &str = "/coreos.com/network";

/// A lab of this name with the binary just built.
pub(crate) fn lab(story: &str) -> Builder {
    Lab::new(story).weft(WEFT)
}

/// The key under the network's prefix.
pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

/// flannel's key of a subnet.
pub(crate) fn lease_key(subnet: &str) -> String {
    key(&format!("subnets/{}", subnet.replace('/', "-")))
}

/// weft's record of a subnet's owner.
pub(crate) fn owner_key(subnet: &str) -> String {
    key(&format!("weft/owner/{}", subnet.replace('/', "-")))
}

/// The host's IPv4 subnet, as keys and routes write it.
pub(crate) fn subnet(host: &Host) -> Result<String, LabError> {
    host.subnet().map(|subnet| subnet.to_string())
}

/// `/readyz` answers with this status and says all of this.
pub(crate) fn says(host: &Host, status: u16, words: &[&str]) -> Result<(), String> {
    let answer = host.api("/readyz").map_err(|error| error.chain())?;
    if answer.status == status && words.iter().all(|word| answer.body.contains(word)) {
        return Ok(());
    }
    Err(format!("{} says {} {}", host.name(), answer.status, answer.body.trim()))
}

/// `/readyz` is content, without any reservation.
pub(crate) fn is_well(host: &Host) -> Result<(), String> {
    let answer = host.api("/readyz").map_err(|error| error.chain())?;
    if (answer.status, answer.body.as_str()) == (200, "ready\n") {
        return Ok(());
    }
    Err(format!("{} says {} {}", host.name(), answer.status, answer.body.trim()))
}

/// The kernel's routes.
pub(crate) fn routes(place: &Place) -> String {
    place.run("ip -4 route").stdout
}

/// A route to the subnet is in the kernel.
pub(crate) fn routes_to(host: &Host, subnet: &str) -> Result<(), String> {
    let routes = routes(host);
    let found = routes.lines().any(|line| line.split(' ').next() == Some(subnet));
    found.then_some(()).ok_or_else(|| format!("{} has no route to {subnet}: {routes}", host.name()))
}

/// No route to the subnet is in the kernel.
pub(crate) fn forgot(host: &Host, subnet: &str) -> Result<(), String> {
    match routes_to(host, subnet) {
        Ok(()) => Err(format!("{} still has a route to {subnet}", host.name())),
        Err(_) => Ok(()),
    }
}

/// A host's row of `weft peers`, as the daemon's API gives it.
pub(crate) fn peer(host: &Host, subnet: &str) -> Result<Value, String> {
    let answer = host.api("/peers").map_err(|error| error.chain())?;
    let status: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = peers.iter().find(|peer| peer["subnet"] == json!(subnet)).cloned();
    found.ok_or_else(|| format!("{} knows no {subnet}: {}", host.name(), answer.body))
}

/// How a host sees another: `live`, `silent`, `kept`, ...
pub(crate) fn is_seen_as(host: &Host, subnet: &str, state: &str) -> Result<(), String> {
    let seen = peer(host, subnet)?;
    if seen["state"] == json!(state) { Ok(()) } else { Err(format!("{} sees {seen}", host.name())) }
}

/// A key's value as JSON.
pub(crate) fn value(etcd: &Etcd, key: &str) -> Result<Value, LabError> {
    let text = etcd.get(key)?.ok_or_else(|| LabError::Traffic { what: format!("no {key}") })?;
    let command = format!("get {key}");
    serde_json::from_str(&text).map_err(|source| LabError::Answer { command, answer: text, source })
}

/// The etcd lease that a key dies with; `None` for ever. An error without the key.
pub(crate) fn lease_of(etcd: &Etcd, key: &str) -> Result<Option<i64>, LabError> {
    let answer = etcd.ctl(&["get", "-w", "json", "--", key])?.json()?;
    let found = answer["kvs"].get(0).ok_or_else(|| LabError::Traffic { what: format!("no {key}") })?;
    Ok(found["lease"].as_i64().filter(|lease| *lease != 0))
}

/// Writes a key under a fresh etcd lease of a day, as flanneld does.
pub(crate) fn put_leased(etcd: &Etcd, key: &str, value: &str) -> Result<(), LabError> {
    let granted = etcd.ctl(&["lease", "grant", "86400"])?.ok()?;
    let id = granted.split(' ').nth(1).unwrap_or_default().to_owned();
    etcd.ctl(&["put", &format!("--lease={id}"), "--", key, value])?.ok().map(drop)
}

/// What flanneld with the vxlan backend writes for a host: its JSON to the letter.
pub(crate) fn flannels(public: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Ends a probe of which nothing may be lost.
#[track_caller]
pub(crate) fn lossless(probe: Probe) {
    if let Err(error) = probe.stop_without_loss() {
        panic!("{error}");
    }
}
