//! What a link's driver may do in place of the stack: segmentation, coalescing, checksums.
//!
//! Through the SIOCETHTOOL ioctl, which every driver has; the feature names are the kernel's own
//! (`ethtool -k`, net/ethtool/common.c, `netdev_features_strings`). For the namespace of the calling
//! thread; for another one use [`crate::netns::run_in`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::net::LinkName;

/// A group of features, under the name that `ethtool -K` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offload {
    /// `tso`: the device cuts large TCP segments.
    Tso,
    /// `gso`: the stack cuts large packets as late as it can.
    Gso,
    /// `gro`: the stack joins small packets as early as it can.
    Gro,
    /// `tx-checksum-ip-generic`: the device fills in checksums.
    TxChecksum,
    /// `tx-udp_tnl-segmentation` and its checksummed twin: the device cuts packets inside UDP tunnels.
    TxUdpTunnelSegmentation,
}

impl Offload {
    /// All there are, in order.
    pub const ALL: [Self; 5] =
        [Self::Tso, Self::Gso, Self::Gro, Self::TxChecksum, Self::TxUdpTunnelSegmentation];

    /// The name that ethtool(8) knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::TxChecksum => "tx-checksum-ip-generic",
            Self::TxUdpTunnelSegmentation => "tx-udp_tnl-segmentation",
        }
    }

    /// The kernel's features in it; the first tells whether it is on.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Tso => &[
                "tx-tcp-segmentation",
                "tx-tcp6-segmentation",
                "tx-tcp-ecn-segmentation",
                "tx-tcp-mangleid-segmentation",
                "tx-tcp-accecn-segmentation",
            ],
            Self::Gso => &["tx-generic-segmentation"],
            Self::Gro => &["rx-gro"],
            Self::TxChecksum => &["tx-checksum-ip-generic"],
            Self::TxUdpTunnelSegmentation => &["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"],
        }
    }
}

/// A link's offloads could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The driver or the kernel said no.
    #[error("cannot {action} the offloads of {link}")]
    Ioctl {
        /// Read or set.
        action: &'static str,
        /// Of which link.
        link: LinkName,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It was set, and is not so: fixed by the driver, or another setting forbids it.
    #[error("{offload} of {link} cannot be switched {}", if *.on { "on" } else { "off" })]
    Fixed {
        /// Of which link.
        link: LinkName,
        /// Which, by ethtool's name.
        offload: &'static str,
        /// What was wished.
        on: bool,
    },
}

/// What a link's offloads are now.
pub fn read(link: &LinkName) -> Result<BTreeMap<Offload, bool>, OffloadError> {
    let failed = |source| OffloadError::Ioctl { action: "read", link: link.clone(), source };
    let device = Device::open(link).map_err(failed)?;
    Ok(device.read().map_err(failed)?.states())
}

/// Sets some of a link's offloads and returns all as they were before, for putting back. One that is so
/// already is left alone, fixed or not.
pub fn set(
    link: &LinkName,
    wanted: &BTreeMap<Offload, bool>,
) -> Result<BTreeMap<Offload, bool>, OffloadError> {
    let failed = |source| OffloadError::Ioctl { action: "set", link: link.clone(), source };
    let device = Device::open(link).map_err(failed)?;
    let before = device.read().map_err(failed)?;
    device.write(&before.request(wanted)).map_err(failed)?;
    let after = device.read().map_err(failed)?.states();
    for (offload, on) in wanted {
        if after.get(offload) != Some(on) {
            return Err(OffloadError::Fixed { link: link.clone(), offload: offload.name(), on: *on });
        }
    }
    Ok(before.states())
}

// include/uapi/linux/ethtool.h
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// `struct ethtool_get_features_block`: available, requested, active, never changed.
const GET_BLOCK_WORDS: usize = 4;

/// The features of one link: their names, by bit, and which bits are on.
struct Features {
    names: Vec<String>,
    active: Vec<u32>,
}

impl Features {
    fn bit(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    fn is_on(&self, bit: usize) -> bool {
        self.active.get(bit / 32).is_some_and(|word| word >> (bit % 32) & 1 == 1)
    }

    fn states(&self) -> BTreeMap<Offload, bool> {
        let state = |offload: Offload| {
            let on =
                offload.features().first().and_then(|name| self.bit(name)).is_some_and(|bit| self.is_on(bit));
            (offload, on)
        };
        Offload::ALL.into_iter().map(state).collect()
    }

    /// `struct ethtool_sfeatures`: for every 32 features which are meant, and what they shall be.
    fn request(&self, wanted: &BTreeMap<Offload, bool>) -> Vec<u32> {
        let mut blocks = vec![(0u32, 0u32); self.active.len()];
        for (offload, on) in wanted {
            for bit in offload.features().iter().filter_map(|name| self.bit(name)) {
                let Some((valid, requested)) = blocks.get_mut(bit / 32) else { continue };
                *valid |= 1 << (bit % 32);
                *requested |= u32::from(*on) << (bit % 32);
            }
        }
        let size = u32::try_from(blocks.len()).unwrap_or(0);
        [ETHTOOL_SFEATURES, size].into_iter().chain(blocks.into_iter().flat_map(|(v, r)| [v, r])).collect()
    }
}

/// A link, and a socket through which its driver is asked.
struct Device {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Device {
    fn open(link: &LinkName) -> io::Result<Self> {
        // Any socket will do; it fixes the namespace.
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut name = [0; libc::IFNAMSIZ];
        // A link's name has at most 15 bytes: the last stays zero.
        for (to, from) in name.iter_mut().zip(link.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { socket, name })
    }

    fn read(&self) -> io::Result<Features> {
        let names = self.names()?;
        let blocks = names.len().div_ceil(32);
        let mut request = vec![0u32; 2 + blocks * GET_BLOCK_WORDS];
        request[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        self.ioctl(&mut request)?;
        let active = request[2..].chunks_exact(GET_BLOCK_WORDS).map(|block| block[2]).collect();
        Ok(Features { names, active })
    }

    fn names(&self) -> io::Result<Vec<String>> {
        // `struct ethtool_sset_info`: command, reserved, 64 bits of mask, one length for each set bit.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        info[if cfg!(target_endian = "little") { 2 } else { 3 }] = 1 << ETH_SS_FEATURES;
        self.ioctl(&mut info)?;
        // There are some 60; a number beyond all reason is not taken for room to make.
        let count = info[4].min(1024) as usize;
        // `struct ethtool_gstrings`: command, set, length, then the names.
        let mut strings = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.ioctl(&mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let name = |raw: &[u8]| {
            let end = raw.iter().position(|byte| *byte == 0).unwrap_or(raw.len());
            String::from_utf8_lossy(&raw[..end]).into_owned()
        };
        Ok(bytes.chunks_exact(ETH_GSTRING_LEN).map(name).collect())
    }

    fn write(&self, request: &[u32]) -> io::Result<()> {
        // A positive answer says that some bits came out differently; the caller reads them again.
        self.ioctl(&mut request.to_vec())
    }

    /// `request` begins with a command and has the room that this command's answer takes.
    fn ioctl(&self, request: &mut [u32]) -> io::Result<()> {
        let mut ifreq = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: request.as_mut_ptr().cast() },
        };
        // SAFETY: SIOCETHTOOL takes an `ifreq` whose data points at a command structure. `request` is
        // one, and its length field says how much room follows; the kernel copies it, and writes
        // back no more than that (net/ethtool/ioctl.c). Both live until the call returns.
        let answer = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut ifreq) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Change, Link, LinkKind, Rtnetlink};
    use crate::netns::{InNetNs, NetNs, run_in};

    #[test]
    fn a_request_names_exactly_the_features_meant() {
        let names = |which: &[&str]| which.iter().map(|name| (*name).to_owned()).collect();
        let features =
            Features { names: names(&["a", "rx-gro", "b", "tx-generic-segmentation"]), active: vec![0b0010] };
        assert!(features.states()[&Offload::Gro]);
        assert!(!features.states()[&Offload::Gso]);
        let wanted = BTreeMap::from([(Offload::Gro, false), (Offload::Gso, true)]);
        assert_eq!(features.request(&wanted), [ETHTOOL_SFEATURES, 1, 0b1010, 0b1000]);
    }

    #[test]
    fn a_veth_is_switched_as_ethtool_sees_it_and_back() {
        let ns = NetNs::anonymous().unwrap();
        let net = Rtnetlink::open_in(&ns).unwrap();
        let end = |raw: &str| Link {
            name: raw.parse().unwrap(),
            index: 0,
            kind: LinkKind::Veth,
            mac: None,
            mtu: 0,
            up: true,
            carrier: true,
            alias: None,
            master: None,
        };
        let pair = Change::AddVethPair { host: end("a"), peer: end("b"), peer_netns: None };
        assert!(net.apply_blocking(&[pair]).is_empty());
        let link: LinkName = "a".parse().unwrap();
        let before = run_in(&ns, || read(&link)).unwrap().unwrap();
        assert!(before[&Offload::Tso] && before[&Offload::Gso] && before[&Offload::TxChecksum], "{before:?}");

        let off = Offload::ALL.into_iter().map(|offload| (offload, false)).collect();
        assert_eq!(run_in(&ns, || set(&link, &off)).unwrap().unwrap(), before);
        assert_eq!(run_in(&ns, || read(&link)).unwrap().unwrap(), off);
        let mut ethtool = std::process::Command::new("ethtool");
        let said = ethtool.args(["-k", "a"]).in_netns(&ns).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        for line in
            ["tcp-segmentation-offload: off", "generic-receive-offload: off", "tx-udp_tnl-segmentation: off"]
        {
            assert!(said.contains(line), "{line} in {said}");
        }
        run_in(&ns, || set(&link, &before)).unwrap().unwrap();
        assert_eq!(run_in(&ns, || read(&link)).unwrap().unwrap(), before);
    }

    #[test]
    fn what_a_driver_has_not_cannot_be_switched_on() {
        let ns = NetNs::anonymous().unwrap();
        let lo: LinkName = "lo".parse().unwrap();
        let wanted = BTreeMap::from([(Offload::TxUdpTunnelSegmentation, true)]);
        let refused = run_in(&ns, || set(&lo, &wanted)).unwrap().unwrap_err();
        assert!(matches!(refused, OffloadError::Fixed { on: true, .. }), "{refused:?}");
    }
}
