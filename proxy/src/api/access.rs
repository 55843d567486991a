//! Which API server, and who we are to it: a kubeconfig file, or what a pod finds of its cluster.
//!
//! The client is `kube`'s, on connections of our own making: with keepalive, so that a server that is
//! silently gone is noticed, and without middleware that logs or tries again by itself; both is done
//! by who asks. They go straight to the server: HTTPS_PROXY is for what a host wants of the internet.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{AuthError, Body, ClientBuilder, ConfigExt as _};
use kube::config::{Config, Kubeconfig, KubeconfigError};
use tower::{BoxError, ServiceExt as _};

/// No answer to a SYN for so long, and the next address is tried.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection on which nothing comes is asked after this time, and then in these steps; with three
/// of them unanswered it is dead, so after 25 s.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_STEP: Duration = Duration::from_secs(5);
const KEEPALIVE_STEPS: u32 = 3;
/// What we sent was not acknowledged for so long: dead, too.
const UNACKNOWLEDGED: Duration = Duration::from_secs(25);
/// A credential plugin has so long to answer.
const CREDENTIALS: Duration = Duration::from_secs(60);

/// Where the API server and our credentials are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// In this file, as kubectl's.
    Kubeconfig(PathBuf),
    /// In the environment and the service account of the pod that we run in.
    InCluster,
}

/// The API server cannot be asked at all: its address or our credentials are missing or wrong. Never
/// has a secret in it.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig file is missing, wrong, or points to something that is.
    #[error("the kubeconfig {} cannot be used: {reason}", path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// We seem to run outside of a cluster.
    #[error("there is no `--kubeconfig`, and this is no pod with a service account: {0}")]
    NotInCluster(String),
    /// The credentials are written, and of no use.
    #[error("the credentials for {server} cannot be used: {reason}")]
    Credentials {
        /// For which server.
        server: String,
        /// What is wrong with them.
        reason: String,
    },
}

impl Access {
    /// As kube-proxy: the file if one is named, else the cluster that we run in.
    pub fn of(kubeconfig: Option<PathBuf>) -> Self {
        kubeconfig.map_or(Self::InCluster, Self::Kubeconfig)
    }

    /// Reads everything anew, and runs the credential plugin if there is one.
    async fn client(&self) -> Result<Reached, AccessError> {
        let access = self.clone();
        let making = tokio::task::spawn_blocking(move || access.make(tokio::runtime::Handle::current()));
        let silent = || AccessError::Credentials {
            server: self.to_string(),
            reason: format!("no answer from the credential plugin for {} s", CREDENTIALS.as_secs()),
        };
        match tokio::time::timeout(CREDENTIALS, making).await {
            Ok(Ok(made)) => made,
            Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            Err(_late) => Err(silent()),
        }
    }

    fn make(&self, runtime: tokio::runtime::Handle) -> Result<Reached, AccessError> {
        let mut config = match self {
            Self::Kubeconfig(path) => kubeconfig(path)?,
            Self::InCluster => {
                Config::incluster().map_err(|error| AccessError::NotInCluster(error.to_string()))?
            }
        };
        if config.cluster_url.scheme_str() == Some("http") {
            // Nobody is verified, so the system's own list of CAs need not be read.
            config.root_cert = Some(Vec::new());
        }
        let server = config.cluster_url.to_string();
        let wrong = |error: &kube::Error| AccessError::Credentials {
            server: server.clone(),
            reason: without_secrets(error),
        };
        let _guard = runtime.enter();
        let client = connect(&config).map_err(|error| wrong(&error))?;
        Ok(Reached { client, server: server.trim_end_matches('/').into() })
    }
}

/// A client, and the server it speaks to.
#[derive(Clone)]
pub(super) struct Reached {
    pub(super) client: Client,
    pub(super) server: Arc<str>,
}

/// The client that all who ask share. After a failure it is made anew, so that credentials and
/// addresses that changed in the files are taken up; while that is not possible, the old one stays.
pub(super) struct Link {
    access: Access,
    now: Mutex<Now>,
    /// Held by the one who makes it anew: a credential plugin need not run for each of us.
    renewing: tokio::sync::Mutex<()>,
}

struct Now {
    reached: Reached,
    /// How often it was made.
    generation: u64,
    /// Somebody failed with it.
    doubted: bool,
}

impl Link {
    pub(super) async fn open(access: Access) -> Result<Self, AccessError> {
        // Kept if somebody was faster; both are the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reached = access.client().await?;
        let now = Mutex::new(Now { reached, generation: 0, doubted: false });
        Ok(Self { access, now, renewing: tokio::sync::Mutex::new(()) })
    }

    /// The client to ask with, and the number to complain about it.
    ///
    /// # Errors
    /// What is wrong with the files. [`Link::old`] can still be tried then.
    pub(super) async fn reached(&self) -> Result<(Reached, u64), AccessError> {
        let _renewing = self.renewing.lock().await;
        let (reached, generation, doubted) = self.look();
        if !doubted {
            return Ok((reached, generation));
        }
        let reached = self.access.client().await?;
        *self.lock() = Now { reached: reached.clone(), generation: generation + 1, doubted: false };
        Ok((reached, generation + 1))
    }

    /// The client as it was made last.
    pub(super) fn old(&self) -> (Reached, u64) {
        let (reached, generation, _) = self.look();
        (reached, generation)
    }

    /// It did not work with the client of that number.
    pub(super) fn doubt(&self, generation: u64) {
        let mut now = self.lock();
        now.doubted |= now.generation == generation;
    }

    fn look(&self) -> (Reached, u64, bool) {
        let now = self.lock();
        (now.reached.clone(), now.generation, now.doubted)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn kubeconfig(path: &Path) -> Result<Config, AccessError> {
    let wrong = |reason: String| AccessError::Kubeconfig { path: path.to_owned(), reason };
    let mut written = Kubeconfig::read_from(path).map_err(|error| wrong(reason(&error)))?;
    if written.clusters.iter().flat_map(|named| &named.cluster).any(|cluster| cluster.proxy_url.is_some()) {
        return Err(wrong(
            "`proxy-url` is not supported; give an address that can be reached directly".into(),
        ));
    }
    for user in written.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        // A person has no terminal to answer a daemon's plugin at.
        if let Some(exec) = &mut user.exec {
            exec.interactive_mode = Some(kube::config::ExecInteractiveMode::Never);
        }
    }
    Config::try_from(written).map_err(|error| wrong(reason(&error)))
}

fn connect(config: &Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_STEP));
    tcp.set_keepalive_retries(Some(KEEPALIVE_STEPS));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http =
        legacy::Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build::<_, Body>(tls);
    let builder = ClientBuilder::new(http.map_err(BoxError::from), config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}

/// What is wrong with a kubeconfig. The parser's own words may quote the file, and with it a token.
fn reason(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => format!("line {}, column {} is no kubeconfig in YAML", at.line(), at.column()),
            None => "it is no kubeconfig in YAML".to_owned(),
        },
        KubeconfigError::ReadConfig(error, _) => error.to_string(),
        other => other.to_string(),
    }
}

/// An error of the client in one line. What a credential plugin printed may be a token, so of that
/// only what it said on its error output is told.
pub(super) fn without_secrets(error: &kube::Error) -> String {
    match error {
        kube::Error::Auth(error) => credentials(error),
        kube::Error::Service(error) => match error.downcast_ref::<AuthError>() {
            Some(error) => credentials(error),
            None => chain(error.as_ref()),
        },
        other => chain(other),
    }
}

fn credentials(error: &AuthError) -> String {
    match error {
        // Neither what it was called with, which may be a secret as well.
        AuthError::AuthExecRun { out, .. } => {
            let said = String::from_utf8_lossy(&out.stderr);
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("the credential plugin failed with {}: {said}", out.status)
        }
        AuthError::AuthExecParse(_) => "the credential plugin's answer is no ExecCredential".to_owned(),
        other => other.to_string(),
    }
}

/// An error with its causes, each said once: some of these repeat their cause in their own text.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

/// After "the API of ...".
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig(path) => write!(f, "the kubeconfig {}", path.display()),
            Self::InCluster => f.write_str("this cluster"),
        }
    }
}
