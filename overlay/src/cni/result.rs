//! What ADD answers, and what CHECK learns from that answer. Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::protocol::{NetConf, Refusal};
use crate::attach::Expected;

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
    /// Destinations with their gateways.
    pub routes: Vec<(IpNetwork, IpAddr)>,
}

/// ADD's answer in the form of the version asked in: what plugins before us in a chain answered, and
/// then ours.
pub fn result(conf: &NetConf, attached: &Attached) -> Value {
    let version = conf.version.as_str();
    let before = |key: &str| -> Vec<Value> {
        let list = conf.prev_result.as_ref().and_then(|result| result[key].as_array());
        list.cloned().unwrap_or_default()
    };
    let (mut interfaces, mut ips, mut routes) = (before("interfaces"), before("ips"), before("routes"));
    let inside = interfaces.len() + 1;
    let interface = |name: &str, mac: &str| {
        let mut value = json!({"name": name, "mac": mac});
        if version == "1.1.0" {
            value["mtu"] = json!(attached.mtu);
        }
        value
    };
    let mut pod = interface(&attached.ifname, &attached.mac);
    pod["sandbox"] = json!(attached.netns);
    interfaces.extend([interface(&attached.host_link, &attached.host_mac), pod]);
    ips.extend(attached.ips.iter().map(|(address, gateway)| {
        let mut value = json!({"address": address.to_string(), "gateway": gateway, "interface": inside});
        if version.starts_with("0.") {
            value["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        value
    }));
    routes
        .extend(attached.routes.iter().map(|(dst, gateway)| json!({"dst": dst.to_string(), "gw": gateway})));
    json!({
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": dns(conf),
    })
}

/// A plugin before us knows better than the configuration, which is the same for all of them.
fn dns(conf: &NetConf) -> Value {
    let said = |dns: &&Value| dns.as_object().is_some_and(|dns| !dns.is_empty());
    let before = conf.prev_result.as_ref().map(|result| &result["dns"]);
    before.filter(said).or(conf.dns.as_ref().filter(said)).cloned().unwrap_or_else(|| json!({}))
}

/// What must be in the pod by ADD's answer, as CHECK gets it back. Addresses on other interfaces are
/// other plugins' in the chain.
///
/// # Errors
/// When the runtime gave no `prevResult`, or one that cannot be read or has no such interface.
pub fn expected(conf: &NetConf, ifname: &str) -> Result<Expected, Refusal> {
    let refuse = |message: String| Refusal::new(Refusal::BAD_CONFIG, message);
    let result = conf
        .prev_result
        .as_ref()
        .ok_or_else(|| refuse("CHECK needs `prevResult`, and there is none".to_owned()))?;
    let list = |key: &str| result[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = |interface: &Value| {
        interface["name"] == ifname && interface["sandbox"].as_str().is_some_and(|path| !path.is_empty())
    };
    if !list("interfaces").iter().any(ours) {
        return Err(refuse(format!("prevResult.interfaces has no {ifname} in a sandbox")));
    }
    let on_ours = |ip: &&Value| match ip["interface"].as_u64() {
        Some(index) => {
            usize::try_from(index).ok().and_then(|at| list("interfaces").get(at)).is_some_and(ours)
        }
        None => true,
    };
    let address = |ip: &Value| {
        let parsed = ip["address"].as_str().and_then(|raw| raw.parse().ok());
        parsed.ok_or_else(|| refuse("prevResult.ips holds an entry without an address".to_owned()))
    };
    let addresses = list("ips").iter().filter(on_ours).map(address).collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(refuse(format!("prevResult.ips has no address of {ifname}")));
    }
    // A route without a gateway is none of ours.
    let route =
        |route: &Value| Some((route["dst"].as_str()?.parse().ok()?, route["gw"].as_str()?.parse().ok()?));
    Ok(Expected { addresses, routes: list("routes").iter().filter_map(route).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached() -> Attached {
        Attached {
            host_link: "weft0123".into(),
            host_mac: "02:00:00:00:00:01".into(),
            ifname: "eth0".into(),
            mac: "02:00:00:00:00:02".into(),
            mtu: 1450,
            netns: "/run/netns/c1".into(),
            ips: vec![("10.42.7.9/32".parse().unwrap(), "169.254.1.1".parse().unwrap())],
            routes: vec![("0.0.0.0/0".parse().unwrap(), "169.254.1.1".parse().unwrap())],
        }
    }

    fn conf(version: &str, prev_result: Option<Value>, dns: Option<Value>) -> NetConf {
        NetConf { version: version.into(), prev_result, dns, ..NetConf::default() }
    }

    #[test]
    fn the_answer_has_the_form_of_its_version() {
        assert_eq!(
            result(&conf("0.4.0", None, None), &attached()),
            json!({
                "cniVersion": "0.4.0",
                "interfaces": [
                    {"name": "weft0123", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/c1"},
                ],
                "ips": [{"version": "4", "address": "10.42.7.9/32", "gateway": "169.254.1.1", "interface": 1}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
                "dns": {},
            })
        );
        let now = result(&conf("1.1.0", None, None), &attached());
        assert_eq!(now["interfaces"][1]["mtu"], 1450);
        assert!(now["ips"][0].get("version").is_none());
    }

    /// What the plugin before us answered, on a bridge.
    fn before() -> Value {
        json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth9", "sandbox": "/run/netns/c1"}],
            "ips": [{"address": "192.0.2.9/24", "interface": 1}],
            "routes": [{"dst": "198.51.100.0/24"}],
            "dns": {"nameservers": ["192.0.2.53"]},
        })
    }

    #[test]
    fn what_was_answered_before_us_is_passed_on() {
        let said = result(&conf("1.0.0", Some(before()), None), &attached());
        let names: Vec<&str> =
            said["interfaces"].as_array().unwrap().iter().filter_map(|link| link["name"].as_str()).collect();
        assert_eq!(names, ["cni0", "eth9", "weft0123", "eth0"]);
        assert_eq!((&said["ips"][0], &said["ips"][1]["interface"]), (&before()["ips"][0], &json!(3)));
        assert_eq!(
            (&said["routes"][0], &said["routes"][1]["dst"]),
            (&before()["routes"][0], &json!("0.0.0.0/0"))
        );
    }

    #[test]
    fn name_servers_are_the_chains_or_else_the_configurations() {
        let own = json!({"nameservers": ["10.42.0.53"], "search": ["pods"]});
        let table = [
            (None, None, json!({})),
            (None, Some(json!("nonsense")), json!({})),
            (None, Some(own.clone()), own.clone()),
            (Some(json!({"dns": {}})), Some(own.clone()), own.clone()),
            (Some(before()), Some(own), before()["dns"].clone()),
        ];
        for (prev_result, dns, answer) in table {
            let conf = conf("1.0.0", prev_result, dns);
            assert_eq!(result(&conf, &attached())["dns"], answer, "{conf:?}");
        }
    }

    #[test]
    fn check_looks_at_its_own_interface_only() {
        let said = result(&conf("1.0.0", Some(before()), None), &attached());
        let expected = expected(&conf("1.0.0", Some(said), None), "eth0").unwrap();
        assert_eq!(expected.addresses, ["10.42.7.9/32".parse::<IpNetwork>().unwrap()]);
        assert_eq!(expected.routes, attached().routes, "without a gateway it is none of ours");
    }

    #[test]
    fn a_result_that_does_not_say_what_to_expect_is_refused() {
        let eth0 = json!([{"name": "eth0", "sandbox": "/run/netns/c1"}]);
        let table = [
            None,
            Some(json!(7)),
            Some(json!({"ips": [{"address": "10.42.7.9/32"}]})),
            Some(json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.42.7.9/32"}]})),
            Some(json!({"interfaces": eth0, "ips": []})),
            Some(json!({"interfaces": eth0, "ips": [{"address": "nine"}]})),
            Some(json!({"interfaces": eth0, "ips": [{"address": "10.42.7.9/32", "interface": 5}]})),
        ];
        for prev_result in table {
            let conf = conf("1.0.0", prev_result, None);
            assert_eq!(expected(&conf, "eth0").map_err(|refusal| refusal.code), Err(7), "{conf:?}");
        }
    }
}
