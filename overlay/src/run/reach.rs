//! By which link the kernel would send to an address: what `ip route get` says.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use weft_kernel::net::{LinkName, Rtnetlink};

/// The link and the source address that the kernel would use; `None` when it has no route there.
/// A connected UDP socket makes the kernel choose without sending anything.
pub(super) fn link_towards(addr: IpAddr) -> Option<(LinkName, Option<IpAddr>)> {
    let any: SocketAddr = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().ok()?;
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((addr, 9)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    let observed = Rtnetlink::open().ok()?.observe_blocking().ok()?;
    let holder = observed.addresses.iter().find(|address| address.network.ip() == source)?;
    Some((holder.link.clone(), Some(source)))
}
