//! Saying what a lab should be, and raising it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::lab::{Inner, Lab, READY};
use crate::layout::{Families, HostSpec, Layout, Spec};
use crate::process::ProcessId;
use crate::record::{Home, Record};
use crate::wait::wait_for;
use crate::{LabError, netns};

/// Where labs are kept: `$WEFT_LABS_DIR`, or `/var/lib/weft-labs`. Not under `/run`, which is memory
/// on most machines: each etcd reserves 128 MB for its log.
pub fn labs_dir() -> PathBuf {
    std::env::var_os("WEFT_LABS_DIR").map_or_else(|| "/var/lib/weft-labs".into(), PathBuf::from)
}

/// The overlay's configuration where a lab names none. Hosts lease subnets at random, so they lease them
/// from 10.42.100.0 to 10.42.199.0: the others are a story's own to give to peers that it makes up.
const NETWORK: &str = r#"{"Network":"10.42.0.0/16","SubnetMin":"10.42.100.0","SubnetMax":"10.42.199.0","Backend":{"Type":"vxlan"}}"#;

/// A lab to be. Made by [`Lab::new`] or [`Lab::named`].
#[derive(Clone, Debug)]
#[must_use = "a lab does nothing before `up`"]
pub struct Builder {
    spec: Spec,
    labs: PathBuf,
    daemons: bool,
    stays: bool,
}

impl Builder {
    pub(crate) fn for_story(story: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let words: String = story
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(14)
            .collect();
        Self::named(&format!("t-{words}-{}-{count}", std::process::id()), false)
    }

    pub(crate) fn named(name: &str, stays: bool) -> Self {
        let spec = Spec {
            name: name.to_owned(),
            hosts: vec![],
            etcd_members: 1,
            mtu: 1500,
            families: Families::Both,
            weft: None,
            network: "weft".into(),
            etcd_prefix: "/coreos.com/network".into(),
            config: Some(NETWORK.into()),
            overlay_args: vec![],
            proxy_args: None,
        };
        Self { spec, labs: labs_dir(), daemons: true, stays }
    }

    /// The `weft` binary: hosts run it as their daemon and wire pods with it.
    pub fn weft(mut self, binary: impl AsRef<Path>) -> Self {
        self.spec.weft = Some(binary.as_ref().to_owned());
        self
    }

    /// These hosts, on the first segment.
    pub fn hosts<S: Into<String>>(self, names: impl IntoIterator<Item = S>) -> Self {
        self.hosts_on(1, names)
    }

    /// These hosts on a segment from 1 to 3; a router joins the segments.
    pub fn hosts_on<S: Into<String>>(mut self, segment: u8, names: impl IntoIterator<Item = S>) -> Self {
        self.spec.hosts.extend(names.into_iter().map(|name| HostSpec { name: name.into(), segment }));
        self
    }

    /// What is written to `<prefix>/config` before any daemon starts: flannel's JSON. Not parsed.
    pub fn network(mut self, config: impl ToString) -> Self {
        self.spec.config = Some(config.to_string());
        self
    }

    /// Leaves `<prefix>/config` unwritten.
    pub fn without_network(mut self) -> Self {
        self.spec.config = None;
        self
    }

    /// The overlay network's name, for `--network`. Default `weft`.
    pub fn network_name(mut self, name: &str) -> Self {
        self.spec.network = name.to_owned();
        self
    }

    /// Where the network's keys are in etcd. Default `/coreos.com/network`.
    pub fn etcd_prefix(mut self, prefix: &str) -> Self {
        self.spec.etcd_prefix = prefix.to_owned();
        self
    }

    /// Further arguments for every `weft overlay`.
    pub fn overlay_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.spec.overlay_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A service proxy on every host, with these further arguments. All of them read the manifests of
    /// the lab, in which every host is a Node.
    pub fn proxies<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.spec.proxy_args.get_or_insert_default().extend(args.into_iter().map(Into::into));
        self
    }

    /// How many etcd members: 0, 1 (the default) or 3.
    pub fn etcd_members(mut self, members: u8) -> Self {
        self.spec.etcd_members = members;
        self
    }

    /// MTU of the underlay in bytes. Default 1500.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.spec.mtu = mtu;
        self
    }

    /// Gives machines IPv4 addresses alone on the underlay, or IPv6 ones alone. Default both.
    pub fn underlay(mut self, families: Families) -> Self {
        self.spec.families = families;
        self
    }

    /// Starts no daemon; [`crate::Host::start_overlay`] and [`crate::Proxy::start`] do, host by host.
    pub fn without_daemons(mut self) -> Self {
        self.daemons = false;
        self
    }

    /// Where labs are kept instead of [`labs_dir`].
    pub fn dir(mut self, labs: impl AsRef<Path>) -> Self {
        self.labs = labs.as_ref().to_owned();
        self
    }

    /// Raises it: namespaces, etcd, the network's config, daemons until they are ready. What was
    /// begun is removed again if it fails.
    pub fn up(self) -> Result<Lab, LabError> {
        let layout = Layout::of(&self.spec)?;
        let home = Home::of(&self.labs, &self.spec.name);
        // Ours while it is raised, even if it is to stay: if we die half-way, it is an orphan.
        let record = Record::new(self.spec.clone(), ProcessId::own(), layout.namespaces());
        if !home.claim(&record)? {
            if !home.existing()?.is_orphaned() {
                return Err(LabError::Exists { name: self.spec.name });
            }
            crate::down::tear_down(&home)?;
            home.claim(&record)?;
        }
        let lab = Lab::over(Inner::new(home, self.spec, layout), true);
        raise(&lab, self.daemons)?;
        if self.stays { lab.left_standing() } else { Ok(lab) }
    }
}

fn raise(lab: &Lab, daemons: bool) -> Result<(), LabError> {
    let inner = lab.inner();
    let layout = &inner.layout;
    for name in layout.namespaces() {
        netns::add(&name)?;
    }
    netns::batch(&layout.lan, &layout.lan_batch())?;
    netns::batch(&layout.router, &layout.router_batch())?;
    netns::run_in(&layout.router, forward)?.map_err(LabError::io("switch on forwarding in the router"))?;
    let ports: String = layout.nodes.iter().map(|node| layout.port_batch(node)).collect();
    netns::batch(&layout.lan, &ports)?;
    for node in &layout.nodes {
        netns::batch(&node.netns, &layout.node_batch(node))?;
    }
    if inner.spec.etcd_members > 0 {
        lab.etcd().start()?;
        if let Some(config) = &inner.spec.config {
            lab.etcd().put(&format!("{}/config", inner.spec.etcd_prefix), config)?;
        }
    }
    if daemons && inner.spec.weft.is_some() {
        let hosts = lab.hosts();
        hosts.iter().try_for_each(crate::Host::launch_overlay)?;
        hosts.iter().try_for_each(|host| host.wait_until_ready(READY))?;
        if inner.spec.proxy_args.is_some() {
            let nodes: Vec<_> = hosts.iter().map(|host| crate::manifests::node(host, None)).collect();
            lab.manifests().write(&nodes)?;
            hosts.iter().try_for_each(|host| host.proxy().launch())?;
            hosts.iter().try_for_each(|host| host.proxy().wait_until_ready(READY))?;
        }
    }
    // A broken veth or bridge shows here, not as a riddle in the first story.
    let first = lab.hosts().into_iter().next();
    first.map_or(Ok(()), |host| underlay_works(&host))
}

fn underlay_works(host: &crate::Host) -> Result<(), LabError> {
    let gateway = host.gateway();
    wait_for(Duration::from_secs(10), || host.ping(gateway).map_err(|error| error.chain())).map_err(
        |timed_out| {
            let what = format!("{} does not reach its router {gateway}", host.name());
            LabError::Late { what, timed_out, log: String::new() }
        },
    )
}

/// Runs in the router's namespace.
fn forward() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
}
