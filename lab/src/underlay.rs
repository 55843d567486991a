//! The underlay's knobs: partitions, loss, MTU, offloads, rate.

use crate::faults::{CutFrom, Faults};
use crate::layout::Node;
use crate::{Host, Lab, LabError, netns};

/// What veths offload, in the words of `ethtool -K`. With `tso` off alone a veth still passes
/// 64 KiB packets of other kinds, so everything that makes or keeps super-packets is named.
const SEGMENTATION: [&str; 6] = [
    "tso",
    "gso",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
    "tx-gso-list",
];
/// How many bytes a shaper lets pass at once: ten full super-packets, or it would starve.
const BURST: &str = "640kb";
/// How long a packet may wait in a shaper.
const LATENCY: &str = "20ms";

/// What the veths of a lab do for their hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Segmentation and GRO on, as a veth comes.
    On,
    /// Segmentation off, GRO on: `no-tso`.
    NoTso,
    /// Both off: `no-offload`.
    Off,
}

impl Offloads {
    /// The arguments for `ethtool -K <link>`.
    fn arguments(self) -> Vec<&'static str> {
        let (segmentation, gro) = match self {
            Self::On => ("on", "on"),
            Self::NoTso => ("off", "on"),
            Self::Off => ("off", "off"),
        };
        let segmentation = SEGMENTATION.iter().flat_map(|feature| [*feature, segmentation]);
        segmentation.chain(["gro", gro]).collect()
    }
}

impl Lab {
    /// Cuts a host off. Established connections notice only by silence.
    pub fn cut(&self, host: &str, from: CutFrom) -> Result<(), LabError> {
        self.known(host)?;
        if let CutFrom::Peer(peer) = &from {
            self.known(peer)?;
        }
        self.change_faults(|faults| {
            faults.cuts.insert((host.to_owned(), from));
        })
    }

    /// Takes one cut back.
    pub fn heal(&self, host: &str, from: &CutFrom) -> Result<(), LabError> {
        self.change_faults(|faults| faults.cuts.retain(|(cut, what)| cut != host || what != from))
    }

    /// Takes every cut and every loss back.
    pub fn heal_all(&self) -> Result<(), LabError> {
        self.change_faults(|faults| *faults = Faults::default())
    }

    /// Loses this percentage of a host's frames, at random, in each direction. 0 ends it.
    pub fn lose(&self, host: &str, percent: u8) -> Result<(), LabError> {
        self.known(host)?;
        self.change_faults(|faults| {
            faults.loss.insert(host.to_owned(), percent.min(100));
        })
    }

    /// Sets the MTU of the link of every host, at both ends.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), LabError> {
        self.hosts().iter().try_for_each(|host| host.set_mtu(mtu))
    }

    /// Lets the hop between segments pass packets up to `mtu` only, answering larger ones with
    /// ICMP "fragmentation needed" or "packet too big". `None` takes the limit away.
    pub fn set_router_mtu(&self, mtu: Option<u32>) -> Result<(), LabError> {
        let layout = &self.inner().layout;
        netns::batch(&layout.router, &layout.router_mtu_batch(mtu))
    }

    /// Sets the offloads of every veth of the lab, pods' ends included, and says what was set:
    /// one line for each. Pods made later come as veths come.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<Vec<String>, LabError> {
        let mut set = vec![];
        for namespace in &self.record()?.namespaces {
            for link in veths(namespace)? {
                let mut args = vec!["-K", link.as_str()];
                args.extend(offloads.arguments());
                netns::exec(namespace, "ethtool", &args, "").ok()?;
                set.push(format!("{namespace}/{link}: {}", offloads.arguments().join(" ")));
            }
        }
        Ok(set)
    }

    /// Shapes every host's link to this rate, in each direction.
    pub fn shape(&self, mbit: u32) -> Result<(), LabError> {
        self.hosts().iter().try_for_each(|host| host.shape(mbit))
    }

    /// Takes the shaping of every host's link away.
    pub fn unshape(&self) -> Result<(), LabError> {
        self.hosts().iter().try_for_each(Host::unshape)
    }

    fn change_faults(&self, change: impl FnOnce(&mut Faults)) -> Result<(), LabError> {
        let inner = self.inner();
        let faults = inner.home.update(|record| {
            change(&mut record.faults);
            record.faults.clone()
        })?;
        netns::exec(&inner.layout.lan, "nft", &["-f", "-"], &faults.rules(&inner.layout)).ok().map(drop)
    }

    fn known(&self, name: &str) -> Result<(), LabError> {
        let layout = &self.inner().layout;
        let known = || layout.nodes.iter().map(|node| node.name.clone()).collect();
        layout.node(name).map(drop).ok_or_else(|| LabError::NoSuchHost {
            host: name.to_owned(),
            lab: self.name().to_owned(),
            known: known(),
        })
    }
}

impl Host {
    /// Sets the MTU of its link, at both ends.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), LabError> {
        self.both_ends(|link| format!("link set {link} mtu {mtu}\n"))
    }

    /// Takes its cable out: the link is down, and the host sees that it has no carrier.
    pub fn unplug(&self) -> Result<(), LabError> {
        netns::batch(&self.lab.layout.lan, &format!("link set {} down\n", self.name()))
    }

    /// Puts its cable back in.
    pub fn plug(&self) -> Result<(), LabError> {
        netns::batch(&self.lab.layout.lan, &format!("link set {} up\n", self.name()))
    }

    /// Shapes its link to this rate, in each direction.
    pub fn shape(&self, mbit: u32) -> Result<(), LabError> {
        let rate = format!("{mbit}mbit");
        let tbf = ["root", "tbf", "rate", &rate, "burst", BURST, "latency", LATENCY];
        self.qdisc("replace", &tbf)
    }

    /// Takes the shaping of its link away.
    pub fn unshape(&self) -> Result<(), LabError> {
        self.qdisc("del", &["root"])
    }

    fn qdisc(&self, verb: &str, what: &[&str]) -> Result<(), LabError> {
        for (namespace, link) in ends(&self.lab.layout.lan, &self.node) {
            let mut args = vec!["qdisc", verb, "dev", link];
            args.extend(what);
            netns::exec(namespace, "tc", &args, "").ok()?;
        }
        Ok(())
    }

    fn both_ends(&self, command: impl Fn(&str) -> String) -> Result<(), LabError> {
        ends(&self.lab.layout.lan, &self.node)
            .into_iter()
            .try_for_each(|(namespace, link)| netns::batch(namespace, &command(link)))
    }
}

/// A host's link: its own end, and the port on the lan.
fn ends<'a>(lan: &'a str, node: &'a Node) -> [(&'a str, &'a str); 2] {
    [(&node.netns, "eth0"), (lan, &node.name)]
}

fn veths(namespace: &str) -> Result<Vec<String>, LabError> {
    if !netns::path(namespace).exists() {
        return Ok(vec![]); // a host that is powered off
    }
    let links = netns::exec(namespace, "ip", &["-j", "link", "show", "type", "veth"], "").json()?;
    let links = links.as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(links.iter().filter_map(|link| Some(link["ifname"].as_str()?.to_owned())).collect())
}
