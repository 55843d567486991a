//! kube-proxy's file: `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, YAML or JSON. Pure.
//!
//! Everything that is written is looked at: a field is used, has no effect and is named, or is not known
//! and is named. kubeadm writes every field there is, empty where it means nothing; a field that is
//! empty, zero or false where that is the default is as if it were not there.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::unused::{Effect, Unused};
use super::{Given, cluster_cidrs, duration};
use crate::host::NodePortAddresses;
use crate::model::NodeName;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    /// What of it is used.
    pub given: Given,
    /// What is written and has no effect, one line each.
    pub notes: Vec<String>,
}

/// What in a file makes no sense. All of it is told at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BadFile(pub Vec<String>);

const KIND: &str = "KubeProxyConfiguration";
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The bit that marks what is to be masqueraded, in weft as in kube-proxy by default.
const MASQUERADE_BIT: i64 = 14;

/// Reads a file's contents.
///
/// # Errors
/// Every field whose value makes no sense, or must not be set, with the rule.
pub fn read(contents: &str) -> Result<Read, BadFile> {
    let value: Value =
        serde_saphyr::from_str_with_options(contents, serde_saphyr::options! { with_snippet: false })
            .map_err(|error| BadFile(vec![format!("it cannot be read: {error}")]))?;
    let Value::Object(fields) = &value else {
        return Err(BadFile(vec![format!("it has no fields; expected a {KIND}")]));
    };
    for (name, wanted) in [("kind", KIND), ("apiVersion", API_VERSION)] {
        let found = fields.get(name).and_then(Value::as_str).unwrap_or_default();
        if found != wanted {
            return Err(BadFile(vec![format!("{name}: `{found}` is not `{wanted}`")]));
        }
    }
    let mut reader = Reader::default();
    for (name, value) in fields.iter().filter(|(name, _)| !["kind", "apiVersion"].contains(&name.as_str())) {
        reader.visit(name, value);
    }
    if reader.wrong.is_empty() {
        Ok(Read { given: reader.given, notes: reader.notes })
    } else {
        Err(BadFile(reader.wrong))
    }
}

#[derive(Debug, Default)]
struct Reader {
    given: Given,
    notes: Vec<String>,
    wrong: Vec<String>,
}

impl Reader {
    /// Goes down to what has no fields of its own.
    fn visit(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.visit(&format!("{path}.{name}"), value);
                }
            }
            Value::Null => {}
            _ => self.leaf(path, value),
        }
    }

    fn leaf(&mut self, path: &str, value: &Value) {
        if let Some(unused) = Unused::field(path) {
            if !says_something(path, value) {
                return;
            }
            match unused.effect {
                Effect::None(why) => self.notes.push(format!("{path} has no effect: {why}")),
                Effect::Refused(rule) => self.wrong.push(format!("{path}: {rule}")),
            }
            return;
        }
        if let Err(rule) = self.set(path, value) {
            self.wrong.push(format!("{path}: {rule}"));
        }
    }

    /// Every field that is used.
    fn set(&mut self, path: &str, value: &Value) -> Result<(), String> {
        let given = &mut self.given;
        match path {
            "mode" => given.mode = parsed(value)?,
            "hostnameOverride" => {
                given.node_name = filled(value)?.map(|name| NodeName::new(&name.trim().to_lowercase()));
            }
            "clientConnection.kubeconfig" => given.kubeconfig = filled(value)?.map(PathBuf::from),
            "healthzBindAddress" => given.healthz = parsed(value)?,
            "metricsBindAddress" => given.metrics = parsed(value)?,
            "iptables.masqueradeAll" => given.iptables.masquerade_all = Some(boolean(value)?),
            "nftables.masqueradeAll" => given.nftables.masquerade_all = Some(boolean(value)?),
            "iptables.masqueradeBit" | "nftables.masqueradeBit" => masquerade_bit(integer(value)?)?,
            "iptables.localhostNodePorts" => given.localhost_node_ports = Some(boolean(value)?),
            "iptables.syncPeriod" => given.iptables.sync_period = Some(time(value)?),
            "nftables.syncPeriod" => given.nftables.sync_period = Some(time(value)?),
            "detectLocalMode" => given.detect_local = parsed(value)?,
            "detectLocal.bridgeInterface" => given.pod_bridge = filled(value)?,
            "detectLocal.interfaceNamePrefix" => given.pod_link_prefix = filled(value)?,
            "clusterCIDR" => {
                given.cluster_cidrs = filled(value)?.map(|text| cluster_cidrs(&text)).transpose()?
            }
            "nodePortAddresses" => given.node_ports = node_ports(value)?,
            "oomScoreAdj" => given.oom_score_adj = Some(oom_score_adj(integer(value)?)?),
            "conntrack.maxPerCore" => given.conntrack.max_per_core = Some(count(value)?),
            "conntrack.min" => given.conntrack.min = Some(count(value)?),
            "conntrack.tcpEstablishedTimeout" => given.conntrack.tcp_established = Some(time(value)?),
            "conntrack.tcpCloseWaitTimeout" => given.conntrack.tcp_close_wait = Some(time(value)?),
            "conntrack.tcpBeLiberal" => given.conntrack.tcp_be_liberal = Some(boolean(value)?),
            "conntrack.udpTimeout" => given.conntrack.udp = Some(time(value)?),
            "conntrack.udpStreamTimeout" => given.conntrack.udp_stream = Some(time(value)?),
            "logging.format" => given.log_json = log_json(filled(value)?)?,
            "logging.verbosity" => {
                let rule = "must be from 0 to 255";
                given.verbosity = Some(u8::try_from(integer(value)?).map_err(|_| rule)?);
            }
            _ => self.notes.push(format!("{path} is not known, and has no effect")),
        }
        Ok(())
    }
}

/// Whether a value without a meaning here was meant to say something: kubeadm writes the rest, too, and
/// some of it with kube-proxy's defaults.
fn says_something(path: &str, value: &Value) -> bool {
    let default = match (path, value.as_str()) {
        ("bindAddress", Some("0.0.0.0" | "::")) | ("configSyncPeriod", Some("15m0s")) => true,
        ("logging.flushFrequency", Some("5s")) => true,
        ("clientConnection.contentType", Some("application/vnd.kubernetes.protobuf")) => true,
        (_, Some("1s")) => path.ends_with(".minSyncPeriod"),
        // Nanoseconds, as kubeadm writes it.
        ("logging.flushFrequency", None) => value.as_u64() == Some(5_000_000_000),
        _ => false,
    };
    let empty = match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s" || text == "0",
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    !default && !empty
}

/// The bit that marks what is to be masqueraded.
///
/// # Errors
/// When it is another one than weft's.
pub fn masquerade_bit(bit: i64) -> Result<(), String> {
    match bit {
        MASQUERADE_BIT => Ok(()),
        _ => Err(format!(
            "{bit}: weft marks with bit {MASQUERADE_BIT}; see that nobody else does, and leave it out"
        )),
    }
}

/// What the kernel may be told of a process (proc(5), `oom_score_adj`).
///
/// # Errors
/// When it is out of range.
pub fn oom_score_adj(value: i64) -> Result<i16, String> {
    let fits = i16::try_from(value).ok().filter(|value| (-1000..=1000).contains(value));
    fits.ok_or_else(|| format!("{value} is not from -1000 to 1000"))
}

fn string(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("{value} must be a string"))
}

/// A text that is not empty.
fn filled(value: &Value) -> Result<Option<String>, String> {
    let text = string(value)?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// Something with rules of its own, unless it is empty.
fn parsed<T: FromStr<Err: ToString>>(value: &Value) -> Result<Option<T>, String> {
    filled(value)?.map(|text| text.parse().map_err(|error: T::Err| error.to_string())).transpose()
}

fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{value} is neither true nor false"))
}

fn integer(value: &Value) -> Result<i64, String> {
    value.as_i64().ok_or_else(|| format!("{value} is no whole number"))
}

fn count(value: &Value) -> Result<u32, String> {
    let number = integer(value)?;
    u32::try_from(number)
        .ok()
        .filter(|count| i32::try_from(*count).is_ok())
        .ok_or_else(|| format!("{number} is not from 0 to {}", i32::MAX))
}

fn time(value: &Value) -> Result<Duration, String> {
    duration::parse(string(value)?).map_err(|error| error.to_string())
}

fn node_ports(value: &Value) -> Result<Option<NodePortAddresses>, String> {
    let Value::Array(list) = value else { return Err(format!("{value} must be a list")) };
    let entries = list.iter().map(string).collect::<Result<Vec<_>, _>>()?;
    let parsed = NodePortAddresses::parse(entries.iter().copied()).map_err(|error| error.to_string())?;
    Ok((!entries.is_empty()).then_some(parsed))
}

fn log_json(format: Option<String>) -> Result<Option<bool>, String> {
    match format.as_deref() {
        None => Ok(None),
        Some("json") => Ok(Some(true)),
        Some("text") => Ok(Some(false)),
        Some(other) => Err(format!("`{other}` is neither `text` nor `json`")),
    }
}
