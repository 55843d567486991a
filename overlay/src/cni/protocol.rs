//! The CNI protocol, versions 0.3.0 to 1.1.0: what a runtime asks, and how it is refused. Pure.
//!
//! <https://www.cni.dev/docs/spec/>. The environment and standard input come in as values; nothing
//! here reads either. What ADD answers is [`super::result`].

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::options::NetworkName;

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
    /// ADD: addresses that the user asked for.
    pub wanted: Vec<IpAddr>,
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
    /// The user's own words on name servers, to be handed to the runtime.
    #[serde(default)]
    pub dns: Option<Value>,
    /// GC: the attachments that must stay.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid_attachments: Option<Vec<Attachment>>,
    /// The same by the name that it had in the first libraries; the present ones send both.
    #[serde(rename = "cni.dev/attachments", default)]
    pub attachments: Option<Vec<Attachment>>,
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
    /// Standard input cannot be read.
    pub const IO: u32 = 5;
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
    let mut call = Call {
        command,
        container: String::new(),
        netns: None,
        ifname: String::new(),
        wanted: Vec::new(),
        conf: NetConf::default(),
    };
    if command == Command::Version {
        call.conf = serde_json::from_slice(stdin).unwrap_or_default();
        return Ok(call);
    }
    call.conf = configuration(stdin)?;
    let text = |name: &str| env(name).filter(|value| !value.is_empty());
    let wrong = |why: String| Refusal::new(Refusal::BAD_ENVIRONMENT, why);
    let needed = |name: &str| text(name).ok_or_else(|| wrong(format!("{name} is not set")));
    if matches!(command, Command::Add | Command::Del | Command::Check) {
        call.container = needed("CNI_CONTAINERID")?;
        if !is_name(&call.container) {
            return Err(wrong(format!("CNI_CONTAINERID is `{}`; {NAME_RULE}", call.container)));
        }
        call.ifname = needed("CNI_IFNAME")?;
        if let Err(error) = call.ifname.parse::<weft_kernel::net::LinkName>() {
            return Err(wrong(format!("CNI_IFNAME: {error}")));
        }
        call.netns = match command {
            Command::Del => text("CNI_NETNS"),
            _ => Some(needed("CNI_NETNS")?),
        }
        .map(PathBuf::from);
    }
    if command == Command::Add {
        call.wanted = wanted_addresses(&call.conf, &text("CNI_ARGS").unwrap_or_default())?;
    }
    if command == Command::Gc && call.conf.valid().is_none() {
        let message = "GC needs `cni.dev/valid-attachments`; without the list nothing may be removed";
        return Err(Refusal::new(Refusal::BAD_CONFIG, message));
    }
    Ok(call)
}

impl NetConf {
    /// GC: the attachments that must stay, if there is a list.
    pub fn valid(&self) -> Option<&[Attachment]> {
        self.valid_attachments.as_deref().or(self.attachments.as_deref())
    }
}

fn configuration(stdin: &[u8]) -> Result<NetConf, Refusal> {
    let conf: NetConf = serde_json::from_slice(stdin).map_err(|error| {
        Refusal::new(Refusal::BAD_JSON, format!("the network configuration cannot be read: {error}"))
    })?;
    if !VERSIONS.contains(&conf.version.as_str()) {
        let spoken = VERSIONS.join(", ");
        let message = format!("cniVersion is `{}`; this plugin speaks {spoken}", conf.version);
        return Err(Refusal::new(Refusal::INCOMPATIBLE, message));
    }
    let bad = |message: String| Err(Refusal::new(Refusal::BAD_CONFIG, message));
    if !is_name(&conf.name) {
        return bad(format!("name is `{}`; {NAME_RULE}", conf.name));
    }
    // It becomes a part of paths.
    match conf.network.parse::<NetworkName>() {
        Ok(_) => Ok(conf),
        Err(error) => bad(format!("network: {error}")),
    }
}

/// The specification's rule for container ids and for names of network configurations.
const NAME_RULE: &str = "it must be of letters, digits, `_`, `.` and `-`, a letter or digit first";

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
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

/// The addresses a user asked for: by the capability `ips`, or as `IP=` in CNI_ARGS, which is how
/// podman's `--ip` comes.
fn wanted_addresses(conf: &NetConf, args: &str) -> Result<Vec<IpAddr>, Refusal> {
    let parse = |raw: &str, code: u32, place: &str| {
        let addr = raw.split_once('/').map_or(raw, |(addr, _)| addr);
        let no_address = |_| Refusal::new(code, format!("{place} holds `{raw}`, which is no IP address"));
        addr.parse::<IpAddr>().map_err(no_address)
    };
    let of_args = args.split(';').filter_map(|pair| pair.trim().strip_prefix("IP="));
    let of_args = of_args.flat_map(|list| list.split(',')).filter(|raw| !raw.is_empty());
    let of_args = of_args.map(|raw| parse(raw, Refusal::BAD_ENVIRONMENT, "CNI_ARGS"));
    let of_conf = conf.runtime.ips.iter().map(|raw| parse(raw, Refusal::BAD_CONFIG, "runtimeConfig.ips"));
    of_conf.chain(of_args).collect()
}

/// VERSION's answer, in the version asked in.
pub fn versions(asked: &str) -> Value {
    let version = if asked.is_empty() { VERSIONS[VERSIONS.len() - 1] } else { asked };
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
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
        assert_eq!(call.wanted, ["10.42.7.9".parse::<IpAddr>().unwrap()]);
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
            (with("CNI_CONTAINERID", "../c1"), CONF, 4),
            (with("CNI_CONTAINERID", "-c1"), CONF, 4),
            ([ADD.to_vec(), vec![("CNI_ARGS", "IP=nine")]].concat(), CONF, 4),
            (ADD.to_vec(), "{", 6),
            (ADD.to_vec(), "", 6),
            (ADD.to_vec(), r#"{"cniVersion":"9.9.9","name":"pods"}"#, 1),
            (ADD.to_vec(), r#"{"name":"pods"}"#, 1),
            (ADD.to_vec(), r#"{"cniVersion":"1.0.0"}"#, 7),
            (ADD.to_vec(), r#"{"cniVersion":"1.0.0","name":"a/b"}"#, 7),
            (ADD.to_vec(), r#"{"cniVersion":"1.0.0","name":"pods","network":"../x"}"#, 7),
            (ADD.to_vec(), r#"{"cniVersion":"1.0.0","name":"pods","network":".."}"#, 7),
            (ADD.to_vec(), r#"{"cniVersion":"1.0.0","name":"pods","runtimeConfig":{"ips":["x"]}}"#, 7),
            (with("CNI_COMMAND", "GC"), r#"{"cniVersion":"1.1.0","name":"pods"}"#, 7),
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
    fn an_address_is_asked_for_in_two_ways() {
        let with = |args| [ADD.to_vec(), vec![("CNI_ARGS", args)]].concat();
        let plain = r#"{"cniVersion":"1.0.0","name":"pods"}"#;
        let table = [
            ("IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.42.7.8", plain, vec!["10.42.7.8"]),
            ("IP=10.42.7.8/24,fd00::8", plain, vec!["10.42.7.8", "fd00::8"]),
            ("IP=", plain, vec![]),
            ("K8S_POD_NAME=IP", plain, vec![]),
            ("IP=10.42.7.8", CONF, vec!["10.42.7.9", "10.42.7.8"]),
        ];
        for (args, conf, wanted) in table {
            let wanted: Vec<IpAddr> = wanted.into_iter().map(|addr| addr.parse().unwrap()).collect();
            assert_eq!(call(&with(args), conf).unwrap().wanted, wanted, "{args} {conf}");
        }
    }

    /// The reference library sends the list under the specification's key and under its first one.
    #[test]
    fn the_list_for_gc_is_read_by_either_name_and_by_both() {
        let list = r#"[{"containerID":"b","ifname":"eth0"}]"#;
        let (new, old) =
            (format!(r#""cni.dev/valid-attachments":{list}"#), format!(r#""cni.dev/attachments":{list}"#));
        for keys in [new.clone(), old.clone(), format!("{new},{old}")] {
            let conf = format!(r#"{{"cniVersion":"1.1.0","name":"pods",{keys}}}"#);
            let call =
                call(&[("CNI_COMMAND", "GC")], &conf).unwrap_or_else(|error| panic!("{conf}: {error}"));
            assert_eq!(call.conf.valid().map(<[_]>::len), Some(1), "{conf}");
        }
    }

    #[test]
    fn version_answers_in_the_version_asked_in() {
        for (stdin, version) in [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), ("{}", "1.1.0")] {
            let call = call(&[("CNI_COMMAND", "VERSION")], stdin).unwrap();
            assert_eq!(versions(&call.conf.version)["cniVersion"], version, "{stdin}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(stdin in ".{0,200}", command in "(ADD|DEL|CHECK|GC|STATUS|VERSION|[a-z]{0,4})") {
            let _ = call(&[("CNI_COMMAND", &command), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e")], &stdin);
        }
    }
}
