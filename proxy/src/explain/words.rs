//! Overviews and explanations as people read them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::packet::{Candidate, Explanation, OutcomeReport};
use super::service::{FrontendReport, Overview, PathReport, PortReport, ServiceReport};

/// So many endpoints are named, and the rest is counted.
const NAMED: usize = 8;

/// Everything that a host programs: what `weft proxy --dry-run` prints.
pub fn overview(of: &Overview) -> String {
    let Overview { node, mode, local_pods, node_ports, services, .. } = of;
    let places = if node_ports.is_empty() { "nowhere".to_owned() } else { node_ports.join(", ") };
    let mut text = format!("node {node}, mode {mode}\nlocal pods: {local_pods}\nnode ports at: {places}\n");
    for service in services {
        text.push('\n');
        self::service(&mut text, service);
    }
    if services.is_empty() {
        text.push_str("\nno service is declared\n");
    }
    text
}

fn service(text: &mut String, of: &ServiceReport) {
    // Writing to a string cannot fail.
    if let Some(why) = &of.ignored {
        let _ = writeln!(text, "{}: no rules, it {why}", of.service);
    }
    for port in &of.ports {
        self::port(text, port);
    }
    if let Some(port) = of.health_check_port {
        let _ =
            writeln!(text, "{}: load balancers ask for endpoints of this host at port {port}", of.service);
    }
    for contested in &of.contested {
        let _ =
            writeln!(text, "{}: goes without {}, which is {}'s", of.service, contested.at, contested.holder);
    }
}

fn port(text: &mut String, of: &PortReport) {
    let mut how = vec![match of.balance.as_str() {
        "random" => "at random".to_owned(),
        _ => "by a hash of the client's address".to_owned(),
    }];
    how.extend(of.affinity_seconds.map(|seconds| format!("kept for {}", time(seconds))));
    let _ = writeln!(text, "{} {}, {}: {}", of.port, of.protocol, of.family, how.join(", "));
    for frontend in &of.frontends {
        self::frontend(text, frontend);
    }
    if of.frontends.is_empty() {
        let _ = writeln!(text, "  no frontend of its own");
    }
    if !of.cluster.is_empty() {
        let _ = writeln!(text, "  endpoints: {}", endpoints(&of.cluster));
    }
    if !of.local.is_empty() && of.local != of.cluster {
        let _ = writeln!(text, "  endpoints here: {}", endpoints(&of.local));
    }
}

fn frontend(text: &mut String, of: &FrontendReport) {
    let _ = writeln!(text, "  {} ({})", of.at, of.kind);
    if let Some(ranges) = &of.only_from {
        let ranges = if ranges.is_empty() { "nobody".to_owned() } else { ranges.join(", ") };
        let _ = writeln!(text, "    only from {ranges}; others are dropped");
    }
    let who = [("local pods", of.pods), ("this host", of.host), ("others", of.others)];
    let mut groups: Vec<(Vec<&str>, PathReport)> = Vec::new();
    for (who, path) in who {
        match groups.iter_mut().find(|(_, known)| *known == path) {
            Some((names, _)) => names.push(who),
            None => groups.push((vec![who], path)),
        }
    }
    for (names, path) in groups {
        let names = if names.len() == who.len() { "everybody".to_owned() } else { names.join(" and ") };
        let _ = writeln!(text, "    {names}: {}", self::path(path));
    }
}

fn path(of: PathReport) -> String {
    match of {
        PathReport::Rejected => "rejected, because there is no endpoint anywhere".to_owned(),
        PathReport::Dropped => "dropped, because all endpoints are on other hosts".to_owned(),
        PathReport::To { local, endpoints, masquerade } => {
            let here = if local { " of this host" } else { "" };
            let which = match endpoints {
                1 => format!("the one endpoint{here}"),
                count => format!("one of {count} endpoints{here}"),
            };
            if masquerade { format!("{which}, masqueraded") } else { which }
        }
    }
}

fn endpoints(list: &[SocketAddr]) -> String {
    let named: Vec<String> = list.iter().take(NAMED).map(ToString::to_string).collect();
    match list.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// `3h`, `90s`: in the largest unit that is exact.
pub fn time(seconds: u64) -> String {
    match seconds {
        0 => "0s".to_owned(),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{:?}", Duration::from_secs(s)),
    }
}

/// Where a connection goes: what `weft explain` prints.
pub fn explanation(of: &Explanation) -> String {
    let mut text = String::new();
    let show = |address: Option<String>| address.unwrap_or_else(|| "?".to_owned());
    let _ = writeln!(
        text,
        "{} -> {}/{}, as node {} sees it",
        show(of.source.map(|it| it.to_string())),
        show(of.destination.map(|it| it.to_string())),
        of.protocol,
        of.node
    );
    let mut line = |label: &str, what: &str| {
        let _ = writeln!(text, "  {label:<10}{what}");
    };
    if let Some(service) = &of.service {
        let frontend = of.frontend.as_deref().unwrap_or_default();
        let kind = of.kind.as_deref().filter(|kind| !frontend.contains(kind));
        line("service", service);
        line("frontend", &[Some(frontend), kind].into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    if let Some(policy) = &of.policy {
        line("policy", policy);
    }
    line("outcome", &outcome(of));
    for (index, candidate) in of.candidates.iter().enumerate() {
        line(if index == 0 { "to" } else { "" }, &self::candidate(candidate));
    }
    for (index, why) in of.why.iter().enumerate() {
        line(if index == 0 { "why" } else { "" }, why);
    }
    for (index, object) in of.objects.iter().enumerate() {
        let state = object.wrong.as_ref().map_or_else(String::new, |wrong| format!("  ({wrong})"));
        line(if index == 0 { "kernel" } else { "" }, &format!("{}{state}", object.what));
    }
    let wrong = of.objects.iter().filter(|object| object.wrong.is_some()).count();
    match (&of.unseen, of.objects.len(), wrong) {
        (Some(why), ..) => line("kernel", &format!("not looked at: {why}")),
        (None, 0, _) => {}
        (None, _, 0) => line("agrees", "yes: the kernel holds all of that"),
        (None, all, wrong) => line("agrees", &format!("no: {wrong} of {all} are not as they should be")),
    }
    text
}

fn outcome(of: &Explanation) -> String {
    match of.outcome {
        OutcomeReport::Untouched => "left alone: it is for no service".to_owned(),
        OutcomeReport::Rejected => "rejected: the client is told that nobody is there".to_owned(),
        OutcomeReport::Dropped => "dropped: the client is told nothing".to_owned(),
        OutcomeReport::Endpoint => match of.candidates.as_slice() {
            [_] => "goes to one endpoint".to_owned(),
            all => format!("goes to one of {} endpoints", all.len()),
        },
    }
}

fn candidate(of: &Candidate) -> String {
    let mut text = format!("{} ({:.1} %)", of.endpoint, of.probability * 100.0);
    if let Some(pod) = &of.pod {
        let _ = write!(text, ", pod {pod}");
    }
    if let Some(node) = &of.node {
        let _ = write!(text, ", on {node}");
    }
    if of.masquerade {
        text.push_str(", masqueraded");
    }
    text
}
