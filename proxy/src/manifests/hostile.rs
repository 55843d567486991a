//! Whatever stands in a file, reading it ends without a panic, and what comes out is valid.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::parse;
use crate::model::{Change, Declared, Object, family_of};

/// A service and a slice in which every field is given.
fn complete() -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"weft.dev/balance": "random"}, "labels": {}},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"],
                "externalIPs": ["198.51.100.7"], "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5", "ipMode": "VIP"}]}},
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": ["10.1.0.5"], "nodeName": "ash", "targetRef": {"kind": "Pod", "name": "p"},
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "hints": {"forZones": [{"name": "east"}], "forNodes": [{"name": "ash"}]},
            }],
        },
        {
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "ash", "labels": {"topology.kubernetes.io/zone": "east"}},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "k", "effect": "e"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        },
    ]})
}

/// The pointers to all places in a value.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    all.push(at.clone());
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, format!("{at}/{}", name.replace('/', "~1")), all);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                places(entry, format!("{at}/{index}"), all);
            }
        }
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,12}",
        Just("None".to_owned()),
        Just("::ffff:10.1.0.5".to_owned()),
        Just("10.1.0.5/33".to_owned()),
        Just("0.0.0.0".to_owned()),
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null])),
        Just(json!([["10.1.0.5"], {"ip": 7}])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn anything_anywhere_in_an_object(wrong in prop::collection::vec((any::<prop::sample::Index>(), anything()), 1..4)) {
        let mut value = complete();
        for (place, wrong) in wrong {
            let mut all = Vec::new();
            places(&value, String::new(), &mut all);
            if let Some(there) = value.pointer_mut(&all[place.index(all.len())]) {
                *there = wrong;
            }
        }
        for file in ["a.json", "a.yaml"] {
            for (_, stated) in parse(file, &value.to_string()).objects {
                match stated.change {
                    Some(Change::Put(Object::Service(_, Declared::Served(service)))) => {
                        prop_assert!(!service.ports.is_empty() && !service.cluster_ips.is_empty());
                        prop_assert!(service.ports.iter().all(|port| port.port > 0));
                        prop_assert!(service.affinity.is_none_or(|it| (1..=86_400).contains(&it.as_secs())));
                    }
                    Some(Change::Put(Object::Slice(_, slice))) => {
                        prop_assert!(slice.endpoints.iter().all(|it| family_of(it.address) == slice.family));
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn any_text(text in "(\\PC|\n|---|\\.\\.\\.|[-:{}\\[\\]&*!|>%@ ]){0,60}") {
        for file in ["a.yaml", "a.json"] {
            let parsed = parse(file, &text);
            prop_assert!(parsed.complete || !parsed.problems.is_empty());
        }
    }
}

/// The value that the properties spoil is good to begin with.
#[test]
fn the_complete_value_is_complete() {
    for file in ["a.json", "a.yaml"] {
        let parsed = parse(file, &complete().to_string());
        assert_eq!((parsed.objects.len(), parsed.problems), (3, vec![]), "{file}");
    }
}
