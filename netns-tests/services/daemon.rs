//! What the daemon itself answers, where kube-proxy does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;
use weft_lab::traffic::{Answer, Protocol};
use weft_lab::{LabError, within};

use crate::scene::{Case, SOON};
use crate::stories;

stories![Both: probes_and_scrapers_are_answered];

/// Probes from anywhere, scrapers from the host itself.
fn probes_and_scrapers_are_answered(case: &Case) -> Result<(), LabError> {
    let [outside, ash] = ["outside", "ash"].map(|place| case.scene.place(place));
    let probed = SocketAddr::new(case.address("ash"), 10_256);
    for path in ["/healthz", "/livez"] {
        // Between two changes that it has not taken in yet it is healthy, too.
        within(SOON, || {
            let answer = outside.http_get(probed, path).map_err(|error| error.chain())?;
            let body: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
            let told =
                answer.status == 200 && body["lastUpdated"].is_string() && body["currentTime"].is_string();
            if told { Ok(()) } else { Err(format!("{path}: {answer:?}")) }
        });
    }
    let scraped = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
    let metrics = ash.http_get(scraped, "/metrics")?;
    assert_eq!(metrics.status, 200);
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_network_programming_duration_seconds_count",
    ] {
        assert!(metrics.body.contains(name), "{name}: {}", metrics.body);
    }
    let from_outside = SocketAddr::new(case.address("ash"), scraped.port());
    assert_eq!(outside.asks(from_outside, Protocol::Tcp, SOON), Answer::Refused);
    Ok(())
}
