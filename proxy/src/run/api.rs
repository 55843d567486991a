//! What the daemon answers on its socket, beside health and metrics.

use std::future::ready;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use weft_daemon::http::{Request, Response, Router, StatusCode};
use weft_daemon::log::chain;

use super::engine::Ask;
use super::numbers::Numbers;
use super::programmed::{self, Programmed};
use crate::source::Revisions;

/// The longest that a request may wait, below the server's own limit.
const LONGEST_WAIT: Duration = Duration::from_secs(290);
/// How long a request waits if it does not say.
const WAIT: Duration = Duration::from_secs(30);

/// - `GET /programmed?services=REV&slices=REV&timeout=SECONDS`: answers when the kernel holds it;
/// - `GET /diff`: what the kernel lacks or has too much, by a fresh look;
/// - `GET /latency`: exact times for measurements.
pub(super) fn router(
    known: watch::Receiver<Programmed>,
    asks: mpsc::Sender<Ask>,
    numbers: Numbers,
) -> Router {
    let programmed = move |request: Request| {
        let known = known.clone();
        async move {
            match question(&request) {
                Ok((asked, patience)) => Response::json(&programmed::wait(known, asked, patience).await),
                Err(line) => Response::error(StatusCode::BAD_REQUEST, line),
            }
        }
    };
    let diff = move |_| {
        let asks = asks.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            let ask: Ask = Box::new(move |backend| {
                // Who asked may have gone.
                let _ = answer.send(backend.differences());
            });
            if asks.send(ask).await.is_err() {
                return Response::error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
            }
            match answered.await {
                Ok(Ok(lines)) => Response::json(&lines),
                Ok(Err(error)) => Response::error(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)),
                Err(_) => Response::error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
            }
        }
    };
    Router::new()
        .get("/programmed", programmed)
        .get("/diff", diff)
        .get("/latency", move |_| ready(Response::json(&numbers.latency())))
}

fn question(request: &Request) -> Result<(Revisions, Duration), String> {
    let number = |name: &str| {
        let text = request.query.get(name).filter(|text| !text.is_empty());
        text.map(|text| text.parse::<u64>().map_err(|_| format!("{name}: `{text}` is no whole number")))
            .transpose()
    };
    let asked = Revisions { services: number("services")?, slices: number("slices")? };
    let patience = number("timeout")?.map_or(WAIT, Duration::from_secs);
    Ok((asked, patience.min(LONGEST_WAIT)))
}
