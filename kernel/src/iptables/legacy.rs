//! The shape of a legacy table, asked of the kernel: so cheap that it can be asked several times a second,
//! because the kernel tells nobody of changes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` (linux/netfilter_ipv4/ip_tables.h, its IPv6 twin).
const GET_INFO: libc::c_int = 64;
/// `XT_TABLE_MAXNAMELEN`, in words.
const NAME_WORDS: usize = 8;
/// `struct ipt_getinfo`: the name, which hooks there are, where each begins and ends (five of each), how
/// many entries, and how many bytes.
const INFO_WORDS: usize = NAME_WORDS + 1 + 5 + 5 + 1 + 1;

/// Asks about the legacy tables of one family, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Legacy {
    socket: OwnedFd,
    ipv6: bool,
}

/// How many rules a table has, how many bytes they take, and where each of the kernel's own chains begins
/// and ends. A rule more or less is another shape; another rule of the same size is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape([u32; INFO_WORDS]);

impl Legacy {
    /// Asks about one family's.
    ///
    /// # Errors
    /// When the kernel has no such family.
    pub fn open(ipv6: bool) -> io::Result<Self> {
        // Any socket of the family will do.
        let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, ipv6 })
    }

    /// The shape of a table. If the namespace has none of that name yet, it is made: ask only where one is
    /// known to be.
    ///
    /// # Errors
    /// When the kernel has no such table, or this is not root.
    pub fn shape(&self, table: &str) -> io::Result<Shape> {
        let mut name = [0; NAME_WORDS * 4];
        // The last byte stays zero.
        for (to, from) in name[..NAME_WORDS * 4 - 1].iter_mut().zip(table.bytes()) {
            *to = from;
        }
        let mut info = [0u32; INFO_WORDS];
        for (word, bytes) in info.iter_mut().zip(name.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let level = if self.ipv6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        let mut length = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the option reads and writes one `struct ipt_getinfo`, whose size the kernel compares with
        // `length` (net/ipv4/netfilter/ip_tables.c, `get_info`); `info` has that size and any words are
        // valid in it. Both live until the call returns.
        let answer = unsafe {
            let info = info.as_mut_ptr().cast();
            libc::getsockopt(self.socket.as_raw_fd(), level, GET_INFO, info, &raw mut length)
        };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(Shape(info)) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::{InNetNs as _, NetNs, run_in};

    #[test]
    fn a_rule_more_or_less_is_another_shape() {
        let ns = NetNs::anonymous().expect("this test needs root");
        for (program, ipv6) in [("iptables-legacy", false), ("ip6tables-legacy", true)] {
            let run = |words: &str| {
                let status = Command::new(program).args(words.split(' ')).in_netns(&ns).status().unwrap();
                assert!(status.success(), "{program} {words}");
            };
            let tables = run_in(&ns, || Legacy::open(ipv6)).unwrap().unwrap();
            let shape = |table| tables.shape(table).unwrap();
            let (nat, filter) = (shape("nat"), shape("filter"));
            let mut before = filter;
            for deed in ["-N OURS", "-A OURS -j DROP", "-A OUTPUT -j OURS", "-F OURS", "-F", "-X"] {
                run(&format!("-w -t filter {deed}"));
                assert_ne!(shape("filter"), before, "{deed}");
                before = shape("filter");
                assert_eq!((shape("nat"), shape("filter")), (nat, before), "nobody did anything");
            }
            assert_eq!(shape("filter"), filter, "nothing is left");
            assert!(tables.shape("no-such-table").is_err());
        }
    }
}
