//! Established connections are nobody's business: whatever becomes of their service, they go on.

use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::traffic::Probe;
use weft_lab::{LabError, within};

use crate::scene::{Case, SOON};
use crate::stories;

stories![Each:
    connections_outlive_their_endpoint_and_service,
    segments_out_of_window_break_nothing,
    half_closed_connections_are_kept,
];

const BEAT: Duration = Duration::from_millis(10);

fn goes_on(talk: &Probe) {
    let before = talk.so_far().received;
    within(SOON, || {
        let now = talk.so_far();
        if now.received > before + 10 && now.broken.is_none() { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

/// Not ready, dropped by policy, refused, without its node port, deleted: only new connections notice.
fn connections_outlive_their_endpoint_and_service(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    let slice = |places: &[&str]| case.slice(0, &case.endpoints(places));
    case.declare(&[case.node_port_service(0, json!({})), slice(&["birch/one"])])?;
    let paths = [
        ("ash/two", case.web(0)),
        ("cedar", case.web(0)),
        ("outside", case.at("ash", 0)),
        ("birch/one", case.web(0)),
    ];
    let talks: Result<Vec<Probe>, LabError> =
        paths.iter().map(|(from, to)| Ok(case.scene.place(from).converse_with(*to, BEAT)?.1)).collect();
    let talks = talks?;
    let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    let steps: [&[Value]; 4] = [
        &[case.node_port_service(0, local), slice(&["birch/two"])],
        &[case.node_port_service(0, json!({})), slice(&[])],
        &[case.service(0, json!({}))],
        &[slice(&["birch/two"])],
    ];
    for step in steps {
        case.declare(step)?;
        talks.iter().for_each(goes_on);
    }
    case.delete(&[case.service(0, json!({})), slice(&[])])?;
    talks.iter().for_each(goes_on);
    talks.into_iter().try_for_each(|talk| talk.stop_without_loss().map(drop))
}

/// INVALID: conntrack does not translate the answer that it finds out of place. If that reached the client,
/// from an address it does not know, the client's reset would end the server's good connection.
fn segments_out_of_window_break_nothing(case: &Case) -> Result<(), LabError> {
    let _up = case.serve(0, &["birch/one"])?;
    case.declare(&[case.service(0, json!({})), case.slice(0, &case.endpoints(&["birch/one"]))])?;
    let from = case.scene.place("ash/two");
    let (_, talk) = from.converse_with(SocketAddr::new(case.ip(0), 80), BEAT)?;
    goes_on(&talk);
    // On the server's host, behind its own connection tracking.
    let birch = case.scene.place("birch");
    let table = format!("table inet story-{}", case.number);
    let family = if case.v6 { "ip6" } else { "ip" };
    let rule = format!("{family} saddr {} tcp sport {}", case.address("birch/one"), case.port(0));
    let script = format!(
        "{table} {{ counter bent {{}}; chain c {{ type filter hook postrouting priority 300; \
         {rule} tcp flags & (syn | rst) == 0 counter name bent tcp sequence set 1; }}; }}"
    );
    birch.run_with_stdin(&["nft", "-f", "-"], script.as_bytes()).ok()?;
    within(SOON, || {
        let bent = birch.run(format!("nft list {table}")).stdout;
        let packets = bent.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        if packets >= Some(3_u32) { Ok(()) } else { Err(bent) }
    });
    birch.run(format!("nft delete {table}")).ok()?;
    goes_on(&talk);
    talk.stop_without_loss().map(drop)
}

/// CLOSE_WAIT: a client that has said all may wait for its answer for an hour, not for the minute that the
/// kernel would remember the connection.
fn half_closed_connections_are_kept(case: &Case) -> Result<(), LabError> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, case.port(0)));
    // Whoever answers takes its time: nobody accepts.
    let listening = case.scene.place("birch/one").within(|| TcpListener::bind(any))?;
    let io = |source| LabError::Io { what: format!("listen at {any}"), source };
    let _listening = listening.map_err(io)?;
    case.declare(&[case.service(0, json!({})), case.slice(0, &case.endpoints(&["birch/one"]))])?;
    let stream = case.scene.place("ash/two").tcp_connect(case.web(0))?;
    stream.shutdown(Shutdown::Write).map_err(|source| LabError::Io { what: "shut down".into(), source })?;
    let family = if case.v6 { "ipv6" } else { "ipv4" };
    within(SOON, || {
        let listed =
            case.scene.place("ash").run(format!("conntrack -L -f {family} -p tcp -d {}", case.ip(0)));
        let words: Vec<&str> = listed.stdout.split_whitespace().collect();
        let seconds = words.get(2).and_then(|word| word.parse().ok()).unwrap_or(0);
        let kept = words.get(3) == Some(&"CLOSE_WAIT") && (3000..=3600).contains(&seconds);
        if kept { Ok(()) } else { Err(format!("{listed:?}")) }
    });
    Ok(())
}
