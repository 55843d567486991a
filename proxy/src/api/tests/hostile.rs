//! Answers that no API server gives: nothing panics, nothing is taken away, and when the server is
//! itself again, so is the model.

use std::io::{Read as _, Write as _};

use proptest::prelude::*;

use super::super::answer;
use super::super::resource::Resource;
use super::super::testing::Fault;
use super::*;

fn resources() -> [Resource; 3] {
    [Resource::Services, Resource::Slices, Resource::Node(NodeName::new("ash"))]
}

/// Bodies that are nearly right.
fn wrong_bodies() -> Vec<Vec<u8>> {
    let deep = format!("{{\"kind\":\"ServiceList\",\"items\":[{}", "[".repeat(100_000));
    let texts = [
        "",
        "null",
        "[]",
        "{}",
        "\"text\"",
        "{\"kind\":\"ServiceList\"}",
        "{\"kind\":\"PodList\",\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[]}",
        "{\"kind\":\"ServiceList\",\"metadata\":{\"resourceVersion\":\"five\"},\"items\":[]}",
        "{\"kind\":\"ServiceList\",\"metadata\":{\"resourceVersion\":\"99999999999999999999999\"},\"items\":[]}",
        "{\"kind\":\"ServiceList\",\"metadata\":{\"resourceVersion\":\"5\"},\"items\":{}}",
        "{\"kind\":\"ServiceList\",\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[{}]}",
        "{\"kind\":\"ServiceList\",\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[null]}",
        "{\"kind\":\"Status\",\"code\":200}",
        "{\"type\":\"ADDED\"}\n",
        "{\"type\":\"ADDED\",\"object\":null}\n",
        "{\"type\":\"ADDED\",\"object\":{\"kind\":\"Service\"}}\n",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"web\",\"namespace\":\"shop\"}}}\n",
        "{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":7,\"resourceVersion\":\"2000\"}}}\n",
        "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"1\"}}}\n",
        "{\"type\":\"BOOKMARK\",\"object\":{}}\n",
        "{\"type\":\"ERROR\",\"object\":{}}\n",
        "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410}}\n",
        "{\"type\":\"EXPLODED\",\"object\":{}}\n",
        "{\"type\":\"ADDED\",\"obj",
        "\u{0}\u{1}\u{2}\n\n\n",
        deep.as_str(),
    ];
    let mut bodies: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    bodies.push(vec![0xff; 4096]);
    bodies.push(b"a".repeat(70 << 20));
    bodies
}

#[tokio::test]
async fn answers_that_make_no_sense_take_nothing_away() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    server.put(slice("web-1", 8080));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    for (port, body) in (81..).zip(wrong_bodies()) {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        server.next([Fault::Answer(200, body.clone()), Fault::Half(body.clone()), Fault::Answer(500, body)]);
        server.cut();
        server.put(service("web", port));
        // Whatever happens on the way there, the service is never gone.
        while proxy.port_of("web") != Some(port) {
            tokio::time::timeout(LONG, proxy.step()).await.unwrap_or_else(|_| panic!("stuck after {shown}"));
            assert!(proxy.port_of("web").is_some() && proxy.port_of_slice("web-1").is_some(), "{shown}");
        }
    }
    proxy.caught_up(&server).await;
    proxy.until(|it| it.away.is_none()).await;
}

/// An object of another kind in a list of services is named, and the others count.
#[tokio::test]
async fn an_object_of_a_wrong_kind_spoils_only_itself() {
    let body = json!({"kind": "ServiceList", "metadata": {"resourceVersion": "1001"}, "items": [
        {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop"}},
        {"metadata": {"name": "api", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 90}]}},
        {"metadata": {"name": "db", "namespace": "shop", "labels": 7}},
    ]});
    let page = answer::page(&Resource::Services, body.to_string().as_bytes()).unwrap();
    let said: Vec<String> =
        page.objects.iter().flat_map(|it| &it.problems).map(ToString::to_string).collect();
    assert_eq!(page.objects.iter().filter(|it| it.change.is_some()).count(), 1);
    assert!(said[0].starts_with("Service shop/web: "), "{said:?}");
    assert!(said[1].starts_with("Service shop/db: metadata.labels: "), "{said:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for resource in resources() {
            let _ = (answer::page(&resource, &bytes), answer::event(&resource, &bytes), answer::status(&bytes));
        }
    }

    /// Good answers, with a few bytes of them exchanged or cut out.
    #[test]
    fn no_spoilt_answer_panics(
        spoil in prop::collection::vec((any::<prop::sample::Index>(), any::<Option<u8>>()), 0..4),
        list in any::<bool>(),
    ) {
        let objects = [service("web", 80), slice("web-1", 8080), node("ash", "east")];
        for (resource, object) in resources().into_iter().zip(objects) {
            let mut object = object;
            object["metadata"]["resourceVersion"] = "1001".into();
            let good = if list {
                json!({"kind": resource.list_kind(), "metadata": {"resourceVersion": "7"}, "items": [object]})
            } else {
                json!({"type": "ADDED", "object": object})
            };
            let mut bytes = good.to_string().into_bytes();
            for (index, byte) in &spoil {
                let at = index.index(bytes.len());
                match byte {
                    Some(byte) => bytes[at] = *byte,
                    None => drop(bytes.remove(at)),
                }
            }
            let understood = if list {
                answer::page(&resource, &bytes).is_ok()
            } else {
                answer::event(&resource, &bytes).is_ok()
            };
            prop_assert!(understood || !spoil.is_empty());
        }
    }
}

/// Not even HTTP.
#[tokio::test]
async fn a_server_of_something_else_is_only_away() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let mut proxy = Proxy::of(&server).await;
    let text = server
        .kubeconfig()
        .replace(&server.address().to_string(), &listener.local_addr().unwrap().to_string());
    std::fs::write(&proxy.kubeconfig, text).unwrap();
    std::thread::spawn(move || {
        let talks: [&[u8]; 3] = [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ];
        for (stream, talk) in listener.incoming().zip(talks.iter().cycle()) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16]);
            let _ = stream.write_all(talk);
        }
    });
    let access = Access::Kubeconfig(proxy.kubeconfig.clone());
    proxy.source = Source::open(access, NodeName::new("ash"), patience()).await.unwrap();
    proxy.until(|it| it.away.is_some()).await;
    assert!(!proxy.complete);
}
