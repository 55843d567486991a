//! What the daemon answers on its socket, beside health and metrics: `weft peers` and `weft diff`.

use std::sync::Arc;

use tokio::sync::watch;
use weft_daemon::http::{Response, Router, StatusCode};
use weft_kernel::net::{Net as _, Rtnetlink};

use super::status::{self, Status, Told};
use crate::firewall;
use crate::plan::Desired;
use crate::probe::Outcomes;

/// `GET /peers`: the last pass, told, with what was carried until now. `GET /diff`: what the kernel
/// lacks or has too much, by a fresh look.
pub(super) fn router(
    told: watch::Receiver<Option<Arc<Told>>>,
    outcomes: watch::Receiver<Outcomes>,
    planned: watch::Receiver<Option<Arc<Desired>>>,
    net: Rtnetlink,
    network: &str,
) -> Router {
    let table = firewall::table_key(network).ok();
    let peers = move |_| {
        let told = told.borrow().clone();
        let status = told.map_or_else(Status::default, |told| told.status(&outcomes.borrow()));
        let table = table.clone();
        async move {
            // What was carried changes with every packet, so it is read when somebody asks.
            let carried = tokio::task::spawn_blocking(move || super::traffic(table.as_ref())).await;
            Response::json(&status.with_traffic(&carried.unwrap_or_default()))
        }
    };
    let diff = move |_| {
        let (desired, net) = (planned.borrow().clone(), net.clone());
        async move {
            let Some(desired) = desired else {
                return Response::error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "nothing is planned yet: see `/readyz`",
                );
            };
            match net.observe().await {
                Ok(observed) => Response::json(&status::drift(&desired.kernel, &observed, &desired.scope)),
                Err(error) => {
                    Response::error(StatusCode::INTERNAL_SERVER_ERROR, weft_daemon::log::chain(&error))
                }
            }
        }
    };
    Router::new().get("/peers", peers).get("/diff", diff)
}
