//! What a person sets for the overlay daemon of one host: flannel's options and our own, typed and valid.
//!
//! Plain data. The command line and the environment are read in the program; [`Options::check`] holds
//! the rules that concern more than one value. Nothing here touches a file or the network.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use regex::Regex;
use weft_kernel::net::LinkName;
use weft_store::ConnectOptions;

use crate::attach::range::Range;
use crate::attach::site::Mode;
use crate::model::NodeId;

/// The options of one overlay daemon. No value of it shows a secret when printed.
#[derive(Clone, Debug)]
pub struct Options {
    /// How etcd is reached.
    pub etcd: ConnectOptions,
    /// Where the network's keys begin in etcd (`--etcd-prefix`).
    pub etcd_prefix: String,
    /// What the network is called on this host (`--network`).
    pub network: NetworkName,
    /// Which link leads to the other hosts.
    pub underlay: UnderlayChoice,
    /// The address that other hosts reach us at, if it is not the link's (`--public-ip`).
    pub public_v4: Option<Ipv4Addr>,
    /// The same in IPv6 (`--public-ipv6`).
    pub public_v6: Option<Ipv6Addr>,
    /// Where `subnet.env` goes (`--subnet-file`).
    pub subnet_file: PathBuf,
    /// Sockets, and what does not outlive a boot (`--run-dir`).
    pub run_dir: PathBuf,
    /// What outlives a boot (`--state-dir`).
    pub state_dir: PathBuf,
    /// Who this host is (`--node-id`); `None`: see [`crate::identity`].
    pub node_id: Option<NodeId>,
    /// How long a host that is silent counts as alive (`--liveness-ttl`).
    pub liveness_ttl: Duration,
    /// How long the subnet's key in etcd outlives a silent host (`--lease-ttl`).
    pub lease_ttl: Duration,
    /// How long a silent host's subnet is kept for it (`--reclaim-after`).
    pub reclaim_after: Duration,
    /// Masquerade pod traffic that leaves the network (`--ip-masq`).
    pub masquerade: bool,
    /// With fully random ports (not `--ip-masq-fully-random-disable`).
    pub masquerade_random: bool,
    /// Destinations that see pods' own addresses (`--non-masquerade-cidr`).
    pub non_masquerade: BTreeSet<IpNetwork>,
    /// Accept forwarded pod traffic (`--iptables-forward-rules`).
    pub forward_accept: bool,
    /// Blackhole our own subnet (`--ip-blackhole-route`).
    pub blackhole: bool,
    /// How often everything is compared with the kernel even if no event told of a change
    /// (`--iptables-resync`).
    pub resync: Duration,
    /// Refuse tunnel packets whose inner source is not the sender's (`--anti-spoofing`).
    pub anti_spoofing: bool,
    /// Inner sources that every peer may send from (`--extra-source-cidr`).
    pub extra_sources: BTreeSet<IpNetwork>,
    /// How pods are wired (`--attach`).
    pub attach: Mode,
    /// What pods' addresses are taken from (`--attach-range`); empty: the whole subnet.
    pub attach_ranges: Vec<Range>,
    /// Take over flannel's link and rules (`--take-over-flannel`).
    pub take_over_flannel: bool,
    /// Give the subnet back when the daemon stops (`--release-on-exit`).
    pub release_on_exit: bool,
    /// Where health and metrics are served over TCP (`--healthz-ip`, `--healthz-port`).
    pub healthz: Option<SocketAddr>,
}

/// flannel's defaults, and ours for what flannel does not have.
impl Default for Options {
    fn default() -> Self {
        let endpoints = ["http://127.0.0.1:4001", "http://127.0.0.1:2379"].map(str::to_owned).to_vec();
        Self {
            etcd: ConnectOptions { endpoints, ..ConnectOptions::default() },
            etcd_prefix: "/coreos.com/network".to_owned(),
            network: NetworkName("weft".to_owned()),
            underlay: UnderlayChoice::default(),
            public_v4: None,
            public_v6: None,
            subnet_file: "/run/flannel/subnet.env".into(),
            run_dir: "/run/weft".into(),
            state_dir: "/var/lib/weft".into(),
            node_id: None,
            liveness_ttl: Duration::from_secs(10),
            lease_ttl: Duration::from_secs(24 * 3600),
            reclaim_after: Duration::from_secs(7 * 24 * 3600),
            masquerade: false,
            masquerade_random: true,
            non_masquerade: BTreeSet::new(),
            forward_accept: true,
            blackhole: false,
            resync: Duration::from_secs(5),
            anti_spoofing: true,
            extra_sources: BTreeSet::new(),
            attach: Mode::Routed,
            attach_ranges: Vec::new(),
            take_over_flannel: false,
            release_on_exit: false,
            healthz: None,
        }
    }
}

/// Options that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// A lease that is too short for its purpose.
    #[error("--{flag}: `{}s` is too short: at least {}s, {why}", value.as_secs(), least.as_secs())]
    TooShort {
        /// Which option.
        flag: &'static str,
        /// What was given.
        value: Duration,
        /// What is allowed.
        least: Duration,
        /// The reason for the limit.
        why: &'static str,
    },
    /// The subnet's key would die before its owner is known to be silent.
    #[error(
        "--lease-ttl: `{lease:?}` is shorter than --liveness-ttl, `{liveness:?}`: the subnet must outlive the host"
    )]
    LeaseShorterThanLiveness {
        /// `--lease-ttl`.
        lease: Duration,
        /// `--liveness-ttl`.
        liveness: Duration,
    },
    /// Ranges that overlap would give one address twice.
    #[error("--attach-range: `{0}` is given twice")]
    RangeTwice(Range),
}

impl Options {
    /// The rules that concern more than one option, or a limit that a type does not show. What concerns
    /// etcd alone is checked by the store when it connects.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), BadOptions> {
        // etcd grants no lease shorter than 1.5 election timeouts, which are 1 s by default
        // (server/lease/lessor.go, minLeaseTTL); and three keep-alives must fit in.
        let shortest = "as etcd grants nothing shorter";
        for (flag, value, least, why) in [
            ("liveness-ttl", self.liveness_ttl, Duration::from_secs(2), shortest),
            ("lease-ttl", self.lease_ttl, Duration::from_secs(2), shortest),
            ("iptables-resync", self.resync, Duration::from_secs(1), "as a full comparison costs CPU"),
        ] {
            if value < least {
                return Err(BadOptions::TooShort { flag, value, least, why });
            }
        }
        if self.lease_ttl < self.liveness_ttl {
            let (lease, liveness) = (self.lease_ttl, self.liveness_ttl);
            return Err(BadOptions::LeaseShorterThanLiveness { lease, liveness });
        }
        let mut seen = BTreeSet::new();
        match self.attach_ranges.iter().find(|range| !seen.insert(**range)) {
            Some(range) => Err(BadOptions::RangeTwice(*range)),
            None => Ok(()),
        }
    }

    /// The directory of this network's sockets: `<run-dir>/<network>`.
    pub fn network_run_dir(&self) -> PathBuf {
        self.run_dir.join(self.network.as_str())
    }

    /// The directory of this network's state: `<state-dir>/<network>`.
    pub fn network_state_dir(&self) -> PathBuf {
        self.state_dir.join(self.network.as_str())
    }

    /// The daemon's API socket.
    pub fn socket(&self) -> PathBuf {
        self.network_run_dir().join("overlay.sock")
    }
}

/// Which link leads to the other hosts; tried in this order, the first that fits wins. With nothing
/// given it is the link of the public address, or else of the default route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayChoice {
    /// `--iface`, by name or address.
    pub links: Vec<LinkRef>,
    /// `--iface-regex`, held against addresses and then names.
    pub patterns: Vec<LinkPattern>,
    /// `--iface-can-reach`: the link that the kernel would use towards this address.
    pub can_reach: Option<IpAddr>,
}

/// A link, by what a person knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkRef {
    /// The link with this address.
    Address(IpAddr),
    /// The link of this name.
    Name(LinkName),
}

/// Why a text is no [`LinkRef`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an IP address nor an interface name")]
pub struct BadLinkRef(String);

impl FromStr for LinkRef {
    type Err = BadLinkRef;
    fn from_str(raw: &str) -> Result<Self, BadLinkRef> {
        let name = || raw.parse().map(Self::Name).map_err(|_| BadLinkRef(raw.to_owned()));
        raw.parse().map(Self::Address).or_else(|_| name())
    }
}

impl fmt::Display for LinkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A regular expression for links' addresses and names, in RE2's language, as flannel's.
#[derive(Clone, Debug)]
pub struct LinkPattern(Regex);

/// Why a text is no [`LinkPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is no regular expression: {why}")]
pub struct BadLinkPattern {
    pattern: String,
    why: String,
}

impl LinkPattern {
    /// It is found somewhere in the text, as with Go's `MatchString`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl FromStr for LinkPattern {
    type Err = BadLinkPattern;
    fn from_str(raw: &str) -> Result<Self, BadLinkPattern> {
        Regex::new(raw).map(Self).map_err(|error| {
            // The library draws the expression and points at the place; its last line is the reason.
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            BadLinkPattern { pattern: raw.to_owned(), why }
        })
    }
}

impl PartialEq for LinkPattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for LinkPattern {}

impl fmt::Display for LinkPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_str().fmt(f)
    }
}

/// A network's name on this host. It is part of paths, link aliases and table names, hence: 1 to 32 of
/// `[a-z0-9-]`, a letter or digit first; and not `proxy`, whose paths and table are `weft proxy`'s.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

/// Why a text is no [`NetworkName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNetworkName {
    /// It cannot be part of paths and names.
    #[error("`{0}` is no network name: 1 to 32 of the characters a-z 0-9 -, not `-` first")]
    Form(String),
    /// It is somebody else's.
    #[error("`{0}` is taken: `weft proxy` keeps its files and its table under that name; use another one")]
    Taken(String),
}

impl NetworkName {
    /// The name as it stands in paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = BadNetworkName;
    fn from_str(raw: &str) -> Result<Self, BadNetworkName> {
        let clean = raw.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let fits = (1..=32).contains(&raw.len()) && !raw.starts_with('-');
        match raw {
            "proxy" => Err(BadNetworkName::Taken(raw.to_owned())),
            _ if clean && fits => Ok(Self(raw.to_owned())),
            _ => Err(BadNetworkName::Form(raw.to_owned())),
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_go_together() {
        Options::default().check().unwrap();
        assert_eq!(Options::default().socket(), PathBuf::from("/run/weft/weft/overlay.sock"));
        assert_eq!(Options::default().network_state_dir(), PathBuf::from("/var/lib/weft/weft"));
    }

    #[test]
    fn options_that_do_not_go_together() {
        let seconds = Duration::from_secs;
        type Change = fn(&mut Options);
        let table: [(Change, &str); 5] = [
            (
                |o| o.liveness_ttl = Duration::from_secs(1),
                "--liveness-ttl: `1s` is too short: at least 2s, as etcd grants nothing shorter",
            ),
            (
                |o| o.lease_ttl = Duration::ZERO,
                "--lease-ttl: `0s` is too short: at least 2s, as etcd grants nothing shorter",
            ),
            (
                |o| o.resync = Duration::ZERO,
                "--iptables-resync: `0s` is too short: at least 1s, as a full comparison costs CPU",
            ),
            (
                |o| o.lease_ttl = Duration::from_secs(5),
                "--lease-ttl: `5s` is shorter than --liveness-ttl, `10s`: the subnet must outlive the host",
            ),
            (
                |o| o.attach_ranges = vec!["10.1.2.4-10.1.2.9".parse().unwrap(); 2],
                "--attach-range: `10.1.2.4-10.1.2.9` is given twice",
            ),
        ];
        for (change, expected) in table {
            let mut options = Options { liveness_ttl: seconds(10), ..Options::default() };
            change(&mut options);
            assert_eq!(options.check().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn links_by_name_or_address() {
        let name = |text: &str| LinkRef::Name(text.parse().unwrap());
        let address = |text: &str| LinkRef::Address(text.parse().unwrap());
        for (raw, expected) in [
            ("eth0", Some(name("eth0"))),
            ("192.0.2.7", Some(address("192.0.2.7"))),
            ("2001:db8::7", Some(address("2001:db8::7"))),
            ("192.0.2.700", Some(name("192.0.2.700"))),
            ("", None),
            ("a name with spaces", None),
            ("sixteen-letters-", None),
        ] {
            assert_eq!(raw.parse::<LinkRef>().ok(), expected, "{raw}");
        }
    }

    #[test]
    fn patterns_are_found_anywhere_and_refused_in_one_line() {
        let pattern: LinkPattern = "eth[01]".parse().unwrap();
        assert!(pattern.is_match("veth1") && !pattern.is_match("eth2"));
        let error = "eth[".parse::<LinkPattern>().unwrap_err().to_string();
        assert_eq!(error, "`eth[` is no regular expression: unclosed character class");
    }

    #[test]
    fn names_of_networks() {
        for (raw, good) in [
            ("weft", true),
            ("blue-2", true),
            ("7", true),
            (&*"a".repeat(32), true),
            (&*"a".repeat(33), false),
            ("", false),
            ("-blue", false),
            ("Blue", false),
            ("..", false),
            ("a/b", false),
            ("blau grün", false),
            ("proxy", false),
            ("proxy-2", true),
        ] {
            assert_eq!(raw.parse::<NetworkName>().is_ok(), good, "{raw}");
        }
    }

    #[test]
    fn printing_shows_no_secret() {
        let mut options = Options::default();
        options.etcd.password = Some("hunter2".into());
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
