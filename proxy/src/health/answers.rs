//! How health is told: kube-proxy's bodies, headers and status codes. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use weft_daemon::http::{HeaderValue, Response, StatusCode};

use super::pulse::Standing;
use crate::model::ServiceName;

/// The body of `/healthz` and `/livez`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Status,
}

/// Both families are one table here, so both stand the same.
#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4")]
    v4: OfFamily,
    #[serde(rename = "IPv6")]
    v6: OfFamily,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfFamily {
    last_updated: String,
    healthy: bool,
}

/// `/healthz`: 200 if the proxy is well and its node is there to stay. Load balancers ask it.
pub fn healthz(standing: &Standing, now: SystemTime) -> Response {
    whole(standing, standing.healthy && standing.eligible, Some(standing.eligible), now)
}

/// `/livez`: 200 if the proxy is well, whatever becomes of its node.
pub fn livez(standing: &Standing, now: SystemTime) -> Response {
    whole(standing, standing.healthy, None, now)
}

/// A `healthCheckNodePort`: 200 if this host has ready endpoints of the service in the family that was
/// asked by, and the proxy is well.
pub fn service(name: &ServiceName, local_endpoints: usize, healthy: bool) -> Response {
    let ServiceName { namespace, name } = name;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        quoted(namespace),
        quoted(name),
    );
    answer(body, local_endpoints > 0 && healthy)
        .with_header("x-load-balancing-endpoint-weight", local_endpoints.into())
}

fn whole(standing: &Standing, well: bool, node_eligible: Option<bool>, now: SystemTime) -> Response {
    // Of old that was the last run of a loop that ran all the time, so one that is well was just updated.
    let last_updated = if well { Some(now) } else { standing.updated };
    let of_family = OfFamily { last_updated: time(standing.updated), healthy: standing.healthy };
    let body = Body {
        last_updated: time(last_updated),
        current_time: time(Some(now)),
        node_eligible,
        healthy: well,
        status: Status { v4: of_family.clone(), v6: of_family },
    };
    answer(serde_json::to_string(&body).unwrap_or_default(), well)
}

fn answer(body: String, well: bool) -> Response {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Response::of("application/json", body.into())
        .with_header("x-content-type-options", HeaderValue::from_static("nosniff"))
        .with_status(status)
}

/// As Go writes it; never is its zero.
fn time(at: Option<SystemTime>) -> String {
    let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let stamp = since.and_then(|since| {
        let nanoseconds = i128::try_from(since.as_nanos()).ok()?;
        Timestamp::from_nanosecond(nanoseconds).ok()
    });
    stamp.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |stamp| stamp.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told(response: &Response) -> (u16, String) {
        (response.status.as_u16(), String::from_utf8(response.body.to_vec()).unwrap())
    }

    fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
        let found = response.headers.iter().find(|(header, _)| header.as_str() == name);
        found.map(|(_, value)| value.to_str().unwrap())
    }

    #[test]
    fn the_proxys_health_reads_as_kube_proxys() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 250);
        let status = |healthy: bool| {
            let family = format!(r#"{{"lastUpdated":"2026-11-23T20:26:40.25Z","healthy":{healthy}}}"#);
            format!(r#""status":{{"IPv4":{family},"IPv6":{family}}}"#)
        };
        let (then, now) = (at(1_795_465_600), at(1_795_465_700));
        let (then_text, now_text) = ("2026-11-23T20:26:40.25Z", "2026-11-23T20:28:20.25Z");
        let stands = |healthy, eligible| Standing { healthy, updated: Some(then), eligible };
        let body = |last: &str, eligible: &str, healthy: bool, families: bool| {
            let head = format!(r#""lastUpdated":"{last}","currentTime":"{now_text}"{eligible}"#);
            format!(r#"{{{head},"healthy":{healthy},{}}}"#, status(families))
        };
        let eligible = |eligible: bool| format!(r#","nodeEligible":{eligible}"#);
        let table = [
            (healthz(&stands(true, true), now), 200, body(now_text, &eligible(true), true, true)),
            (healthz(&stands(true, false), now), 503, body(then_text, &eligible(false), false, true)),
            (healthz(&stands(false, true), now), 503, body(then_text, &eligible(true), false, false)),
            (livez(&stands(true, false), now), 200, body(now_text, "", true, true)),
            (livez(&stands(false, true), now), 503, body(then_text, "", false, false)),
        ];
        for (response, status, body) in table {
            assert_eq!(told(&response), (status, body));
            assert_eq!(response.content_type, "application/json");
            assert_eq!(header(&response, "x-content-type-options"), Some("nosniff"));
        }
        let never = Standing { healthy: false, updated: None, eligible: true };
        assert!(told(&livez(&never, now)).1.starts_with(r#"{"lastUpdated":"0001-01-01T00:00:00Z","#));
    }

    #[test]
    fn a_service_is_well_where_it_has_endpoints_and_a_proxy() {
        let name = ServiceName::new("shop", "web");
        let table = [(2, true, 200), (1, true, 200), (0, true, 503), (2, false, 503)];
        for (endpoints, healthy, status) in table {
            let response = service(&name, endpoints, healthy);
            let body = format!(
                "{{\n\t\"service\": {{\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t}},\n\
                 \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
            );
            assert_eq!(told(&response), (status, body));
            let weight = header(&response, "x-load-balancing-endpoint-weight");
            assert_eq!(weight, Some(endpoints.to_string().as_str()));
        }
    }
}
