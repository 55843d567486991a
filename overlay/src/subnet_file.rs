//! `subnet.env`, the file by which flannel tells other programs what a host got; same variables, same order. Pure.

use std::fmt::Write as _;

use ipnetwork::{Ipv4Network, Ipv6Network};

/// What stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetFile {
    /// `FLANNEL_NETWORK`: the whole pod network.
    pub network: Option<Ipv4Network>,
    /// `FLANNEL_SUBNET`: this host's subnet, written as its first usable address: 10.5.72.1/24.
    pub subnet: Option<Ipv4Network>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub network_v6: Option<Ipv6Network>,
    /// `FLANNEL_IPV6_SUBNET`, written as its first usable address.
    pub subnet_v6: Option<Ipv6Network>,
    /// `FLANNEL_MTU`, in bytes.
    pub mtu: Option<u32>,
    /// `FLANNEL_IPMASQ`: the overlay masquerades, so that Docker must not.
    pub masquerade: Option<bool>,
}

impl SubnetFile {
    /// The file's text. Subnets may be given as networks; they are written as first addresses.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                writeln!(text, "{key}={value}").expect("a String takes every write");
            }
        };
        line("FLANNEL_NETWORK", self.network.map(|net| net.to_string()));
        let subnet = self.subnet.map(|net| format!("{}/{}", first_v4(net), net.prefix()));
        line("FLANNEL_SUBNET", subnet);
        line("FLANNEL_IPV6_NETWORK", self.network_v6.map(|net| net.to_string()));
        let subnet_v6 = self.subnet_v6.map(|net| format!("{}/{}", first_v6(net), net.prefix()));
        line("FLANNEL_IPV6_SUBNET", subnet_v6);
        line("FLANNEL_MTU", self.mtu.map(|mtu| mtu.to_string()));
        line("FLANNEL_IPMASQ", self.masquerade.map(|masquerade| masquerade.to_string()));
        text
    }

    /// Reads what [`SubnetFile::render`] or flanneld wrote. Lines that say nothing to us, or
    /// nothing that can be read, are passed over: the file is a memory, not an order.
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let value = value.trim().trim_matches('"');
            match key.trim() {
                "FLANNEL_NETWORK" => file.network = value.parse().ok(),
                "FLANNEL_SUBNET" => file.subnet = value.parse::<Ipv4Network>().ok().map(network_v4),
                "FLANNEL_IPV6_NETWORK" => file.network_v6 = value.parse().ok(),
                "FLANNEL_IPV6_SUBNET" => file.subnet_v6 = value.parse::<Ipv6Network>().ok().map(network_v6),
                "FLANNEL_MTU" => file.mtu = value.parse().ok(),
                "FLANNEL_IPMASQ" => file.masquerade = value.parse().ok(),
                _ => {}
            }
        }
        file
    }
}

fn first_v4(net: Ipv4Network) -> std::net::Ipv4Addr {
    u32::from(net.network()).saturating_add(1).into()
}

fn first_v6(net: Ipv6Network) -> std::net::Ipv6Addr {
    u128::from(net.network()).saturating_add(1).into()
}

fn network_v4(net: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(net.network(), net.prefix()).unwrap_or(net)
}

fn network_v6(net: Ipv6Network) -> Ipv6Network {
    Ipv6Network::new(net.network(), net.prefix()).unwrap_or(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_is_flannels() {
        let file = SubnetFile {
            network: Some("10.5.0.0/16".parse().unwrap()),
            subnet: Some("10.5.72.0/24".parse().unwrap()),
            network_v6: Some("fc00::/48".parse().unwrap()),
            subnet_v6: Some("fc00:0:0:7::/64".parse().unwrap()),
            mtu: Some(1450),
            masquerade: Some(true),
        };
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
                    FLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(file.render(), text);
        assert_eq!(SubnetFile::parse(text), file);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(FLANNEL_[A-Z0-9_]{1,12}=.{0,20}\n|.{0,30}\n){0,8}") {
            let file = SubnetFile::parse(&text);
            prop_assert_eq!(SubnetFile::parse(&file.render()), file);
        }
    }
}
