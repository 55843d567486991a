//! Credentials: certificates, tokens, their exchange, and that none is ever told.

use super::*;

/// A secret that is written in these tests' kubeconfigs.
const SECRET: &str = "test-token-that-nobody-may-log";

#[tokio::test]
async fn certificates_and_tokens_open_the_door() {
    for security in [Security::Token, Security::Certificate] {
        let server = Server::start(security);
        server.put(service("web", 80));
        let mut proxy = Proxy::of(&server).await;
        proxy.caught_up(&server).await;
        assert_eq!(proxy.port_of("web"), Some(80), "{security:?}");
    }
}

#[tokio::test]
async fn a_server_with_a_strange_certificate_is_not_believed() {
    let (ours, stranger) = (Server::start(Security::Token), Server::start(Security::Token));
    stranger.put(service("web", 80));
    let mut proxy = Proxy::of(&ours).await;
    let mixed = ours.kubeconfig().replace(&ours.address().to_string(), &stranger.address().to_string());
    std::fs::write(&proxy.kubeconfig, mixed).unwrap();
    let access = Access::Kubeconfig(proxy.kubeconfig.clone());
    proxy.source = Source::open(access, NodeName::new("ash"), patience()).await.unwrap();
    proxy.until(|it| it.away.is_some()).await;
    let away = proxy.away.unwrap();
    assert!(away.starts_with("cannot read "), "{away}");
    assert!(away.contains("certificate"), "{away}");
    assert!(stranger.requests().is_empty(), "it never saw the token");
}

/// A token that is exchanged in the file is taken up, and nothing is lost meanwhile.
#[tokio::test]
async fn new_credentials_in_the_file_are_taken_up() {
    let server = Server::start(Security::Token);
    server.put(service("web", 80));
    let mut proxy = Proxy::of(&server).await;
    proxy.caught_up(&server).await;
    server.set_token("another");
    server.cut();
    proxy.until(|it| it.away.as_ref().is_some_and(|away| away.contains("401"))).await;
    assert_eq!(proxy.port_of("web"), Some(80));
    assert!(!proxy.away.as_ref().unwrap().contains(SECRET));
    std::fs::write(&proxy.kubeconfig, "kind: [").unwrap();
    server.put(service("web", 81));
    std::fs::write(&proxy.kubeconfig, server.kubeconfig()).unwrap();
    proxy.caught_up(&server).await;
    proxy.until(|it| it.away.is_none()).await;
    assert_eq!(proxy.port_of("web"), Some(81));
}

#[tokio::test]
async fn a_kubeconfig_of_no_use_is_an_error_that_says_why_and_tells_no_secret() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("kubeconfig");
    let good = Server::start(Security::Token).kubeconfig();
    let user = |user: &str| good.replace(&format!("token: {SECRET}"), user);
    let table = [
        ("not there", None, "cannot be used: No such file or directory"),
        ("no YAML", Some(good.replace("users:", "users: [")), "is no kubeconfig in YAML"),
        (
            "a token that is a list",
            Some(good.replace(SECRET, &format!("[{SECRET}]"))),
            "is no kubeconfig in YAML",
        ),
        (
            "no context",
            Some(good.replace("current-context: test", "")),
            "failed to determine current context",
        ),
        ("another context", Some(good.replace("current-context: test", "current-context: prod")), "prod"),
        ("no server", Some(good.replace("    server: https://", "    nothing: ")), "cluster url is missing"),
        (
            "a proxy",
            Some(good.replace("    server:", "    proxy-url: http://192.0.2.1\n    server:")),
            "`proxy-url`",
        ),
        (
            "no base64",
            Some(good.replace("certificate-authority-data: ", "certificate-authority-data: ?")),
            "base64",
        ),
        ("no key", Some(user("client-key: /nowhere\n    client-certificate: /nowhere")), "/nowhere"),
        (
            "a plugin that is not there",
            Some(user("exec: {apiVersion: client.authentication.k8s.io/v1, command: /nowhere}")),
            "No such file",
        ),
        (
            "a plugin that prints the token and fails",
            Some(user(&format!(
                "exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, args: [-c, 'echo {SECRET}; echo no luck >&2; exit 3']}}"
            ))),
            "no luck",
        ),
        (
            "a plugin that prints the token and nothing else",
            Some(user(&format!(
                "exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, args: [-c, 'echo \"{{{SECRET}\"']}}"
            ))),
            "is no ExecCredential",
        ),
    ];
    for (case, text, wanted) in table {
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => assert!(!path.exists()),
        }
        let opened = Source::open(Access::Kubeconfig(path.clone()), NodeName::new("ash"), patience()).await;
        let said = opened.map(|_| ()).expect_err(case).to_string();
        assert!(said.contains(wanted), "{case}: {said}");
        assert!(!said.contains(SECRET), "{case}: {said}");
        assert!(!said.contains('\n'), "{case}: {said}");
    }
}

/// Tests run in no pod.
#[tokio::test]
async fn without_a_kubeconfig_it_must_be_a_pod() {
    assert_eq!(Access::of(None), Access::InCluster);
    let opened = Source::open(Access::of(None), NodeName::new("ash"), patience()).await;
    let said = opened.map(|_| ()).expect_err("no pod").to_string();
    assert!(
        said.starts_with("there is no `--kubeconfig`, and this is no pod with a service account: "),
        "{said}"
    );
}

/// Not being let at the Node costs its zone, not the services.
#[tokio::test]
async fn a_node_that_may_not_be_read_is_done_without() {
    let server = Server::start(Security::None);
    server.put(service("web", 80));
    let mut proxy = Proxy::of(&server).await;
    // The first request is anybody's, so all are refused until the node's was.
    let refusal = br#"{"kind":"Status","code":403,"message":"nodes is forbidden"}"#.to_vec();
    server.next(std::iter::repeat_n(super::super::testing::Fault::Answer(403, refusal), 6));
    proxy.until(|it| it.away.is_some()).await;
    proxy.caught_up(&server).await;
    proxy.until(|it| it.away.is_none()).await;
    assert_eq!(proxy.port_of("web"), Some(80));
}
