//! What people ask the daemon: what is programmed, and where a connection goes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tokio::sync::{mpsc, oneshot};
use weft_daemon::http::{Request, Response, Router, StatusCode};
use weft_daemon::log::chain;

use super::engine::Ask;
use super::world::Shared;
use crate::backend::{Backend, BackendError};
use crate::explain::packet::{Object, Reached};
use crate::explain::{Explanation, explain, overview};
use crate::model::{Protocol, ServiceName};
use crate::simulate::Packet;

/// - `GET /services?service=NAMESPACE/NAME`: what is programmed, for all services or for one;
/// - `GET /explain?source=IP&destination=IP:PORT&protocol=tcp&input=LINK`: where a connection goes, why,
///   and what in the kernel does it.
pub(super) fn router(world: Shared, asks: mpsc::Sender<Ask>, mode: &'static str) -> Router {
    let of = world.clone();
    let services = move |request: Request| {
        let (world, wanted) = (of.clone(), request.query.get("service").cloned());
        async move {
            let found = tokio::task::spawn_blocking(move || {
                let world = world.read();
                let picks = |name: &ServiceName| wanted.as_ref().is_none_or(|it| *it == name.to_string());
                Response::json(&overview(&world.model, &world.claims, &world.host, mode, picks))
            });
            found.await.unwrap_or_else(|_| stopping())
        }
    };
    let explain = move |request: Request| {
        let (world, asks) = (world.clone(), asks.clone());
        async move {
            match packet(&request.query) {
                Ok(packet) => answer(world, asks, packet).await,
                Err(line) => Response::error(StatusCode::BAD_REQUEST, line),
            }
        }
    };
    Router::new().get("/services", services).get("/explain", explain)
}

fn stopping() -> Response {
    Response::error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping")
}

/// The simulator walks through all services, so it does not do that in the loop; the loop is only asked
/// for what the kernel has.
async fn answer(world: Shared, asks: mpsc::Sender<Ask>, packet: Packet) -> Response {
    let (client, kept) = (packet.source, BTreeMap::new());
    let Some((mut explanation, reached)) = simulated(world.clone(), packet.clone(), kept).await else {
        return stopping();
    };
    if let Some(reached) = reached {
        let port = reached.port.clone();
        match kernel(asks, reached, client).await {
            None => return stopping(),
            Some(Err(error)) => explanation.unseen = Some(chain(&error)),
            Some(Ok((objects, kept))) => {
                if let Some(endpoint) = kept {
                    let kept = BTreeMap::from([(port.to_string(), endpoint)]);
                    let Some((again, _)) = simulated(world, packet, kept).await else { return stopping() };
                    explanation = again;
                }
                explanation.objects = objects;
            }
        }
    }
    Response::json(&explanation)
}

/// `kept`: by service port, the endpoint that the client keeps.
async fn simulated(
    world: Shared,
    packet: Packet,
    kept: BTreeMap<String, SocketAddr>,
) -> Option<(Explanation, Option<Reached>)> {
    let simulate = move || {
        let world = world.read();
        explain(&world.model, &world.host, &packet, |port| kept.get(&port.to_string()).copied())
    };
    tokio::task::spawn_blocking(simulate).await.ok()
}

type Seen = (Vec<Object>, Option<SocketAddr>);

/// None if the daemon is stopping.
async fn kernel(
    asks: mpsc::Sender<Ask>,
    reached: Reached,
    client: IpAddr,
) -> Option<Result<Seen, BackendError>> {
    let look = move |backend: &mut dyn Backend| {
        let objects = backend.objects(&reached.port.service, &reached.frontend)?;
        Ok((objects, backend.kept(&reached.port, client)?))
    };
    let (answer, answered) = oneshot::channel();
    let ask: Ask = Box::new(move |backend| {
        // Who asked may have gone.
        let _ = answer.send(look(backend));
    });
    asks.send(ask).await.ok()?;
    answered.await.ok()
}

fn packet(query: &BTreeMap<String, String>) -> Result<Packet, String> {
    let of = |name: &str| query.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let needed = |name: &str| of(name).ok_or_else(|| format!("{name} is missing"));
    let source = needed("source")?;
    let destination = needed("destination")?;
    let protocol = of("protocol").unwrap_or("tcp");
    Ok(Packet {
        source: source.parse().map_err(|_| format!("source: `{source}` is no IP address"))?,
        destination: destination
            .parse()
            .map_err(|_| format!("destination: `{destination}` is no IP:PORT"))?,
        protocol: Protocol::ALL
            .into_iter()
            .find(|it| it.to_string() == protocol)
            .ok_or_else(|| format!("protocol: `{protocol}` is none of tcp, udp, sctp"))?,
        input: of("input").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_packet() {
        let asked = |pairs: &[(&str, &str)]| {
            packet(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        let (source, destination) = (("source", "10.1.0.5"), ("destination", "10.96.0.1:80"));
        let expected = Packet {
            source: "10.1.0.5".parse().unwrap(),
            destination: "10.96.0.1:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            input: None,
        };
        assert_eq!(asked(&[source, destination]), Ok(expected.clone()));
        let udp = Packet { protocol: Protocol::Udp, input: Some("cni0".into()), ..expected };
        assert_eq!(asked(&[source, destination, ("protocol", "udp"), ("input", "cni0")]), Ok(udp));
        for (pairs, wrong) in [
            (&[][..], "source is missing"),
            (&[source], "destination is missing"),
            (&[source, ("destination", "10.96.0.1")], "destination: `10.96.0.1` is no IP:PORT"),
            (&[("source", "x"), destination], "source: `x` is no IP address"),
            (&[source, destination, ("protocol", "icmp")], "protocol: `icmp` is none of tcp, udp, sctp"),
        ] {
            assert_eq!(asked(pairs), Err(wrong.to_owned()));
        }
    }
}
