//! Stories of a proxy that follows a Kubernetes API: what the API says is in the kernel when the proxy
//! calls it programmed, and an API that is away costs nothing but news.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use weft_lab::traffic::{Answer, Protocol, Server};
use weft_lab::{Host, Lab, LabError, Running, within};
use weft_proxy::api::testing::{Fault, Security, Server as Api};

/// For what must come, on a starved machine.
const SOON: Duration = Duration::from_secs(60);
/// For what must not.
const TOLD: Duration = Duration::from_secs(2);
/// The service.
const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);

/// A host alone, and an API server on it.
struct Scene {
    /// Ends first, and with it the connections to the API.
    proxy: Option<Running>,
    api: Api,
    host: Host,
    _lab: Lab,
}

impl Scene {
    fn new(name: &str, security: Security) -> Result<Self, LabError> {
        let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
        let lab = Lab::new(name).weft(weft).hosts(["ash"]).etcd_members(0).without_daemons().up()?;
        let host = lab.host("ash");
        let listener = host.within(|| TcpListener::bind((host.v4(), 0)))?.expect("a free port");
        let api = Api::on(listener, security);
        api.put(json!({"kind": "Node", "metadata": {"name": "ash"}}));
        api.put(json!({
            "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": WEB.ip(), "ports": [{"port": WEB.port()}]},
        }));
        Ok(Self { proxy: None, api, host, _lab: lab })
    }

    fn start(&mut self) -> Result<(), LabError> {
        let kubeconfig = self.kubeconfig();
        let args =
            [["weft", "proxy", kubeconfig.as_str()].map(str::to_owned).to_vec(), self.flags()].concat();
        self.proxy = Some(self.host.spawn(&args)?);
        Ok(())
    }

    fn kubeconfig(&self) -> String {
        let file = self.host.run_dir().join("kubeconfig");
        std::fs::create_dir_all(self.host.run_dir()).expect("a directory");
        std::fs::write(&file, self.api.kubeconfig()).expect("a file");
        format!("--kubeconfig={}", file.display())
    }

    fn flags(&self) -> Vec<String> {
        vec![
            "--node-name=ash".into(),
            format!("--run-dir={}", self.host.run_dir().display()),
            format!("--state-dir={}", self.host.state_dir().display()),
            // Everything is logged, so that a secret would be.
            "--v=10".into(),
        ]
    }

    /// As in a pod of the host's network, which finds the API and its service account where kubelet
    /// puts them.
    fn start_in_pod(&mut self) -> Result<(), LabError> {
        let account = self.host.run_dir().join("account");
        self.api.service_account(&account);
        let at = self.api.address();
        let into_pod = format!(
            "mount -t tmpfs pod /run && mkdir -p /run/secrets/kubernetes.io
            mkdir /run/secrets/kubernetes.io/serviceaccount
            mount --bind {} /run/secrets/kubernetes.io/serviceaccount
            export KUBERNETES_SERVICE_HOST={} KUBERNETES_SERVICE_PORT={}
            exec weft proxy \"$@\"",
            account.display(),
            at.ip(),
            at.port()
        );
        let shell = ["unshare", "--mount", "sh", "-ec", into_pod.as_str(), "sh"];
        let args = [shell.map(str::to_owned).to_vec(), self.flags()].concat();
        self.proxy = Some(self.host.spawn(&args)?);
        Ok(())
    }

    /// Waits until the proxy answers so.
    fn ready(&self, wanted: impl Fn(u16, &str) -> bool) {
        within(SOON, || {
            let answer = self.host.proxy().api("/readyz?verbose").map_err(|error| error.chain())?;
            if wanted(answer.status, &answer.body) {
                Ok(())
            } else {
                Err(format!("{answer:?}\n{}", self.log()))
            }
        });
    }

    /// The service leads to this server and no other; the version of that.
    fn leads_to(&self, server: &Server) -> u64 {
        self.api.put(json!({
            "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"port": server.port()}],
            "endpoints": [{"addresses": [self.host.v4()], "nodeName": "ash"}],
        }))
    }

    /// What the proxy says of a revision.
    fn programmed(&self, query: &str) -> Value {
        let answer = self.host.proxy().api(&format!("/programmed?{query}")).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).expect("JSON")
    }

    fn who(&self) -> String {
        match self.host.asks(WEB, Protocol::Tcp, TOLD) {
            Answer::From { server, .. } => server,
            other => format!("{other:?}"),
        }
    }

    fn log(&self) -> String {
        self.proxy.as_ref().map(Running::stderr_so_far).unwrap_or_default()
    }
}

/// The promise that rollouts will stand on: who was told that a version is programmed sees the kernel
/// do it, at once.
#[test]
fn what_is_called_programmed_is_in_the_kernel() -> Result<(), LabError> {
    let mut scene = Scene::new("services-api", Security::Certificate)?;
    let servers = [scene.host.server_at(0, "one")?, scene.host.server_at(0, "two")?];
    scene.leads_to(&servers[0]);
    scene.start()?;
    scene.ready(|status, _| status == 200);
    let port = scene.api.address().port();
    // A host that dies says nothing; the kernel asks for us.
    within(SOON, || {
        let shown = scene.host.run(format!("ss -Htno state established dport = :{port}")).stdout;
        let watches = shown.lines().filter(|line| line.contains("timer:(keepalive,")).count();
        if watches >= 3 { Ok(()) } else { Err(shown) }
    });
    for server in servers.iter().cycle().take(40) {
        let revision = scene.leads_to(server);
        let answer = scene.programmed(&format!("slices={revision}&timeout=8"));
        assert_eq!(answer["reached"], true, "{answer}");
        assert_eq!(scene.who(), server.name(), "after {answer}");
    }
    let revision = scene.api.remove("EndpointSlice", "shop", "web-1").expect("it is there");
    assert_eq!(scene.programmed(&format!("slices={revision}&timeout=8"))["reached"], true);
    assert_eq!(scene.who(), "Refused");

    // A version that only a bookmark can bring, and one that nothing has brought yet.
    let later = scene.api.put(json!({"kind": "Node", "metadata": {"name": "birch"}}));
    let answer = scene.programmed(&format!("slices={later}&services={later}&timeout=1"));
    assert_eq!((&answer["reached"], &answer["reason"]), (&json!(false), &json!("not yet")));
    scene.api.bookmark();
    let answer = scene.programmed(&format!("slices={later}&services={later}&timeout=8"));
    assert_eq!((&answer["reached"], &answer["slices"]), (&json!(true), &json!(later)));
    Ok(())
}

/// Connections are led on as they were, the proxy says what is amiss, and what happened meanwhile is
/// made up for. No secret is in the log.
#[test]
fn an_api_that_is_away_costs_only_news() -> Result<(), LabError> {
    let mut scene = Scene::new("services-away", Security::Token)?;
    let (one, two) = (scene.host.server_at(0, "one")?, scene.host.server_at(0, "two")?);
    scene.leads_to(&one);
    scene.start()?;
    scene.ready(|status, _| status == 200);
    assert_eq!(scene.who(), "one");

    scene.api.next(std::iter::repeat_n(Fault::Answer(503, b"away".to_vec()), 12));
    scene.api.cut();
    scene.ready(|status, body| status == 200 && body.contains("source degraded: cannot read "));
    assert_eq!(scene.who(), "one");
    let revision = scene.leads_to(&two);
    scene.ready(|status, body| status == 200 && body.contains("source ok"));
    assert_eq!(scene.programmed(&format!("slices={revision}&timeout=8"))["reached"], true);
    assert_eq!(scene.who(), "two");

    // Killed, and begun anew while the API says nothing: the kernel goes on as it was.
    drop(scene.proxy.take());
    scene.api.stall(true);
    scene.start()?;
    scene.ready(|status, body| status == 503 && body.contains("source not ready"));
    assert_eq!(scene.who(), "two");
    scene.api.remove("EndpointSlice", "shop", "web-1");
    scene.api.stall(false);
    scene.ready(|status, _| status == 200);
    within(SOON, || match scene.who().as_str() {
        "Refused" => Ok(()),
        other => Err(other.to_owned()),
    });
    let log = scene.log();
    assert!(log.lines().count() > 10, "{log}");
    assert!(!log.contains("test-token-that-nobody-may-log"), "{log}");
    Ok(())
}

/// Without `--kubeconfig`, the service account of the pod that it runs in is used, and a token that
/// kubelet exchanges is taken up.
#[test]
fn in_a_pod_the_service_account_opens_the_door() -> Result<(), LabError> {
    let mut scene = Scene::new("services-pod", Security::Token)?;
    let (one, two) = (scene.host.server_at(0, "one")?, scene.host.server_at(0, "two")?);
    scene.leads_to(&one);
    scene.start_in_pod()?;
    scene.ready(|status, _| status == 200);
    assert_eq!(scene.who(), "one");

    scene.api.set_token("another-that-nobody-may-log");
    scene.api.cut();
    scene.ready(|status, body| status == 200 && body.contains("source degraded: cannot read "));
    scene.api.service_account(&scene.host.run_dir().join("account"));
    let revision = scene.leads_to(&two);
    // Each resource is asked for again after a pause of its own, which has grown with each refusal.
    within(SOON, || {
        let answer = scene.programmed(&format!("slices={revision}&timeout=1"));
        if answer["reached"] == true { Ok(()) } else { Err(answer.to_string()) }
    });
    scene.ready(|status, body| status == 200 && body.contains("source ok"));
    assert_eq!(scene.who(), "two");
    let log = scene.log();
    assert!(!log.contains("that-nobody-may-log"), "{log}");
    Ok(())
}

/// It tells what is declared, or that it cannot, and does not wait for better times.
#[test]
fn a_dry_run_is_of_everything_or_an_error() -> Result<(), LabError> {
    let scene = Scene::new("services-dry", Security::Certificate)?;
    let kubeconfig = scene.kubeconfig();
    let dry = || scene.host.run_args(&["weft", "proxy", &kubeconfig, "--node-name=ash", "--dry-run"]);
    let said = dry().ok()?;
    assert!(said.contains("shop/web") && said.contains("10.96.0.10:80"), "{said}");
    scene.api.next(std::iter::repeat_n(Fault::Answer(503, b"away".to_vec()), 12));
    let refused = dry();
    assert!(!refused.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(refused.stderr.starts_with("error: cannot read "), "{refused:?}");
    Ok(())
}
