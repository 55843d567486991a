//! The answering end of the doctor's tests: a UDP socket on this host's own tunnel address.
//!
//! It answers peers' tunnel addresses alone, each question with one answer that is never longer, and
//! tells nothing but the time and the version.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::echo::{ANSWER_LEN, Answer, PORT, Question};
use crate::model::{Family, Subnet};
use crate::plan::{Desired, Transport};

/// Where to answer, and whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// This host's tunnel addresses: its subnet's first address of each family.
    pub own: BTreeSet<IpAddr>,
    /// The peers' tunnel addresses.
    pub peers: BTreeSet<IpAddr>,
}

impl Audience {
    /// Of a plan: our addresses on tunnels, and those of the peers whose way is a tunnel.
    pub fn of(desired: &Desired) -> Self {
        let tunnelled = desired.ways.iter().filter(|(_, way)| way.transport != Transport::Direct);
        let first = |subnet: &Subnet, family: Family| subnet.of(family).map(|network| network.network());
        Self {
            own: desired.kernel.addresses.iter().map(|address| address.network.ip()).collect(),
            peers: tunnelled.filter_map(|((subnet, family), _)| first(subnet, *family)).collect(),
        }
    }
}

/// Answers the audience of whatever is planned, until nobody plans any more.
pub async fn follow(mut planned: watch::Receiver<Option<Arc<Desired>>>) {
    let (tell, audience) = watch::channel(Audience::default());
    let answering = run(audience);
    let telling = async move {
        loop {
            let now = planned.borrow_and_update().as_deref().map(Audience::of).unwrap_or_default();
            tell.send_if_modified(|before| {
                let news = *before != now;
                *before = now;
                news
            });
            if planned.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::join!(answering, telling);
}

/// Answers until the sender is gone. An address that cannot be bound is told in the log and tried
/// again when the audience changes: nothing but the doctor needs this.
pub async fn run(mut audience: watch::Receiver<Audience>) {
    let mut sockets: Vec<(IpAddr, UdpSocket)> = Vec::new();
    loop {
        let now = audience.borrow_and_update().clone();
        sockets.retain(|(address, _)| now.own.contains(address));
        for address in &now.own {
            if sockets.iter().all(|(bound, _)| bound != address) {
                match bind(*address) {
                    Ok(socket) => sockets.push((*address, socket)),
                    Err(error) => tracing::debug!(%address, %error, "no answers to `weft doctor` here"),
                }
            }
        }
        let [first, second] = [sockets.first(), sockets.get(1)];
        tokio::select! {
            changed = audience.changed() => if changed.is_err() { return },
            () = serve(first, &now.peers) => {}
            () = serve(second, &now.peers) => {}
        }
    }
}

/// Free to bind while the tunnel's link is being healed; `only_v6`, so that it never hears IPv4.
fn bind(address: IpAddr) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    match address {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&SocketAddr::new(address, PORT).into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers for ever; never, without a socket.
async fn serve(socket: Option<&(IpAddr, UdpSocket)>, peers: &BTreeSet<IpAddr>) {
    let Some((_, socket)) = socket else { return std::future::pending().await };
    let mut buffer = vec![0; 65_535];
    loop {
        // An ICMP error about an earlier answer comes back here.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let question = buffer.get(..length).and_then(Question::decode);
        let Some(question) = question.filter(|_| peers.contains(&from.ip())) else { continue };
        let answer = Answer {
            nonce: question.nonce,
            number: question.number,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            unix_ms: unix_ms(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let bytes = answer.encode();
        debug_assert!(bytes.len() == ANSWER_LEN && bytes.len() <= length);
        // Not waited for: who asks may ask again.
        let _ = socket.try_send_to(&bytes, from);
    }
}

pub(super) fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_kernel::netns::{NetNs, run_in};

    use super::*;

    #[test]
    fn the_audience_is_who_is_reached_by_a_tunnel() {
        use crate::fixtures::{V4, model, public_v4, vxlan, weft_peer, with_peers};
        let near = crate::fixtures::weft_peer(2, &crate::config::Backend::HostGw, V4, V4);
        let desired = crate::plan::plan(&with_peers(
            model(crate::fixtures::direct(), V4, V4),
            [weft_peer(1, &vxlan(), V4, V4), near],
        ));
        let audience = Audience::of(&desired);
        let own = crate::fixtures::subnet(7, V4).networks().map(|network| network.network());
        assert_eq!(audience.own, own.collect());
        let tunnelled = desired.ways.iter().filter(|(_, way)| way.transport != Transport::Direct).count();
        assert_eq!(audience.peers.len(), tunnelled);
        assert!(!audience.peers.contains(&IpAddr::V4(public_v4(2))));
    }

    /// Loopback addresses stand for tunnel addresses: all of 127/8 is local.
    #[test]
    fn it_answers_peers_alone_and_follows_its_address() {
        let ns = NetNs::anonymous().unwrap();
        run_in(&ns, || {
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(story());
        })
        .unwrap();
    }

    async fn story() {
        let audience = |own: &str| Audience {
            own: [own.parse().unwrap()].into(),
            peers: ["127.0.0.7".parse().unwrap()].into(),
        };
        let (tell, told) = watch::channel(audience("127.0.0.1"));
        let running = tokio::spawn(run(told));
        let peer = UdpSocket::bind("127.0.0.7:0").await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.9:0").await.unwrap();
        let question = Question { nonce: 5, number: 3 };
        for own in ["127.0.0.1", "127.0.0.2"] {
            tell.send_replace(audience(own));
            let to = (own.parse::<IpAddr>().unwrap(), PORT);
            let answer = ask(&peer, question, to).await;
            assert_eq!((answer.nonce, answer.number, answer.length), (5, 3, 60));
            assert_eq!(answer.version, env!("CARGO_PKG_VERSION"));
            // What comes from a stranger before a peer's question, and is no question, is answered
            // by nothing: the peer's answer comes after, and nothing has come to the stranger.
            stranger.send_to(&question.encode(60), to).await.unwrap();
            peer.send_to(b"weft?1", to).await.unwrap();
            ask(&peer, question, to).await;
            assert!(stranger.try_recv_from(&mut [0; 64]).is_err());
        }
        drop(tell);
        tokio::time::timeout(Duration::from_secs(10), running).await.expect("ends").unwrap();
    }

    /// Asks until there is an answer: the responder may not be bound yet.
    async fn ask(peer: &UdpSocket, question: Question, to: (IpAddr, u16)) -> Answer {
        for _ in 0..100 {
            peer.send_to(&question.encode(60), to).await.unwrap();
            let mut buffer = [0; 64];
            let heard = tokio::time::timeout(Duration::from_millis(200), peer.recv_from(&mut buffer));
            if let Ok(Ok((length, _))) = heard.await {
                assert_eq!(length, ANSWER_LEN);
                return Answer::decode(&buffer[..length]).unwrap();
            }
        }
        panic!("no answer from {to:?}");
    }
}
