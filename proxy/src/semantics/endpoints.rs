//! Which endpoints a packet may get: readiness, policies, hints, REJECT against DROP, affinity,
//! consistent hashing, and what health checks count.

use super::*;

#[test]
fn endpoint_selection() {
    let with = |endpoints: &[Value]| world().endpoints(endpoints);
    let (here, there) = (|state| endpoint(HERE, "ash", state), |state| endpoint(THERE, "birch", state));
    let second = || endpoint("10.1.0.6", "ash", READY);
    check(vec![
        // 1. the cluster set
        ("ready ones", with(&[here(READY), there(UNREADY)]), POD, CLUSTER_IP, "10.1.0.5:8080"),
        (
            "terminating ones only if none is ready",
            with(&[here(LEAVING), there(READY)]),
            POD,
            CLUSTER_IP,
            "10.1.1.5:8080",
        ),
        (
            "none ready: those that terminate and still serve",
            with(&[here(LEAVING), there(LEAVING)]),
            POD,
            CLUSTER_IP,
            BOTH,
        ),
        (
            "terminating fallback: external, policy Cluster",
            with(&[here(DEAD), there(LEAVING)]),
            OUTSIDE,
            NODE_PORT,
            "10.1.1.5:8080 masqueraded",
        ),
        // 2. the local set, independent of 1
        (
            "local: ready ones here",
            with(&[here(READY), second(), there(READY)]).internal_local(),
            POD,
            CLUSTER_IP,
            "10.1.0.5:8080, 10.1.0.6:8080",
        ),
        (
            "local: terminating here although others are ready elsewhere",
            with(&[here(LEAVING), there(READY)]).internal_local(),
            POD,
            CLUSTER_IP,
            "10.1.0.5:8080",
        ),
        (
            "local: terminating fallback, external",
            with(&[here(LEAVING), there(READY)]).external_local(),
            OUTSIDE,
            NODE_PORT,
            "10.1.0.5:8080",
        ),
        // 4. and 5.
        ("terminating and not serving never", with(&[here(DEAD), there(DEAD)]), POD, CLUSTER_IP, "reject"),
        (
            "unready and not terminating never, serving or not",
            with(&[here([false, true, false])]),
            POD,
            CLUSTER_IP,
            "reject",
        ),
        (
            "an endpoint without a node is not local",
            with(&[json!({"addresses": [HERE]})]).internal_local(),
            POD,
            CLUSTER_IP,
            "drop",
        ),
    ]);
}

/// 3. of the endpoint selection.
#[test]
fn topology_hints() {
    let here = |zones: &[&str], nodes: &[&str]| hinted(endpoint(HERE, "ash", READY), zones, nodes);
    let there = |zones: &[&str], nodes: &[&str]| hinted(endpoint(THERE, "birch", READY), zones, nodes);
    let with = |endpoints: [Value; 2]| world().endpoints(&endpoints);
    let no_zone = |mut world: World| {
        world.zone = None;
        world
    };
    let unready_without = hinted(endpoint(THERE, "birch", UNREADY), &[], &[]);
    let third = hinted(endpoint("10.1.2.5", "cedar", READY), &["west"], &[]);
    let rows: Vec<(&str, World, &str)> = vec![
        ("zone", with([here(&["east"], &[]), there(&["west"], &[])]), "10.1.0.5:8080"),
        (
            "zone: a hint is not where the endpoint is",
            with([here(&["west"], &[]), there(&["east"], &[])]),
            "10.1.1.5:8080",
        ),
        ("zone: for several zones", with([here(&["west", "east"], &[]), there(&["east"], &[])]), BOTH),
        ("zone: one missing hint disables", with([here(&["east"], &[]), there(&[], &[])]), BOTH),
        ("zone: no hint names ours", with([here(&["west"], &[]), there(&["west"], &[])]), BOTH),
        ("zone: the node has none", no_zone(with([here(&["east"], &[]), there(&["west"], &[])])), BOTH),
        ("node", with([here(&[], &["ash"]), there(&[], &["birch"])]), "10.1.0.5:8080"),
        (
            "node before zone",
            with([here(&["west"], &["birch"]), there(&["east"], &["ash"])]),
            "10.1.1.5:8080",
        ),
        (
            "node: one missing hint, zone counts",
            with([here(&["east"], &["ash"]), there(&["west"], &[])]),
            "10.1.0.5:8080",
        ),
        (
            "node: no hint names ours, zone counts",
            with([here(&["east"], &["cedar"]), there(&["west"], &["birch"])]),
            "10.1.0.5:8080",
        ),
        ("node: no hint names ours, no zones", with([here(&[], &["cedar"]), there(&[], &["birch"])]), BOTH),
        (
            "only ready endpoints count",
            world().endpoints(&[here(&["east"], &[]), unready_without, third]),
            "10.1.0.5:8080",
        ),
        (
            "terminating fallback takes no notice of hints",
            world().endpoints(&[
                hinted(endpoint(HERE, "ash", LEAVING), &["east"], &[]),
                hinted(endpoint(THERE, "birch", LEAVING), &["west"], &[]),
            ]),
            BOTH,
        ),
        (
            "the policy Local takes no notice of hints",
            with([here(&["west"], &[]), there(&["east"], &[])]).internal_local(),
            "10.1.0.5:8080",
        ),
    ];
    check(rows.into_iter().map(|(case, world, fate)| (case, world, POD, CLUSTER_IP, fate)).collect());
}

/// REJECT against DROP, cell by cell: frontend and policy against where endpoints are.
#[test]
fn reject_and_drop() {
    let nowhere = |world: World| world.endpoints(&[endpoint(HERE, "ash", UNREADY)]);
    let elsewhere = |world: World| world.endpoints(&[endpoint(THERE, "birch", READY)]);
    let leaving_elsewhere = |world: World| world.endpoints(&[endpoint(THERE, "birch", LEAVING)]);
    let (cluster, internal, external) = (world, || world().internal_local(), || world().external_local());
    let mut rows: Vec<Row> = vec![
        ("ClusterIP, no endpoint", nowhere(cluster()), POD, CLUSTER_IP, "reject"),
        ("ClusterIP, no slice at all", cluster().endpoints(&[]), POD, CLUSTER_IP, "reject"),
        ("ClusterIP, from the host, no endpoint", nowhere(cluster()), PROCESS, CLUSTER_IP, "reject"),
        ("internal Local, no endpoint anywhere", nowhere(internal()), POD, CLUSTER_IP, "reject"),
        ("internal Local, only elsewhere", elsewhere(internal()), POD, CLUSTER_IP, "drop"),
        (
            "internal Local, only terminating elsewhere",
            leaving_elsewhere(internal()),
            POD,
            CLUSTER_IP,
            "drop",
        ),
        ("internal Local, only elsewhere, from the host", elsewhere(internal()), PROCESS, CLUSTER_IP, "drop"),
        (
            "internal Local does not concern external traffic",
            elsewhere(internal()),
            OUTSIDE,
            NODE_PORT,
            "10.1.1.5:8080 masqueraded",
        ),
        (
            "external Local does not concern internal traffic",
            elsewhere(external()),
            POD,
            CLUSTER_IP,
            "10.1.1.5:8080",
        ),
    ];
    for frontend in [EXTERNAL_IP, BALANCER, NODE_PORT] {
        rows.extend([
            ("external Cluster, no endpoint", nowhere(cluster()), OUTSIDE, frontend, "reject"),
            ("external Local, no endpoint anywhere", nowhere(external()), OUTSIDE, frontend, "reject"),
            ("external Local, only elsewhere", elsewhere(external()), OUTSIDE, frontend, "drop"),
            (
                "external Local, only terminating elsewhere",
                leaving_elsewhere(external()),
                OUTSIDE,
                frontend,
                "drop",
            ),
            (
                "external Local, only elsewhere, from a local pod",
                elsewhere(external()),
                POD,
                frontend,
                "10.1.1.5:8080",
            ),
            (
                "external Local, only elsewhere, from the host",
                elsewhere(external()),
                PROCESS,
                frontend,
                "10.1.1.5:8080 masqueraded",
            ),
            ("external Local, no endpoint, from a local pod", nowhere(external()), POD, frontend, "reject"),
            ("external Local, here", external(), OUTSIDE, frontend, "10.1.0.5:8080"),
            ("external Local, a pod elsewhere is outside", external(), FAR_POD, frontend, "10.1.0.5:8080"),
        ]);
    }
    check(rows);
}

#[test]
fn session_affinity() {
    let sticky = || world().spec("sessionAffinity", json!("ClientIP"));
    let (here, there, gone) = (Some("10.1.0.5:8080"), Some("10.1.1.5:8080"), Some("10.1.0.77:8080"));
    let only_there = || sticky().endpoints(&[endpoint(THERE, "birch", READY)]);
    type Row = (&'static str, World, Option<&'static str>, &'static str, &'static str, &'static str);
    let rows: Vec<Row> = vec![
        ("a new client gets any", sticky(), None, POD, CLUSTER_IP, BOTH),
        ("a known client keeps its endpoint", sticky(), there, POD, CLUSTER_IP, "10.1.1.5:8080"),
        ("on every frontend", sticky(), there, OUTSIDE, NODE_PORT, "10.1.1.5:8080 masqueraded"),
        ("endpoint gone: balanced again", sticky(), gone, POD, CLUSTER_IP, BOTH),
        ("endpoint not ready: balanced again", only_there(), here, POD, CLUSTER_IP, "10.1.1.5:8080"),
        (
            "endpoint not in the local set: balanced again",
            sticky().internal_local(),
            there,
            POD,
            CLUSTER_IP,
            "10.1.0.5:8080",
        ),
        ("toggled off: no effect", world(), there, POD, CLUSTER_IP, BOTH),
    ];
    for (case, world, remembered, source, destination, expected) in rows {
        assert_eq!(world.fate(source, destination, remembered), expected, "{case}");
    }
}

/// `weft.dev/balance`.
#[test]
fn consistent_hash_gives_a_client_one_endpoint() {
    let hashed = || world().meta("annotations", json!({"weft.dev/balance": "client-hash"}));
    let first = hashed().fate(POD, CLUSTER_IP, None);
    assert!(BOTH.split(", ").any(|endpoint| endpoint == first), "one of both: {first}");
    for frontend in [EXTERNAL_IP, BALANCER, NODE_PORT] {
        assert_eq!(
            hashed().fate(POD, frontend, None),
            format!("{first} masqueraded"),
            "the same on all frontends"
        );
    }
    let clients = (1..=20).map(|number| hashed().fate(&format!("10.1.0.{number}@pod0"), CLUSTER_IP, None));
    let different: std::collections::BTreeSet<String> = clients.collect();
    assert_eq!(different.len(), 3, "both endpoints have clients, and one talks to itself: {different:?}");
}

/// `healthCheckNodePort` counts ready endpoints of this host, each once.
#[test]
fn health_checks_count_local_ready_endpoints() {
    let asked = world()
        .external_local()
        .spec("healthCheckNodePort", json!(32000))
        .spec("ports", json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]));
    let count = |world: World| {
        let model = world.model();
        let plan =
            plan::service(&model, &Claims::of(&model), &world.host(&model), &ServiceName::new("shop", "web"));
        plan.health_check.map(|check| (check.port.get(), check.local_v4, check.local_v6))
    };
    let with = |states: [Conditions; 2]| {
        let [first, second] = states;
        asked.clone().endpoints(&[endpoint(HERE, "ash", first), endpoint("10.1.0.6", "ash", second)])
    };
    assert_eq!(count(asked.clone()), Some((32000, 1, 0)), "one is elsewhere, two ports count once");
    assert_eq!(count(with([READY, READY])), Some((32000, 2, 0)));
    assert_eq!(count(with([READY, LEAVING])), Some((32000, 1, 0)));
    assert_eq!(count(with([LEAVING, LEAVING])), Some((32000, 0, 0)), "fails with only terminating ones");
    assert_eq!(count(world()), None, "nobody asks");
}
