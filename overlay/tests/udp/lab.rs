//! Two hosts with a pod each, a router between them, all network namespaces of this test's own.
//!
//! ```text
//! pod a -- host a -- router -- host b -- pod b
//! ```

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft_kernel::netns::{InNetNs, NetNs, run_in};
use weft_kernel::tun::{Framing, Tun};
use weft_overlay::model::Subnet;
use weft_overlay::udp::{PeerEnd, PeerTable, Tunnel, TunnelOptions};

pub(crate) const PORT: u16 = 8285;
/// The underlay's 1500 less IPv4 and UDP, or IPv6 and UDP.
pub(crate) const MTU_OVER_V4: u32 = 1472;
pub(crate) const MTU_OVER_V6: u32 = 1452;
/// How long anything may take on a busy machine. Every wait ends as soon as its condition holds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Which addresses the hosts use between each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outer {
    V4,
    V6,
}

/// Which of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

use Side::{A, B};

pub(crate) struct Lab {
    prefix: String,
    pub(crate) outer: Outer,
}

impl Side {
    fn number(self) -> u16 {
        match self {
            A => 1,
            B => 2,
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            A => B,
            B => A,
        }
    }

    /// Its pod's addresses.
    pub(crate) fn pod_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number() as u8, 2)
    }

    pub(crate) fn pod_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, self.number(), 0, 0, 0, 0, 0, 2)
    }

    pub(crate) fn pod(self) -> [IpAddr; 2] {
        [self.pod_v4().into(), self.pod_v6().into()]
    }

    /// Its addresses on the underlay.
    pub(crate) fn host_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, self.number() as u8, 1)
    }

    pub(crate) fn host_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number(), 0, 0, 0, 0, 1)
    }

    pub(crate) fn subnet(self) -> Subnet {
        let n = self.number();
        Subnet {
            v4: Some(format!("10.42.{n}.0/24").parse().unwrap()),
            v6: Some(format!("fd00:{n}::/64").parse().unwrap()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            A => "a",
            B => "b",
        }
    }
}

impl Lab {
    /// Builds everything but the tunnel.
    pub(crate) fn new(outer: Outer) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Self { prefix: format!("weft-t-udp-{}-{unique}", std::process::id()), outer };
        for place in ["a", "b", "pod-a", "pod-b", "router"] {
            let ns = NetNs::create(&lab.name(place)).expect("root, to make network namespaces");
            run_in(&ns, forward).unwrap();
            lab.ip(place, "link set lo up");
        }
        for side in [A, B] {
            let (n, host, pod) = (side.number(), side.name(), format!("pod-{}", side.name()));
            let (to_router, to_pod) = (lab.name("router"), lab.name(&pod));
            lab.ip(
                host,
                &format!(
                    "link add up0 type veth peer name to-{host} netns {to_router}
                     addr add 192.0.{n}.1/24 dev up0
                     addr add 2001:db8:{n}::1/64 dev up0 nodad
                     link set up0 up
                     link add pod0 type veth peer name eth0 netns {to_pod}
                     addr add 10.42.{n}.1/24 dev pod0
                     addr add fd00:{n}::1/64 dev pod0 nodad
                     link set pod0 up"
                ),
            );
            lab.ip(
                "router",
                &format!(
                    "addr add 192.0.{n}.254/24 dev to-{host}
                     addr add 2001:db8:{n}::fe/64 dev to-{host} nodad
                     link set to-{host} up"
                ),
            );
            lab.ip(
                host,
                &format!("route add default via 192.0.{n}.254\nroute add default via 2001:db8:{n}::fe"),
            );
            lab.ip(
                &pod,
                &format!(
                    "addr add 10.42.{n}.2/24 dev eth0
                     addr add fd00:{n}::2/64 dev eth0 nodad
                     link set eth0 up
                     route add default via 10.42.{n}.1
                     route add default via fd00:{n}::1"
                ),
            );
        }
        lab
    }

    pub(crate) fn ns(&self, place: &str) -> NetNs {
        NetNs::named(&self.name(place)).unwrap()
    }

    /// Runs lines of `ip` somewhere.
    pub(crate) fn ip(&self, place: &str, lines: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name(place), "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("iproute2");
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{place}: {lines}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs code on a host, in a pod or on the router.
    pub(crate) fn at<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        run_in(&self.ns(place), work).unwrap()
    }

    pub(crate) fn on<T: Send>(&self, host: Side, work: impl FnOnce() -> T + Send) -> T {
        self.at(host.name(), work)
    }

    pub(crate) fn in_pod<T: Send>(&self, pod: Side, work: impl FnOnce() -> T + Send) -> T {
        self.at(&format!("pod-{}", pod.name()), work)
    }

    /// What a host knows of the other.
    pub(crate) fn table(&self, me: Side) -> PeerTable {
        let other = me.other();
        let by = Some(match self.outer {
            Outer::V4 => SocketAddr::from((other.host_v4(), PORT)),
            Outer::V6 => SocketAddr::from((other.host_v6(), PORT)),
        });
        let addresses = [other.host_v4().into(), other.host_v6().into()].into();
        PeerTable {
            own: me.subnet(),
            networks: ["10.42.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()].into(),
            peers: [(other.subnet(), PeerEnd { v4_by: by, v6_by: by, addresses })].into(),
            anti_spoofing: true,
            extra_sources: ["203.0.113.0/24".parse().unwrap()].into(),
        }
    }

    /// Opens a host's TUN.
    pub(crate) fn tun(&self, host: Side, framing: Framing) -> Tun {
        self.on(host, || {
            Tun::open(&"tun0".parse().unwrap(), framing).expect("CAP_NET_ADMIN and /dev/net/tun")
        })
    }

    /// Gives a host's TUN what the daemon would: MTU, addresses, routes.
    pub(crate) fn configure_tun(&self, host: Side) {
        let n = host.number();
        let mtu = match self.outer {
            Outer::V4 => MTU_OVER_V4,
            Outer::V6 => MTU_OVER_V6,
        };
        self.ip(
            host.name(),
            &format!(
                "link set tun0 mtu {mtu} up
                 addr replace 10.42.{n}.0/32 dev tun0
                 addr replace fd00:{n}::/128 dev tun0 nodad
                 route replace 10.42.0.0/16 dev tun0
                 route replace fd00::/16 dev tun0"
            ),
        );
    }

    /// Starts a host's tunnel on the TUN that is there, or a new one.
    pub(crate) fn start(&self, host: Side) -> Tunnel {
        let tun = self.tun(host, Framing::Vnet);
        let options =
            TunnelOptions { tun, port: PORT, local_v4: Some(host.host_v4()), local_v6: Some(host.host_v6()) };
        self.on(host, || Tunnel::start(options, &self.table(host)).unwrap())
    }

    /// Both tunnels, working.
    pub(crate) fn start_both(&self) -> (Tunnel, Tunnel) {
        let pair = (self.start(A), self.start(B));
        self.configure_tun(A);
        self.configure_tun(B);
        pair
    }

    /// Takes segmentation, receive offload and checksums away from every link but the TUNs.
    pub(crate) fn no_offloads(&self) {
        let links = [
            ("a", "up0"),
            ("a", "pod0"),
            ("b", "up0"),
            ("b", "pod0"),
            ("router", "to-a"),
            ("router", "to-b"),
            ("pod-a", "eth0"),
            ("pod-b", "eth0"),
        ];
        for (place, link) in links {
            let off = "tso off gso off gro off tx off rx off tx-udp-segmentation off".split(' ');
            let mut command = Command::new("ethtool");
            command.args(["-K", link]).args(off).in_netns(&self.ns(place));
            let output = command.output().expect("ethtool");
            assert!(output.status.success(), "{place}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for place in ["a", "b", "pod-a", "pod-b", "router"] {
            let _ = NetNs::delete(&self.name(place));
        }
    }
}

/// Waits for a condition, and says what was waited for if it does not come.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

fn forward() {
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/{setting}"), "1").unwrap();
    }
}
