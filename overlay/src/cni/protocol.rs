//! The CNI protocol, versions 0.3.0 to 1.1.0: what a runtime asks and how it is answered. Pure.
//!
//! <https://www.cni.dev/docs/spec/>. The environment and standard input come in as values; nothing
//! here reads either.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// Versions this plugin speaks, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach an interface.
    Add,
    /// Detach it; a success also when it is gone already.
    Del,
    /// Is it still as ADD left it?
    Check,
    /// Remove everything that is not in the list of valid attachments.
    Gc,
    /// Could ADD work now?
    Status,
    /// Which versions are spoken?
    Version,
}

/// One call, complete and valid for its command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is wanted.
    pub command: Command,
    /// CNI_CONTAINERID; empty for GC, STATUS and VERSION.
    pub container: String,
    /// CNI_NETNS; may be missing for DEL, when the namespace is gone.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME.
    pub ifname: String,
    /// The configuration from standard input.
    pub conf: NetConf,
}

/// The part of the network configuration that this plugin knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct NetConf {
    /// The protocol's version that the runtime speaks.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// The configuration's name.
    #[serde(default)]
    pub name: String,
    /// weft's network on this host, as in `weft overlay --network`.
    #[serde(default = "default_network")]
    pub network: String,
    /// As in `weft overlay --run-dir`.
    #[serde(rename = "runDir", default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// As in `weft overlay --state-dir`.
    #[serde(rename = "stateDir", default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Capabilities' values.
    #[serde(rename = "runtimeConfig", default)]
    pub runtime: RuntimeConfig,
    /// What ADD answered, for CHECK and DEL; or what the plugin before us in a chain answered.
    #[serde(rename = "prevResult", default)]
    pub prev_result: Option<Value>,
    /// GC: the attachments that must stay.
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments", default)]
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// Values for the capabilities that a configuration list switches on.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct RuntimeConfig {
    /// Addresses the user asked for (capability `ips`), with or without a prefix length.
    #[serde(default)]
    pub ips: Vec<String>,
}

/// An attachment that GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The interface in it.
    pub ifname: String,
}

/// What ADD made, in the terms of the protocol's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The host's end of the pair.
    pub host_link: String,
    /// Its MAC.
    pub host_mac: String,
    /// The pod's end.
    pub ifname: String,
    /// Its MAC.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The pod's namespace.
    pub netns: PathBuf,
    /// Addresses with their gateways.
    pub ips: Vec<(IpNetwork, IpAddr)>,
}

/// A refusal with one of the protocol's codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// 1 to 11 and 50, 51 by the specification; 100 and above are ours.
    pub code: u32,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl Refusal {
    /// The version is one we do not speak.
    pub const INCOMPATIBLE: u32 = 1;
    /// The container or its namespace is not there.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A CNI_* variable is missing or wrong.
    pub const BAD_ENVIRONMENT: u32 = 4;
    /// Standard input is no JSON.
    pub const BAD_JSON: u32 = 6;
    /// The configuration cannot be used.
    pub const BAD_CONFIG: u32 = 7;
    /// The host has no subnet yet: ask again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD would fail.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The wiring failed.
    pub const FAILED: u32 = 100;

    /// A refusal.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As the runtime reads it on standard output.
    pub fn to_json(&self, version: &str) -> Value {
        let version = if version.is_empty() { "1.0.0" } else { version };
        json!({"cniVersion": version, "code": self.code, "msg": self.message})
    }
}

/// Reads one call from the environment and standard input.
///
/// # Errors
/// A [`Refusal`] that names the variable or key, its value and the rule.
pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Call, Refusal> {
    let command = command(&env)?;
    if command == Command::Version {
        let conf = serde_json::from_slice(stdin).unwrap_or_default();
        return Ok(Call { command, container: String::new(), netns: None, ifname: String::new(), conf });
    }
    let conf: NetConf = serde_json::from_slice(stdin).map_err(|error| {
        Refusal::new(Refusal::BAD_JSON, format!("the network configuration cannot be read: {error}"))
    })?;
    if !VERSIONS.contains(&conf.version.as_str()) {
        let spoken = VERSIONS.join(", ");
        let message = format!("cniVersion is `{}`; this plugin speaks {spoken}", conf.version);
        return Err(Refusal::new(Refusal::INCOMPATIBLE, message));
    }
    if !is_plain_name(&conf.network) {
        let message =
            format!("network is `{}`; it must be 1 to 32 of the characters a-z 0-9 -", conf.network);
        return Err(Refusal::new(Refusal::BAD_CONFIG, message));
    }
    let per_container = matches!(command, Command::Add | Command::Del | Command::Check);
    let text = |name: &str| env(name).filter(|value| !value.is_empty());
    let needed = |name: &str| {
        text(name).ok_or_else(|| Refusal::new(Refusal::BAD_ENVIRONMENT, format!("{name} is not set")))
    };
    let (mut container, mut ifname, mut netns) = (String::new(), String::new(), None);
    if per_container {
        container = needed("CNI_CONTAINERID")?;
        ifname = needed("CNI_IFNAME")?;
        if let Err(error) = ifname.parse::<weft_kernel::net::LinkName>() {
            return Err(Refusal::new(Refusal::BAD_ENVIRONMENT, format!("CNI_IFNAME: {error}")));
        }
        netns = match command {
            Command::Del => text("CNI_NETNS"),
            _ => Some(needed("CNI_NETNS")?),
        };
    }
    if command == Command::Gc && conf.valid_attachments.is_none() {
        let message = "GC needs `cni.dev/valid-attachments`; without the list nothing may be removed";
        return Err(Refusal::new(Refusal::BAD_CONFIG, message));
    }
    Ok(Call { command, container, netns: netns.map(PathBuf::from), ifname, conf })
}

fn command(env: &impl Fn(&str) -> Option<String>) -> Result<Command, Refusal> {
    let raw = env("CNI_COMMAND").unwrap_or_default();
    Ok(match raw.as_str() {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        "VERSION" => Command::Version,
        "" => {
            let message = "CNI_COMMAND is not set: this program is run by a container runtime, not by hand";
            return Err(Refusal::new(Refusal::BAD_ENVIRONMENT, message));
        }
        other => {
            let message = format!("CNI_COMMAND is `{other}`; known are ADD, DEL, CHECK, GC, STATUS, VERSION");
            return Err(Refusal::new(Refusal::BAD_ENVIRONMENT, message));
        }
    })
}

/// The addresses a user asked for.
///
/// # Errors
/// When one of them is no address.
pub fn wanted_addresses(conf: &NetConf) -> Result<Vec<IpAddr>, Refusal> {
    let parse = |raw: &String| {
        let addr = raw.split_once('/').map_or(raw.as_str(), |(addr, _)| addr);
        addr.parse().map_err(|_| {
            Refusal::new(
                Refusal::BAD_CONFIG,
                format!("runtimeConfig.ips holds `{raw}`, which is no IP address"),
            )
        })
    };
    conf.runtime.ips.iter().map(parse).collect()
}

/// ADD's answer in the form of the version asked in.
pub fn result(version: &str, attached: &Attached) -> Value {
    let with_mtu = version == "1.1.0";
    let interface = |name: &str, mac: &str, mtu: u32, sandbox: Option<&PathBuf>| {
        let mut value = json!({"name": name, "mac": mac});
        if let Some(sandbox) = sandbox {
            value["sandbox"] = json!(sandbox);
        }
        if with_mtu {
            value["mtu"] = json!(mtu);
        }
        value
    };
    let ips: Vec<Value> = attached
        .ips
        .iter()
        .map(|(address, gateway)| {
            let mut value = json!({"address": address.to_string(), "gateway": gateway, "interface": 1});
            if version.starts_with("0.") {
                value["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
            }
            value
        })
        .collect();
    let default = |is_ipv4: bool| if is_ipv4 { "0.0.0.0/0" } else { "::/0" };
    let routes: Vec<Value> = attached
        .ips
        .iter()
        .map(|(address, gateway)| json!({"dst": default(address.is_ipv4()), "gw": gateway}))
        .collect();
    json!({
        "cniVersion": version,
        "interfaces": [
            interface(&attached.host_link, &attached.host_mac, attached.mtu, None),
            interface(&attached.ifname, &attached.mac, attached.mtu, Some(&attached.netns)),
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    })
}

/// VERSION's answer.
pub fn versions() -> Value {
    json!({"cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS})
}

/// The addresses of the pod in ADD's answer, as CHECK gets it back.
///
/// # Errors
/// When the runtime gave no `prevResult` or one without addresses that can be read.
pub fn previous_addresses(conf: &NetConf) -> Result<Vec<IpNetwork>, Refusal> {
    let refuse = |message: &str| Refusal::new(Refusal::BAD_CONFIG, message);
    let result =
        conf.prev_result.as_ref().ok_or_else(|| refuse("CHECK needs `prevResult`, and there is none"))?;
    let ips = result["ips"].as_array().ok_or_else(|| refuse("prevResult has no list `ips`"))?;
    let parse = |ip: &Value| ip["address"].as_str().and_then(|raw| raw.parse().ok());
    ips.iter()
        .map(|ip| parse(ip).ok_or_else(|| refuse("prevResult.ips holds an entry without an address")))
        .collect()
}

fn is_plain_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn default_network() -> String {
    "weft".to_owned()
}

fn default_run_dir() -> PathBuf {
    "/run/weft".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/weft".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONF: &str =
        r#"{"cniVersion":"1.0.0","name":"pods","type":"weft","runtimeConfig":{"ips":["10.42.7.9/24"]}}"#;

    fn call(env: &[(&str, &str)], stdin: &str) -> Result<Call, Refusal> {
        let lookup =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        parse(lookup, stdin.as_bytes())
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn add_is_read_with_defaults() {
        let call = call(&ADD, CONF).unwrap();
        assert_eq!(
            (call.command, call.container.as_str(), call.ifname.as_str()),
            (Command::Add, "c1", "eth0")
        );
        assert_eq!(call.conf.network, "weft");
        assert_eq!(call.conf.run_dir, PathBuf::from("/run/weft"));
        assert_eq!(wanted_addresses(&call.conf).unwrap(), ["10.42.7.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn each_wrong_call_is_refused_with_the_specifications_code() {
        let without = |name: &str| ADD.iter().copied().filter(|(key, _)| *key != name).collect::<Vec<_>>();
        let with = |name, value| [without(name), vec![(name, value)]].concat();
        let table = [
            (without("CNI_COMMAND"), CONF, 4),
            (with("CNI_COMMAND", "JUMP"), CONF, 4),
            (without("CNI_CONTAINERID"), CONF, 4),
            (without("CNI_NETNS"), CONF, 4),
            (with("CNI_IFNAME", "a/b"), CONF, 4),
            (ADD.to_vec(), "{", 6),
            (ADD.to_vec(), r#"{"cniVersion":"9.9.9"}"#, 1),
            (ADD.to_vec(), r#"{"cniVersion":"1.0.0","network":"../x"}"#, 7),
            (with("CNI_COMMAND", "GC"), r#"{"cniVersion":"1.1.0"}"#, 7),
        ];
        for (env, stdin, code) in table {
            assert_eq!(call(&env, stdin).map_err(|refusal| refusal.code), Err(code), "{env:?} {stdin}");
        }
    }

    #[test]
    fn del_needs_no_namespace() {
        let env = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
        assert_eq!(call(&env, CONF).unwrap().netns, None);
    }

    #[test]
    fn the_answer_has_the_form_of_its_version() {
        let attached = Attached {
            host_link: "weft0123".into(),
            host_mac: "02:00:00:00:00:01".into(),
            ifname: "eth0".into(),
            mac: "02:00:00:00:00:02".into(),
            mtu: 1450,
            netns: "/run/netns/c1".into(),
            ips: vec![("10.42.7.9/32".parse().unwrap(), "169.254.1.1".parse().unwrap())],
        };
        let old = result("0.4.0", &attached);
        assert_eq!(old["ips"][0]["version"], "4");
        assert!(old["interfaces"][1].get("mtu").is_none());
        let new = result("1.1.0", &attached);
        assert!(new["ips"][0].get("version").is_none());
        assert_eq!(new["interfaces"][1]["mtu"], 1450);
        assert_eq!(new["interfaces"][1]["sandbox"], "/run/netns/c1");
        assert_eq!(new["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
        let conf = NetConf { prev_result: Some(new), ..NetConf::default() };
        assert_eq!(previous_addresses(&conf).unwrap(), ["10.42.7.9/32".parse::<IpNetwork>().unwrap()]);
    }

    proptest! {
        #[test]
        fn no_input_panics(stdin in ".{0,200}", command in "(ADD|DEL|CHECK|GC|STATUS|VERSION|[a-z]{0,4})") {
            let _ = call(&[("CNI_COMMAND", &command), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e")], &stdin);
        }
    }
}
