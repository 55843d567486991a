//! What the kernel's settings have to be for services to work. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use weft_daemon::settings::{Over, Setting};
use weft_kernel::net::{LinkName, State};

use crate::config;
use crate::host::Host;
use crate::model::{Family, family_of};
use crate::plan::NodePortScope;

/// Routes learned from router advertisements (RTPROT_RA, include/uapi/linux/rtnetlink.h).
const PROTOCOL_RA: u8 = 9;

/// How connection tracking is set, in the terms and with the defaults of kube-proxy's `conntrack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// `maxPerCore`: at least so many connections for each CPU. 0: as it is.
    pub max_per_core: u32,
    /// `min`: and at least so many.
    pub min: u32,
    /// `tcpEstablishedTimeout`: after so long an idle TCP connection is forgotten. `None`: as it is.
    pub tcp_established: Option<Duration>,
    /// `tcpCloseWaitTimeout`: likewise one that waits for this end to close it.
    pub tcp_close_wait: Option<Duration>,
    /// `tcpBeLiberal`: packets out of the window pass.
    pub tcp_be_liberal: bool,
    /// `udpTimeout`: a UDP flow that was not answered.
    pub udp: Option<Duration>,
    /// `udpStreamTimeout`: one that was.
    pub udp_stream: Option<Duration>,
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established: Some(Duration::from_secs(24 * 3600)),
            tcp_close_wait: Some(Duration::from_secs(3600)),
            tcp_be_liberal: false,
            udp: None,
            udp_stream: None,
        }
    }
}

/// kube-proxy's rule: what is not given has its default, and zero leaves the kernel's setting as it is.
impl From<config::Conntrack> for Conntrack {
    fn from(given: config::Conntrack) -> Self {
        let usual = Self::default();
        let time =
            |given: Option<Duration>, usual: Option<Duration>| given.or(usual).filter(|time| !time.is_zero());
        Self {
            max_per_core: given.max_per_core.unwrap_or(usual.max_per_core),
            min: given.min.unwrap_or(usual.min),
            tcp_established: time(given.tcp_established, usual.tcp_established),
            tcp_close_wait: time(given.tcp_close_wait, usual.tcp_close_wait),
            tcp_be_liberal: given.tcp_be_liberal.unwrap_or(usual.tcp_be_liberal),
            udp: time(given.udp, usual.udp),
            udp_stream: time(given.udp_stream, usual.udp_stream),
        }
    }
}

/// What is wanted of settings, beside what the host itself asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// Connection tracking counts packets and bytes.
    pub accounting: bool,
}

/// The settings, in the order in which they must be made.
///
/// Forwarding is among them: a packet to a node port, or of a pod, is for another host as soon as it
/// is translated. (kube-proxy switches it on in its IPVS mode only, and leaves it to others else.)
pub fn wanted(wishes: &Wishes, host: &Host, state: &State, cpus: usize) -> Vec<Setting> {
    let mut wanted = conntrack(&wishes.conntrack, cpus);
    if wishes.accounting {
        wanted.push(Setting::new("net/netfilter/nf_conntrack_acct", "1"));
        // Else nobody is told what a connection carried in all when it ends. The kernel's default is 2
        // (1 before 5.19): told if somebody listens.
        wanted.push(Setting::new("net/netfilter/nf_conntrack_events", "1").over(Over::Only("0")));
    }
    // First, because it puts other settings back to their defaults.
    wanted.push(Setting::new("net/ipv4/ip_forward", "1"));
    if host.addresses.iter().any(|address| family_of(*address) == Family::V6 && !is_link_local_v6(address)) {
        // A host that forwards ignores router advertisements, and drops the default routes it learned
        // from them, unless `accept_ra` is 2 (Documentation/networking/ip-sysctl.rst).
        let keep = |link: &LinkName| Setting::new(format!("net/ipv6/conf/{link}/accept_ra"), "2");
        wanted.extend(advertised(state).into_iter().map(|link| keep(link).over(Over::Only("1"))));
        wanted.push(Setting::new("net/ipv6/conf/all/forwarding", "1"));
    }
    if NodePortScope::of(host, Family::V4).localhost {
        // Else the kernel drops what would leave the host with a loopback address. What comes in with
        // one is dropped by a rule of ours (CVE-2020-8558).
        wanted.push(Setting::new("net/ipv4/conf/all/route_localnet", "1"));
    }
    wanted
}

fn conntrack(wishes: &Conntrack, cpus: usize) -> Vec<Setting> {
    let mut wanted = Vec::new();
    if wishes.max_per_core > 0 {
        let cpus = u64::try_from(cpus).unwrap_or(u64::MAX);
        let max = u64::from(wishes.max_per_core).saturating_mul(cpus).max(wishes.min.into());
        // A chain of four connections for each bucket is what the kernel took for its default once.
        wanted.push(Setting::new("net/netfilter/nf_conntrack_buckets", (max / 4).to_string()));
        wanted.push(Setting::new("net/netfilter/nf_conntrack_max", max.to_string()));
        wanted.iter_mut().for_each(|setting| setting.over = Over::Smaller);
    }
    let seconds = [
        ("tcp_timeout_established", wishes.tcp_established),
        ("tcp_timeout_close_wait", wishes.tcp_close_wait),
        ("udp_timeout", wishes.udp),
        ("udp_timeout_stream", wishes.udp_stream),
    ];
    for (name, time) in seconds {
        let path = format!("net/netfilter/nf_conntrack_{name}");
        wanted.extend(time.map(|time| Setting::new(path, time.as_secs().to_string())));
    }
    if wishes.tcp_be_liberal {
        wanted.push(Setting::new("net/netfilter/nf_conntrack_tcp_be_liberal", "1"));
    }
    wanted
}

fn advertised(state: &State) -> BTreeSet<&LinkName> {
    let routes = state.routes.values().filter(|route| route.protocol == PROTOCOL_RA);
    routes.filter_map(|route| route.link.as_ref()).collect()
}

fn is_link_local_v6(address: &std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::around::addresses;
    use crate::around::addresses::tests::{host as kernel, route, with_route};
    use crate::host::{NodePortAddresses, Settings};
    use crate::model::{Model, NodeName};

    fn lines(wishes: &Wishes, state: &State, node_ports: &[&str], cpus: usize) -> Vec<String> {
        let node_ports = NodePortAddresses::parse(node_ports.iter().copied()).unwrap();
        let settings = Settings { node_ports, ..Settings::default() };
        let host = Host::on(&Model::default(), NodeName::new("ash"), addresses::observed(state), settings);
        let line =
            |setting: Setting| format!("{}={}", setting.path.strip_prefix("net/").unwrap(), setting.value);
        wanted(wishes, &host, state, cpus).into_iter().map(line).collect()
    }

    fn plain() -> Wishes {
        let nothing = Conntrack {
            max_per_core: 0,
            tcp_established: None,
            tcp_close_wait: None,
            ..Conntrack::default()
        };
        Wishes { conntrack: nothing, accounting: false }
    }

    #[test]
    fn connection_tracking_is_set_as_kube_proxy_sets_it() {
        let state = kernel(&["eth0 192.0.2.1/24"]);
        let with = |conntrack| lines(&Wishes { conntrack, ..Wishes::default() }, &state, &[], 2);
        let usual = [
            "netfilter/nf_conntrack_buckets=32768",
            "netfilter/nf_conntrack_max=131072",
            "netfilter/nf_conntrack_tcp_timeout_established=86400",
            "netfilter/nf_conntrack_tcp_timeout_close_wait=3600",
            "ipv4/ip_forward=1",
        ];
        assert_eq!(with(Conntrack::default()), usual);
        let large = lines(&Wishes::default(), &state, &[], 64);
        assert!(large.iter().any(|line| line.ends_with("nf_conntrack_max=2097152")), "{large:?}");
        let all = Conntrack {
            tcp_be_liberal: true,
            udp: Some(Duration::from_secs(30)),
            udp_stream: Some(Duration::from_secs(120)),
            ..plain().conntrack
        };
        let expected = [
            "netfilter/nf_conntrack_udp_timeout=30",
            "netfilter/nf_conntrack_udp_timeout_stream=120",
            "netfilter/nf_conntrack_tcp_be_liberal=1",
            "ipv4/ip_forward=1",
        ];
        assert_eq!(with(all), expected);
    }

    #[test]
    fn what_a_configuration_leaves_out_is_as_usual_and_zero_is_nothing() {
        assert_eq!(Conntrack::from(config::Conntrack::default()), Conntrack::default());
        let given = config::Conntrack {
            max_per_core: Some(0),
            tcp_established: Some(Duration::ZERO),
            udp: Some(Duration::from_secs(7)),
            ..config::Conntrack::default()
        };
        let expected = Conntrack {
            max_per_core: 0,
            tcp_established: None,
            udp: Some(Duration::from_secs(7)),
            ..Conntrack::default()
        };
        assert_eq!(Conntrack::from(given), expected);
    }

    #[test]
    fn the_host_asks_for_what_its_addresses_and_node_ports_need() {
        let v4 = || kernel(&["lo 127.0.0.1/8", "eth0 192.0.2.1/24", "eth0 fe80::1/64"]);
        let both = || kernel(&["eth0 192.0.2.1/24", "eth0 2001:db8::1/64"]);
        let mut learned = route("::/0", "eth0", 1024);
        learned.protocol = PROTOCOL_RA;
        let advertised = with_route(both(), learned);
        let counted = Wishes { accounting: true, ..plain() };
        type Case<'a> = (&'a str, Wishes, State, &'a [&'a str], &'a [&'a str]);
        let table: [Case<'_>; 5] = [
            ("IPv4 alone", plain(), v4(), &[], &["ipv4/ip_forward=1"]),
            ("both", plain(), both(), &[], &["ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"]),
            (
                "routes from advertisements are kept",
                plain(),
                advertised,
                &[],
                &["ipv4/ip_forward=1", "ipv6/conf/eth0/accept_ra=2", "ipv6/conf/all/forwarding=1"],
            ),
            (
                "node ports on localhost",
                plain(),
                v4(),
                &["primary", "localhost"],
                &["ipv4/ip_forward=1", "ipv4/conf/all/route_localnet=1"],
            ),
            (
                "counting",
                counted,
                v4(),
                &[],
                &["netfilter/nf_conntrack_acct=1", "netfilter/nf_conntrack_events=1", "ipv4/ip_forward=1"],
            ),
        ];
        for (case, wishes, state, node_ports, expected) in table {
            assert_eq!(lines(&wishes, &state, node_ports, 2), expected, "{case}");
        }
    }
}
