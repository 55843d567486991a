//! Linux, typed and without policy: links, routes, neighbours, FDB, nftables, connection tracking,
//! namespaces, sysctls, pipes, TUN.
//!
//! Nothing here decides. [`net`] holds plain data about a host's network, a seam ([`net::Net`]) to
//! read and change it, the real kernel behind it and an honest fake. [`nft`] speaks nftables over
//! netlink, [`conntrack`] connection tracking, [`iptables`] calls that program's own. The rest is small:
//! [`netns`], [`netconf`], [`sysctl`], [`offload`], [`pipe`], [`tun`].

pub mod conntrack;
pub mod iptables;
pub mod net;
pub mod netconf;
pub mod netns;
pub mod nft;
pub mod offload;
pub mod pipe;
pub mod sysctl;
pub mod tun;
