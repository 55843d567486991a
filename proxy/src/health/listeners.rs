//! Sockets that are served while they are wanted. One that cannot be opened is said once, counted and
//! tried again; the others go on meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weft_daemon::CancellationToken;
use weft_daemon::http::{Limits, Router, Server, serve_on};
use weft_daemon::metrics::Gauge;

/// The first try again comes after this long, each further one after twice as long as the last.
const RETRY: Duration = Duration::from_secs(1);
/// But never less often than this.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The sockets that are served, and those that should be.
#[derive(Debug)]
pub struct Listeners {
    served: BTreeMap<SocketAddr, Socketed>,
    failing: Gauge,
    shutdown: CancellationToken,
}

/// What is at an address.
#[derive(Debug)]
struct Socketed {
    /// Who is served there: another one takes another socket.
    whose: String,
    router: Router,
    state: State,
}

#[derive(Debug)]
enum State {
    Open { stop: CancellationToken, _server: Server },
    Failing { tries: u32, next: Instant },
}

impl Listeners {
    /// None yet. The gauge has how many cannot be opened. All end with `shutdown`.
    pub fn new(failing: Gauge, shutdown: CancellationToken) -> Self {
        Self { served: BTreeMap::new(), failing, shutdown }
    }

    /// From now on these are served, each address for somebody (`shop/web`); what is served already stays
    /// as it is. What is not wanted any more is closed.
    pub fn want(&mut self, mut wanted: BTreeMap<SocketAddr, (String, Router)>, now: Instant) {
        self.served.retain(|address, held| {
            let stays = wanted.get(address).is_some_and(|(whose, _)| *whose == held.whose);
            if stays {
                wanted.remove(address);
            } else if let State::Open { stop, .. } = &held.state {
                stop.cancel();
            }
            stays
        });
        for (address, (whose, router)) in wanted {
            let state = State::Failing { tries: 0, next: now };
            self.served.insert(address, Socketed { whose, router, state });
        }
        self.retry(now);
    }

    /// When [`Listeners::retry`] is due, if at all.
    pub fn due(&self) -> Option<Instant> {
        let waits = |held: &Socketed| match held.state {
            State::Open { .. } => None,
            State::Failing { next, .. } => Some(next),
        };
        self.served.values().filter_map(waits).min()
    }

    /// Opens what is due.
    pub fn retry(&mut self, now: Instant) {
        for (address, held) in &mut self.served {
            let State::Failing { tries, next } = held.state else { continue };
            if next > now {
                continue;
            }
            let stop = self.shutdown.child_token();
            let opened = listen(*address).and_then(|listener| {
                serve_on(listener, held.router.clone(), Limits::default(), stop.clone())
            });
            held.state = match opened {
                Ok(_server) => {
                    tracing::info!(%address, whose = held.whose, "serving");
                    State::Open { stop, _server }
                }
                Err(error) => {
                    if tries == 0 {
                        tracing::warn!(%address, whose = held.whose, %error, "cannot be served; trying on");
                    }
                    let doubled = RETRY.saturating_mul(2u32.saturating_pow(tries));
                    State::Failing { tries: tries.saturating_add(1), next: now + doubled.min(LONGEST_RETRY) }
                }
            };
        }
        let failing = |held: &&Socketed| matches!(held.state, State::Failing { .. });
        self.failing.set_count(self.served.values().filter(failing).count());
    }
}

/// IPv6 sockets take IPv6 alone: each family has its own answer.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The last daemon's connections may not have ended.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use weft_daemon::http::Response;
    use weft_daemon::metrics::Metrics;

    use super::*;

    fn ask(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
    }

    async fn asked(address: SocketAddr) -> io::Result<String> {
        tokio::task::spawn_blocking(move || ask(address)).await.unwrap()
    }

    fn says(whose: &str) -> (String, Router) {
        let text = whose.to_owned();
        (whose.to_owned(), Router::new().rest(move |_| std::future::ready(Response::text(text.clone()))))
    }

    #[tokio::test]
    async fn sockets_come_and_go_as_they_are_wanted_and_a_taken_one_is_tried_again() {
        // Addresses of this test alone: a port that is taken, and one that was free a moment ago.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = {
            let free = TcpListener::bind("127.0.0.2:0").unwrap();
            (taken.local_addr().unwrap(), free.local_addr().unwrap())
        };
        let gauge = Metrics::new().gauge("weft_test", "");
        let mut listeners = Listeners::new(gauge.clone(), CancellationToken::new());
        let now = Instant::now();
        listeners.want([(first, says("shop/a")), (second, says("shop/b"))].into(), now);
        assert_eq!(gauge.value(), 1.0, "one is taken by somebody else");
        assert_eq!(asked(second).await.unwrap(), "shop/b");
        assert_eq!(listeners.due(), Some(now + RETRY));
        listeners.retry(now + RETRY);
        assert_eq!(listeners.due(), Some(now + 3 * RETRY), "the wait doubles");

        drop(taken);
        listeners.retry(now + 3 * RETRY);
        assert_eq!((gauge.value(), listeners.due()), (0.0, None));
        assert_eq!(asked(first).await.unwrap(), "shop/a");

        listeners.want([(first, says("shop/a"))].into(), now);
        let closed = Instant::now() + Duration::from_secs(30);
        while asked(second).await.is_ok() {
            assert!(Instant::now() < closed, "nobody wants it any more");
        }
        assert_eq!(asked(first).await.unwrap(), "shop/a", "it is still served");
    }

    #[tokio::test]
    async fn each_family_has_its_own_socket() {
        let mut listeners = Listeners::new(Metrics::new().gauge("weft_test", ""), CancellationToken::new());
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (v4, v6) =
            (SocketAddr::new("0.0.0.0".parse().unwrap(), free), SocketAddr::new("::".parse().unwrap(), free));
        listeners.want([(v4, says("v4")), (v6, says("v6"))].into(), Instant::now());
        assert_eq!(listeners.due(), None);
        assert_eq!(asked(SocketAddr::new("127.0.0.1".parse().unwrap(), free)).await.unwrap(), "v4");
        assert_eq!(asked(SocketAddr::new("::1".parse().unwrap(), free)).await.unwrap(), "v6");
    }
}
