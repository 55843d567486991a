//! What goes wrong in the long run, drawn at random from a seed.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};

/// One thing that goes wrong, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to a daemon.
    DaemonKilled { host: String },
    /// SIGTERM to a daemon, which obeys.
    DaemonRestarted { host: String },
    /// SIGSTOP to every etcd member: connections stay open and nothing answers.
    EtcdFrozen { hold: Duration },
    /// Every etcd member leaves.
    EtcdStopped { hold: Duration },
    /// SIGKILL to the member that leads.
    LeaderKilled { hold: Duration },
    /// Everything before the current revision is forgotten.
    EtcdCompacted,
    /// A host hears nothing of etcd.
    CutFromEtcd { host: String, hold: Duration },
    /// Two hosts hear nothing of each other.
    CutFromPeer { host: String, peer: String, hold: Duration },
    /// A host hears nothing at all.
    CutOff { host: String, hold: Duration },
    /// Some of a host's frames are lost.
    Lossy { host: String, percent: u8, hold: Duration },
    /// Somebody changes what the daemon keeps in the kernel.
    Drift { host: String, command: String },
    /// A host loses power until the others have dropped it.
    Dead { host: String },
}

impl Fault {
    /// The next fault. `tunnels` are the links that the daemon keeps on every host.
    pub(crate) fn draw(rng: &mut StdRng, hosts: &[String], tunnels: &[String]) -> Self {
        let hold = Duration::from_millis(rng.random_range(500..=12_000));
        let two: Vec<&String> = hosts.iter().sample(rng, 2);
        let [host, peer] = two[..] else { panic!("a fault needs two hosts") };
        let (host, peer) = (host.clone(), peer.clone());
        match rng.random_range(0..15) {
            0 => Self::DaemonKilled { host },
            1 => Self::DaemonRestarted { host },
            2 => Self::EtcdFrozen { hold },
            3 => Self::EtcdStopped { hold },
            4 => Self::LeaderKilled { hold },
            5 => Self::EtcdCompacted,
            6 => Self::CutFromEtcd { host, hold },
            7 => Self::CutFromPeer { host, peer, hold },
            8 => Self::CutOff { host, hold },
            9 => Self::Lossy { host, percent: rng.random_range(5..50), hold },
            10 => Self::Dead { host },
            _ => Self::Drift { host, command: drift(rng, tunnels) },
        }
    }

    /// Neither etcd nor a daemon is in the way of packets that the kernel forwards, so these must
    /// not cost a single one.
    pub(crate) fn costs_no_packet(&self) -> bool {
        match self {
            Self::DaemonKilled { .. }
            | Self::DaemonRestarted { .. }
            | Self::EtcdFrozen { .. }
            | Self::EtcdStopped { .. }
            | Self::LeaderKilled { .. }
            | Self::EtcdCompacted
            | Self::CutFromEtcd { .. } => true,
            Self::CutFromPeer { .. }
            | Self::CutOff { .. }
            | Self::Lossy { .. }
            | Self::Drift { .. }
            | Self::Dead { .. } => false,
        }
    }
}

/// A command that takes away something of ours, and nothing of anybody else's.
fn drift(rng: &mut StdRng, tunnels: &[String]) -> String {
    const ANYWHERE: [&str; 5] = [
        "ip route flush proto 87",
        "ip -6 route flush proto 87",
        "nft delete table inet weft-weft",
        "nft flush table inet weft-weft",
        "ip link set $(ip -o link show type veth | grep -o 'weft[^@:]*@' | tr -d @ | head -1) down",
    ];
    const TUNNEL: [&str; 6] = [
        "ip link delete LINK",
        "ip link set LINK down",
        "ip link set LINK mtu 1280",
        "ip address flush dev LINK",
        "ip neigh flush dev LINK nud permanent",
        "bridge fdb show dev LINK | while read mac _; do bridge fdb del $mac dev LINK; done",
    ];
    match tunnels.choose(rng) {
        Some(link) if rng.random_bool(0.6) => TUNNEL.choose(rng).expect("not empty").replace("LINK", link),
        _ => (*ANYWHERE.choose(rng).expect("not empty")).to_owned(),
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonKilled { host } => write!(f, "{host}: daemon killed"),
            Self::DaemonRestarted { host } => write!(f, "{host}: daemon restarted"),
            Self::EtcdFrozen { hold } => write!(f, "etcd frozen for {hold:?}"),
            Self::EtcdStopped { hold } => write!(f, "etcd stopped for {hold:?}"),
            Self::LeaderKilled { hold } => write!(f, "etcd's leader killed for {hold:?}"),
            Self::EtcdCompacted => f.write_str("etcd compacted"),
            Self::CutFromEtcd { host, hold } => write!(f, "{host}: cut off from etcd for {hold:?}"),
            Self::CutFromPeer { host, peer, hold } => write!(f, "{host}: cut off from {peer} for {hold:?}"),
            Self::CutOff { host, hold } => write!(f, "{host}: cut off from all for {hold:?}"),
            Self::Lossy { host, percent, hold } => {
                write!(f, "{host}: {percent} % of frames lost for {hold:?}")
            }
            Self::Drift { host, command } => write!(f, "{host}: {command}"),
            Self::Dead { host } => write!(f, "{host}: no power"),
        }
    }
}
