//! Leases of hosts that do not exist, as flanneld writes them, and what a kernel holds for each. Pure.

use std::net::Ipv4Addr;

use super::witness::Fact;

/// The network of the synthetic hosts: 16,384 subnets.
pub(super) const CONFIG: &str =
    r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}"#;
/// The first synthetic host's subnet, counted in /24s from the network's first: the daemon under test
/// takes one of the first free ones, and shall not have to search.
const FIRST: u32 = 1000;

/// One synthetic host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease(u16);

impl Lease {
    /// The host of this number.
    pub(super) const fn number(number: u16) -> Self {
        Self(number)
    }

    /// Its key in etcd.
    pub(super) fn key(&self, prefix: &str) -> String {
        format!("{prefix}/subnets/{}-24", self.subnet())
    }

    /// What flanneld writes there.
    pub(super) fn value(&self) -> String {
        let (public, mac) = (self.public(), self.vtep_mac());
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        format!(
            r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    }

    /// What the kernel holds once the lease is programmed.
    pub(super) fn facts(&self) -> [Fact; 3] {
        [Fact::Route(self.subnet()), Fact::Neighbour(self.subnet()), Fact::Fdb(self.vtep_mac())]
    }

    /// What the kernel says once the lease is gone.
    pub(super) fn gone(&self) -> [Fact; 3] {
        [Fact::RouteGone(self.subnet()), Fact::NeighbourGone(self.subnet()), Fact::FdbGone(self.vtep_mac())]
    }

    fn subnet(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + ((FIRST + u32::from(self.0)) << 8))
    }

    /// In the range that RFC 6598 sets aside for carriers: nobody answers there.
    fn public(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 1).to_bits() + u32::from(self.0))
    }

    fn vtep_mac(self) -> [u8; 6] {
        let [high, low] = self.0.to_be_bytes();
        [0x0e, 0x77, 0x66, 0, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_flanneld_writes() {
        let lease = Lease::number(259);
        assert_eq!(lease.key("/p"), "/p/subnets/10.68.235.0-24");
        assert_eq!(
            lease.value(),
            r#"{"PublicIP":"100.64.1.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:77:66:00:01:03"}}"#
        );
    }

    #[test]
    fn no_two_hosts_share_anything() {
        let all: std::collections::BTreeSet<Fact> =
            (0..6000).flat_map(|number| Lease::number(number).facts()).collect();
        assert_eq!(all.len(), 18_000);
    }
}
