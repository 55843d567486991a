//! TLS and logins on a real etcd.

use std::path::PathBuf;

use etcd_client::{Client, Permission, RoleRevokePermissionOptions};
use weft_store::{ConnectOptions, Secret, Store, StoreError, Txn, WatchEvent};

use crate::support::certs::{Certs, Pair, text};
use crate::support::etcd::Etcd;
use crate::support::{changes, disconnected, next, until};

/// etcd's flags for a certificate, and for whether clients need one.
fn tls_flags(server: &Pair, clients: Option<&Certs>) -> Vec<String> {
    let mut flags =
        vec![format!("--cert-file={}", text(&server.cert)), format!("--key-file={}", text(&server.key))];
    if let Some(certs) = clients {
        flags.push("--client-cert-auth".to_owned());
        flags.push(format!("--trusted-ca-file={}", text(&certs.ca())));
    }
    flags
}

fn https(etcd: &Etcd, ca: PathBuf) -> ConnectOptions {
    ConnectOptions { endpoints: vec![etcd.url()], ca_file: Some(ca), ..Default::default() }
}

fn with_cert(options: ConnectOptions, pair: &Pair) -> ConnectOptions {
    ConnectOptions { cert_file: Some(pair.cert.clone()), key_file: Some(pair.key.clone()), ..options }
}

fn connect(options: ConnectOptions) -> Store {
    Store::connect(options).expect("good options")
}

fn cause(error: &StoreError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn a_ca_alone_is_enough_where_etcd_asks_for_no_certificate() {
    let certs = Certs::new();
    let mut etcd = Etcd::new("https", &[]);
    let server = certs.signed("server", &etcd.host);
    etcd.set_flags(&tls_flags(&server, None));
    etcd.run();
    let store = connect(https(&etcd, certs.ca()));
    etcd.ready_for(&store).await;
    store.commit(Txn::new().put("/k", "", None)).await.unwrap();

    let stranger = Certs::new();
    for (case, options) in [
        ("another CA", https(&etcd, stranger.ca())),
        ("the system's CAs", ConnectOptions { ca_file: None, ..https(&etcd, stranger.ca()) }),
    ] {
        let error = connect(options).get("/k").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{case}: {error:?}");
        assert!(cause(&error).contains("invalid peer certificate"), "{case}: {}", cause(&error));
    }
}

#[tokio::test]
async fn etcd_may_want_a_certificate_of_ours() {
    let certs = Certs::new();
    let mut etcd = Etcd::new("https", &[]);
    let server = certs.signed("server", &etcd.host);
    etcd.set_flags(&tls_flags(&server, Some(&certs)));
    etcd.run();
    let ours = certs.signed("ours", "127.0.0.1");
    let store = connect(with_cert(https(&etcd, certs.ca()), &ours));
    etcd.ready_for(&store).await;
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    store.commit(Txn::new().put("/k", "", None)).await.unwrap();
    assert_eq!(changes(&mut watch).await.len(), 1);

    // In TLS 1.3 a client hears only after its first request that its certificate was not accepted.
    let error = connect(https(&etcd, certs.ca())).get("/k").await.unwrap_err();
    assert!(cause(&error).contains("etcd may want another certificate in etcd-certfile"), "{error:?}");
}

#[tokio::test]
async fn a_server_at_another_address_is_not_believed() {
    let certs = Certs::new();
    let mut etcd = Etcd::new("https", &[]);
    let (server, elsewhere) = (certs.signed("server", &etcd.host), certs.signed("elsewhere", "192.0.2.1"));
    etcd.set_flags(&tls_flags(&server, None));
    etcd.run();
    etcd.ready_for(&connect(https(&etcd, certs.ca()))).await;
    etcd.kill();
    etcd.set_flags(&tls_flags(&elsewhere, None));
    etcd.run();
    let store = connect(https(&etcd, certs.ca()));
    until("a clear refusal", async || match store.get("/k").await {
        Err(error @ StoreError::Denied { .. }) if cause(&error).contains("not valid for name") => Ok(()),
        other => Err(other),
    })
    .await;
}

/// All certificates are replaced while we run: CA, server's, ours.
#[tokio::test]
async fn renewed_certificates_need_no_restart() {
    let (old, new) = (Certs::new(), Certs::new());
    let mut etcd = Etcd::new("https", &[]);
    etcd.set_flags(&tls_flags(&old.signed("server", &etcd.host), Some(&old)));
    etcd.run();
    let ours = old.signed("ours", "127.0.0.1");
    let store = connect(with_cert(https(&etcd, old.ca()), &ours));
    etcd.ready_for(&store).await;
    let mut watch = store.watch("/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));

    etcd.kill();
    disconnected(&mut watch).await;
    let renewed = new.signed("ours", "127.0.0.1");
    for (from, to) in [(new.ca(), old.ca()), (renewed.cert, ours.cert), (renewed.key, ours.key)] {
        std::fs::copy(from, to).expect("a file");
    }
    etcd.set_flags(&tls_flags(&new.signed("server", &etcd.host), Some(&new)));
    etcd.run();
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
}

#[test]
fn a_key_of_another_certificate_is_found_at_once() {
    let certs = Certs::new();
    let (one, two) = (certs.signed("one", "127.0.0.1"), certs.signed("two", "127.0.0.1"));
    let mixed = ConnectOptions {
        endpoints: vec!["https://127.0.0.1:2379".to_owned()],
        cert_file: Some(one.cert),
        key_file: Some(two.key.clone()),
        ..Default::default()
    };
    match Store::connect(mixed) {
        Err(error @ StoreError::Config { .. }) => {
            assert_eq!(error.to_string(), format!("etcd-keyfile: cannot use {}", two.key.display()));
            assert!(cause(&error).contains("KeyMismatch"), "{}", cause(&error));
        }
        other => panic!("{other:?}"),
    }
}

/// Users: `root`, and `weft`, who may read and write under `/ours/`.
async fn with_users(etcd: &Etcd) -> Client {
    let mut raw = etcd.raw().await;
    raw.user_add("root", "toor", None).await.unwrap();
    raw.role_add("root").await.unwrap();
    raw.user_grant_role("root", "root").await.unwrap();
    raw.user_add("weft", "first", None).await.unwrap();
    raw.role_add("ours").await.unwrap();
    raw.role_grant_permission("ours", Permission::read_write("/ours/").with_prefix()).await.unwrap();
    raw.user_grant_role("weft", "ours").await.unwrap();
    raw.auth_enable().await.unwrap();
    let options = etcd_client::ConnectOptions::new().with_user("root", "toor");
    Client::connect([etcd.url()], Some(options)).await.unwrap()
}

fn login(etcd: &Etcd, password: &str) -> ConnectOptions {
    ConnectOptions {
        endpoints: vec![etcd.url()],
        username: Some("weft".to_owned()),
        password: Some(Secret::from(password)),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_user_gets_what_its_role_allows() {
    let etcd = Etcd::start().await;
    with_users(&etcd).await;
    let store = connect(login(&etcd, "first"));
    let mut watch = store.watch("/ours/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    store.commit(Txn::new().put("/ours/k", "", None)).await.unwrap();
    assert_eq!(changes(&mut watch).await.len(), 1);

    let denied = |error: StoreError| assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    denied(store.list("/").await.unwrap_err());
    denied(store.commit(Txn::new().put("/theirs", "", None)).await.unwrap_err());
    denied(connect(login(&etcd, "wrong")).get("/ours/k").await.unwrap_err());
    denied(etcd.store().get("/ours/k").await.unwrap_err());
    match next(&mut connect(login(&etcd, "wrong")).watch("/ours/")).await {
        WatchEvent::Disconnected { reason } => assert!(reason.contains("authentication failed"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// A change of roles makes etcd refuse every login from before it.
#[tokio::test]
async fn an_outdated_login_is_renewed() {
    let etcd = Etcd::start().await;
    let mut root = with_users(&etcd).await;
    let store = connect(login(&etcd, "first"));
    let first = store.commit(Txn::new().put("/ours/k", "", None)).await.unwrap();
    root.role_grant_permission("ours", Permission::read("/extra")).await.unwrap();
    let second = store.commit(Txn::new().put("/ours/k", "", None)).await.expect("with a new login");
    assert_ne!(first, second);
    assert!(store.get("/extra").await.unwrap().is_none(), "the new permission holds");
    root.role_revoke_permission("ours", "/extra", None::<RoleRevokePermissionOptions>).await.unwrap();
    let error = store.get("/extra").await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
}

/// etcd forgets its simple tokens when it restarts, and the password changed meanwhile.
#[tokio::test]
async fn a_changed_password_file_needs_no_restart() {
    let mut etcd = Etcd::start().await;
    let mut root = with_users(&etcd).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let store =
        connect(ConnectOptions { password: None, password_file: Some(file.clone()), ..login(&etcd, "") });
    let mut watch = store.watch("/ours/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));

    root.user_change_password("weft", "second").await.unwrap();
    std::fs::write(&file, "second\n").unwrap();
    etcd.kill();
    disconnected(&mut watch).await;
    etcd.run();
    assert_eq!(next(&mut watch).await, WatchEvent::Reconnected);
    store.commit(Txn::new().put("/ours/k", "", None)).await.unwrap();
    assert_eq!(changes(&mut watch).await.len(), 1);
}

/// A write is never repeated lightly; but a token that ran out is certainly no write.
#[tokio::test]
async fn an_expired_token_is_renewed() {
    let mut etcd = Etcd::new("http", &["--auth-token-ttl=1".to_owned()]);
    etcd.run();
    etcd.ready().await;
    with_users(&etcd).await;
    let store = connect(login(&etcd, "first"));
    assert!(store.get("/ours/k").await.unwrap().is_none());
    etcd.logs(r#""deleted a simple token","user-name":"weft""#).await;
    store.commit(Txn::new().put("/ours/k", "", None)).await.unwrap();
}

/// etcd forgets its simple tokens when it restarts; the connection comes back by itself, without one.
#[tokio::test]
async fn a_forgotten_token_is_renewed() {
    let mut etcd = Etcd::start().await;
    with_users(&etcd).await;
    let store = connect(login(&etcd, "first"));
    for round in 1..4 {
        store.commit(Txn::new().put("/ours/k", "", None)).await.unwrap();
        etcd.kill();
        etcd.run();
        etcd.ready_for(&connect(login(&etcd, "first"))).await;
        let kv = until("the store is back", async || store.get("/ours/k").await).await.unwrap();
        assert_eq!(kv.mod_revision.0 - kv.create_revision.0, round - 1);
    }
}

/// A wiped etcd has no users any more; it is told apart, not locked out of.
#[tokio::test]
async fn a_wiped_etcd_without_users_is_still_ours() {
    let mut etcd = Etcd::start().await;
    with_users(&etcd).await;
    let store = connect(login(&etcd, "first"));
    store.commit(Txn::new().put("/ours/k", "", None)).await.unwrap();
    let mut watch = store.watch("/ours/");
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot(_)));
    etcd.wipe(true).await;
    disconnected(&mut watch).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Wiped(s) if s.entries.is_empty()));
    // And when there are users again, it is logged in again.
    with_users(&etcd).await;
    until("a login", async || store.commit(Txn::new().put("/ours/k", "", None)).await).await;
}
