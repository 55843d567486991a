//! A pod's network: an address of the host's subnet and the wire to reach it by.
//!
//! [`range`] says which addresses there are, [`records`] who has which (on disk), [`site`] what the
//! host offers, [`wiring`] what a wire consists of, [`keep`] how the daemon keeps
//! it, [`sharing`] what links of others need to know of it; this file makes wires and takes them back.
//! All of it blocks: a CNI plugin is a process per call, and the node agent calls it on a thread.

pub mod keep;
pub mod range;
pub mod records;
pub mod sharing;
pub mod site;
pub mod wiring;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};
use weft_kernel::net::{BadLinkName, Change, Failure, LinkName, Mac, NetError, Rtnetlink};
use weft_kernel::netns::{NetNs, NetNsError, run_in};
use weft_kernel::sysctl::{Family, Sysctl};

use records::{Claim, Record, RecordError, Records};
use site::{Mode, Site, SiteError};

/// One network on this host, to attach pods to.
#[derive(Clone, Debug)]
pub struct Attacher {
    run_dir: PathBuf,
    network: String,
    records: Records,
    owner: Option<String>,
}

/// A wire that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What was recorded.
    pub record: Record,
    /// The host's end's Ethernet address.
    pub host_mac: Mac,
    /// The pod's end's Ethernet address.
    pub pod_mac: Option<Mac>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The pod's addresses with prefix length and gateway.
    pub addresses: Vec<(IpNetwork, IpAddr)>,
    /// What the pod sends over it, and to which gateway.
    pub routes: Vec<(IpNetwork, IpAddr)>,
}

/// What the runtime believes to be in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Addresses with prefix length.
    pub addresses: Vec<IpNetwork>,
    /// Destinations and their gateways. Those that are not weft's are not looked at.
    pub routes: Vec<(IpNetwork, IpAddr)>,
}

/// Why a pod could not be attached, detached or checked.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The host offers nothing (yet).
    #[error(transparent)]
    Site(#[from] SiteError),
    /// No address could be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The pod's namespace cannot be entered.
    #[error("the pod's network namespace {} cannot be used", path.display())]
    Namespace {
        /// As the runtime named it.
        path: PathBuf,
        /// The cause.
        #[source]
        source: NetNsError,
    },
    /// The pod shares the host's network: there is nothing to attach.
    #[error("{} is the host's own network namespace; a pod in it needs no attachment", path.display())]
    HostNamespace {
        /// As the runtime named it.
        path: PathBuf,
    },
    /// A name does not follow the kernel's rule.
    #[error(transparent)]
    Name(#[from] BadLinkName),
    /// The kernel could not be asked.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The kernel refused some steps; what was done has been undone.
    #[error("{}", Failures(.0))]
    Refused(Vec<Failure>),
    /// The wire is not as it was made.
    #[error("{0}")]
    Broken(String),
}

struct Failures<'a>(&'a [Failure]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, failure) in self.0.iter().enumerate() {
            write!(f, "{}{failure}", if place == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Attacher {
    /// The network `network` of the daemon with these directories.
    pub fn new(run_dir: &Path, state_dir: &Path, network: &str) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            network: network.to_owned(),
            records: Records::new(&state_dir.join(network)),
            owner: None,
        }
    }

    /// Attaches in this name, and collects only what was attached in it: several runtimes and
    /// weft itself may share one network.
    pub fn in_the_name_of(self, owner: &str) -> Self {
        Self { owner: Some(owner.to_owned()), ..self }
    }

    /// What the host offers now.
    ///
    /// # Errors
    /// When it offers nothing.
    pub fn site(&self) -> Result<Site, SiteError> {
        Site::read(&self.run_dir, &self.network)
    }

    /// One more pod could be attached now.
    ///
    /// # Errors
    /// When the host offers nothing, or every address has a pod.
    pub fn has_room(&self) -> Result<(), AttachError> {
        Ok(self.records.have_room(&self.site()?.ranges)?)
    }

    /// The pod has an interface of this name, whoever made it.
    ///
    /// # Errors
    /// When the pod's namespace cannot be looked into.
    pub fn has_interface(&self, netns: &Path, ifname: &str) -> Result<bool, AttachError> {
        let inside = Rtnetlink::open_in(&self.enter(netns)?)?.observe_blocking()?;
        Ok(inside.links.contains_key(&ifname.parse::<LinkName>()?))
    }

    /// Wires a pod's namespace: after it, the pod reaches and is reached. Asking again for the same
    /// attachment makes it anew with the same addresses.
    ///
    /// # Errors
    /// Nothing is left behind by a failure.
    pub fn attach(
        &self,
        id: &str,
        ifname: &str,
        netns: &Path,
        wanted: &[IpAddr],
    ) -> Result<Attachment, AttachError> {
        self.site()?;
        let link = wiring::host_link(id, ifname)?;
        let pod = self.enter(netns)?;
        let lock = self.records.lock()?;
        // Under the lock, because the daemon closes the offer and then looks who is there.
        let site = self.site()?;
        let known = lock.find(id, ifname);
        let claim = Claim { id, ifname, netns, link: &link, owner: self.owner.as_deref() };
        let record = lock.allocate(claim, &site.ranges, wanted)?;
        // Others may allocate while we wire: the addresses are ours from here on.
        drop(lock);
        let wired = self.wire(&site, &record, &pod, known.is_some());
        if wired.is_err() {
            self.records.lock()?.release(id, ifname)?;
        }
        wired
    }

    fn wire(
        &self,
        site: &Site,
        record: &Record,
        pod: &NetNs,
        again: bool,
    ) -> Result<Attachment, AttachError> {
        let host = Rtnetlink::open()?;
        let link: LinkName = record.link.parse()?;
        if again {
            refuse_failures(host.apply_blocking(&[Change::DeleteLink(link.clone())]))?;
        }
        // Opened before the pair is made: the runtime may name the namespace by /proc/self/fd/N.
        let steps = wiring::host_changes(site, record, &record.netns)?;
        let inside = Rtnetlink::open_in(pod)?;
        let (pair, rest) = steps.split_at(1);
        refuse_failures(host.apply_blocking(pair))?;
        let finish = || -> Result<Attachment, AttachError> {
            prepare(site, record, &link, pod);
            refuse_failures(host.apply_blocking(rest))?;
            let routes = wiring::pod_routes(site, record, &inside.observe_blocking()?)?;
            refuse_failures(inside.apply_blocking(&wiring::pod_changes(site, record, &routes)?))?;
            let addresses = record
                .addresses
                .iter()
                .filter_map(|addr| Some((site.pod_network(*addr)?, site.gateway(*addr)?)));
            Ok(Attachment {
                host_mac: wiring::host_mac(site, record),
                pod_mac: wiring::pod_mac(record),
                mtu: site.mtu,
                addresses: addresses.collect(),
                routes: routes.iter().filter_map(|route| Some((route.key.dst, route.via?))).collect(),
                record: record.clone(),
            })
        };
        finish().inspect_err(|_| {
            for failure in host.apply_blocking(&[Change::DeleteLink(link.clone())]) {
                tracing::warn!(%failure, "while taking back a wire that could not be finished");
            }
        })
    }

    /// Takes a wire back. What is gone already is no error, the whole attachment included.
    ///
    /// # Errors
    /// When the link or the record cannot be removed; asking again is safe.
    pub fn detach(&self, id: &str, ifname: &str) -> Result<(), AttachError> {
        let link = wiring::host_link(id, ifname)?;
        // The wire first: its address must not be given out while packets still reach the old pod.
        let host = Rtnetlink::open()?;
        refuse_failures(host.apply_blocking(&[Change::DeleteLink(link)]))?;
        self.records.lock()?.release(id, ifname)?;
        Ok(())
    }

    /// The wire is as it was made: both ends, the pod's addresses, the way to each of them and out.
    ///
    /// # Errors
    /// [`AttachError::Broken`] names the first thing that is missing.
    pub fn check(
        &self,
        id: &str,
        ifname: &str,
        netns: &Path,
        expected: &Expected,
    ) -> Result<(), AttachError> {
        let broken = |what: String| Err(AttachError::Broken(what));
        let site = self.site()?;
        let Some(record) = self.records.lock()?.find(id, ifname) else {
            return broken(format!("no attachment of {ifname} is recorded for container {id}"));
        };
        let side = wiring::host_side(&site, &record)?;
        let host = Rtnetlink::open()?.observe_blocking()?;
        if !host.links.get(&side.link.name).is_some_and(|link| link.up) {
            return broken(format!("link {} is missing or down on the host", side.link.name));
        }
        for route in &side.routes {
            if host.routes.get(&route.key).and_then(|there| there.link.as_ref()) != route.link.as_ref() {
                return broken(format!("route `{route}` is missing on the host"));
            }
        }
        let inside = Rtnetlink::open_in(&self.enter(netns)?)?.observe_blocking()?;
        let link: LinkName = ifname.parse()?;
        if !inside.links.get(&link).is_some_and(|link| link.up) {
            return broken(format!("link {ifname} is missing or down in the pod"));
        }
        let recorded = record.addresses.iter().filter_map(|addr| site.pod_network(*addr));
        for network in recorded.chain(expected.addresses.iter().copied()) {
            let there =
                inside.addresses.iter().any(|address| address.link == link && address.network == network);
            if !there {
                return broken(format!("address {network} is missing in the pod"));
            }
        }
        let ours = |gateway: &IpAddr| {
            record.addresses.iter().any(|addr| site.gateway(*addr).as_ref() == Some(gateway))
        };
        for (dst, gateway) in expected.routes.iter().filter(|(_, gateway)| ours(gateway)) {
            let there = inside.routes.values().any(|route| {
                (route.key.dst, route.via, route.link.as_ref()) == (*dst, Some(*gateway), Some(&link))
            });
            if !there {
                return broken(format!("route {dst} via {gateway} is missing in the pod"));
            }
        }
        Ok(())
    }

    /// Takes back every attachment made in the same name that is not among those that must stay.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub fn collect_garbage(&self, keep: impl Fn(&Record) -> bool) -> Result<usize, AttachError> {
        let (mut removed, mut first_error) = (0, None);
        let ours = |record: &Record| record.owner == self.owner;
        for record in self.records.list()?.into_iter().filter(|record| ours(record) && !keep(record)) {
            match self.detach(&record.id, &record.ifname) {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(id = record.id, %error, "garbage stays");
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(removed), Err)
    }

    fn enter(&self, netns: &Path) -> Result<NetNs, AttachError> {
        let pod =
            NetNs::open(netns).map_err(|source| AttachError::Namespace { path: netns.to_owned(), source })?;
        if pod.is_current() {
            return Err(AttachError::HostNamespace { path: netns.to_owned() });
        }
        Ok(pod)
    }
}

/// Settings of the two ends that are no objects of their own; they go with the links. What the
/// kernel does not have (IPv6 built out) needs no setting.
fn prepare(site: &Site, record: &Record, link: &LinkName, pod: &NetNs) {
    if site.mode == Mode::Routed {
        // A pod must not send with another's address (strict reverse path, RFC 3704).
        set(&Sysctl::of_link(Family::V4, link, "rp_filter"), "1");
    }
    let has_v6 = record.addresses.iter().any(IpAddr::is_ipv6);
    let (Ok(ifname), true) = (record.ifname.parse::<LinkName>(), has_v6) else { return };
    // Runtimes switch IPv6 off in new namespaces; a pod with an IPv6 address wants it.
    let inside = run_in(pod, || {
        set(&Sysctl::of_link(Family::V6, &"lo".parse().expect("a literal link name"), "disable_ipv6"), "0");
        set(&Sysctl::of_link(Family::V6, &ifname, "disable_ipv6"), "0");
    });
    if let Err(error) = inside {
        tracing::warn!(%error, "IPv6 could not be switched on in the pod");
    }
}

fn set(sysctl: &Sysctl, value: &str) {
    match sysctl.set(value) {
        Err(error) if !error.is_absent() => tracing::warn!(%error, "setting of a pod's link"),
        _ => {}
    }
}

fn refuse_failures(failures: Vec<Failure>) -> Result<(), AttachError> {
    if failures.is_empty() { Ok(()) } else { Err(AttachError::Refused(failures)) }
}

/// Eleven hexadecimal digits that stand for one attachment in names: link names have room for
/// fifteen bytes, container ids have 64 (44 bits make a clash among 500 pods a one in 10^8 chance,
/// and a clash is refused, not shared).
pub(crate) fn link_suffix(id: &str, ifname: &str) -> String {
    let digest: [u8; 6] = digest_of(id, ifname);
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..11].to_owned()
}

/// The first bytes of what stands for one attachment.
fn digest_of<const N: usize>(id: &str, ifname: &str) -> [u8; N] {
    let digest = Sha256::new().chain_update(id).chain_update([0]).chain_update(ifname).finalize();
    std::array::from_fn(|at| digest[at])
}
