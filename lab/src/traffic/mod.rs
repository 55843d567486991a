//! Traffic between places: is it there, is it whole, was it ever interrupted.
//!
//! Sockets are opened on a thread inside the namespace and used from anywhere: a socket stays where
//! it was made. The far end of everything is an [`Endpoint`]: a place and one of its addresses.

mod echo;
mod load;
mod named;
mod probe;
mod service;
mod transfer;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

pub use load::{Load, LoadReport};
pub use named::{Answer, Answers, Protocol, Server};
pub use probe::{Probe, Report};
pub use service::Service;
pub use transfer::Transfer;

use crate::http::{self, Response};
use crate::{Host, LabError, Place, Pod};

/// How long a connection may take to be made; three SYNs go out in that time.
const CONNECT: Duration = Duration::from_secs(5);

/// The far end of traffic: a place, and the address it is called by.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub place: Place,
    /// The address it is called by.
    pub address: IpAddr,
}

impl Endpoint {
    /// A place, called by this address.
    pub fn new(place: &Place, address: impl Into<IpAddr>) -> Self {
        Self { place: place.clone(), address: address.into() }
    }
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self::new(pod, pod.ip())
    }
}

impl From<&Host> for Endpoint {
    fn from(host: &Host) -> Self {
        Self::new(host, host.address())
    }
}

impl From<&Endpoint> for Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.clone()
    }
}

impl Place {
    /// One ICMP echo, answered within a second.
    pub fn reaches(&self, target: impl Into<Endpoint>) -> Result<(), LabError> {
        echo::once(self, target.into().address, Duration::from_secs(1)).map(drop)
    }

    /// The time of one ICMP echo, answered within a second.
    pub fn round_trip(&self, address: impl Into<IpAddr>) -> Result<Duration, LabError> {
        echo::once(self, address.into(), Duration::from_secs(1))
    }

    /// Pings without end, one echo each `interval`.
    pub fn pinger(&self, target: impl Into<Endpoint>, interval: Duration) -> Result<Probe, LabError> {
        let address = target.into().address;
        Probe::start(format!("ping {} -> {address}", self.name()), echo::open(self, address)?, interval)
    }

    /// A UDP datagram each `interval`, echoed by the far end.
    pub fn udp_probe(&self, target: impl Into<Endpoint>, interval: Duration) -> Result<Probe, LabError> {
        let target = target.into();
        let service = target.place.udp_echo()?;
        let socket = self.udp_connect(service.at(target.address))?;
        let what = format!("udp {} -> {}", self.name(), target.address);
        Ok(Probe::start(what, echo::Udp(socket), interval)?.with(service))
    }

    /// A TCP connection that says something each `interval` and is echoed by the far end.
    pub fn converse(&self, target: impl Into<Endpoint>, interval: Duration) -> Result<Probe, LabError> {
        let target = target.into();
        let service = target.place.tcp_echo()?;
        let stream = self.tcp_connect(service.at(target.address))?;
        let what = format!("tcp {} -> {}", self.name(), target.address);
        Ok(Probe::start(what, echo::Tcp::over(stream).map_err(LabError::io("converse"))?, interval)?
            .with(service))
    }

    /// As [`Place::converse`] with a [`Place::server`] that runs, by whatever address it is reached. Also
    /// tells who answered.
    pub fn converse_with(&self, to: SocketAddr, interval: Duration) -> Result<(String, Probe), LabError> {
        let what = format!("tcp {} -> {to}", self.name());
        let ((server, _), stream) =
            self.within(|| named::greeted(to, CONNECT))?.map_err(LabError::io(format!("connect {what}")))?;
        let echo = echo::Tcp::over(stream).map_err(LabError::io("converse"))?;
        Ok((server, Probe::start(what, echo, interval)?))
    }

    /// GET over HTTP from here.
    pub fn http_get(&self, from: SocketAddr, path: &str) -> Result<Response, LabError> {
        let stream = self.tcp_connect(from)?;
        stream
            .set_read_timeout(Some(CONNECT))
            .and_then(|()| http::get(stream, path))
            .map_err(LabError::io(format!("get {path} from {from}")))
    }

    /// Sends so many bytes over one TCP connection; both ends hash them, and the hashes are equal.
    pub fn sends(&self, target: impl Into<Endpoint>, bytes: u64) -> Result<Transfer, LabError> {
        transfer::send(self, &target.into(), bytes)
    }

    /// Echoes every TCP connection until dropped, on all addresses.
    pub fn tcp_echo(&self) -> Result<Service, LabError> {
        Service::tcp(self, service::echo)
    }

    /// Echoes every UDP datagram until dropped, on all addresses.
    pub fn udp_echo(&self) -> Result<Service, LabError> {
        Service::udp(self)
    }

    /// Answers every TCP connection with the address it came from, until dropped: what a service
    /// behind a masquerade sees.
    pub fn tcp_whoami(&self) -> Result<Service, LabError> {
        Service::tcp(self, service::whoami)
    }

    /// Asks a [`Place::tcp_whoami`] which address it sees us by.
    pub fn seen_as(&self, whoami: SocketAddr) -> Result<IpAddr, LabError> {
        let mut stream = self.tcp_connect(whoami)?;
        let mut answer = String::new();
        let read = stream
            .set_read_timeout(Some(CONNECT))
            .and_then(|()| std::io::Read::read_to_string(&mut stream, &mut answer));
        read.map_err(LabError::io(format!("ask {whoami} who we are")))?;
        let address = answer.parse::<IpAddr>();
        address.map_err(|_| LabError::Traffic { what: format!("{whoami} answered {answer:?}") })
    }

    /// A TCP connection that begins here.
    pub fn tcp_connect(&self, to: SocketAddr) -> Result<TcpStream, LabError> {
        let what = format!("connect from {} to {to}", self.name());
        self.within(|| TcpStream::connect_timeout(&to, CONNECT))?.map_err(LabError::io(what))
    }

    /// A UDP socket here that only talks with `to`.
    pub fn udp_connect(&self, to: SocketAddr) -> Result<UdpSocket, LabError> {
        let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let open = || {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to).map(|()| socket)
        };
        let what = format!("open a UDP socket from {} to {to}", self.name());
        self.within(open)?.map_err(LabError::io(what))
    }
}
