//! How to reach etcd: endpoints, files, login and times; and the check that they make sense.
//!
//! [`ConnectOptions`] is what a person sets. [`Settings`] is the same after the check, and the only
//! form the rest of the crate takes. Files are read again for every new connection, so that renewed
//! certificates and changed passwords are picked up without a restart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, Uri};

use crate::StoreError;

/// How to reach etcd. The settings are named in errors as etcd's users know them: `etcd-endpoints`,
/// `etcd-cafile`, `etcd-certfile`, `etcd-keyfile`, `etcd-username`, `etcd-password`,
/// `etcd-password-file`.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Client URLs of the members, all `http://` or all `https://`.
    pub endpoints: Vec<String>,
    /// The CA that signed etcd's certificates (PEM). Without it, `https://` trusts the system's CAs.
    pub ca_file: Option<PathBuf>,
    /// Our client certificate (PEM), with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Our client certificate's key (PEM), with `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The etcd user, with a password or a password file.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A file with the user's password; its last newline is not part of it.
    pub password_file: Option<PathBuf>,
    /// The longest that one endpoint may take for TCP, TLS, login and a first answer.
    pub connect_timeout: Duration,
    /// The longest that one request may take, failover to other endpoints included.
    pub request_timeout: Duration,
    /// How long a connection in use may be silent before we ask whether it lives. etcd closes
    /// connections that ask more often than its `--grpc-keepalive-min-time`, 5 s.
    pub keepalive_interval: Duration,
    /// How long the answer to that may take.
    pub keepalive_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
            password_file: None,
            // A login costs etcd a bcrypt, about 0.1 s; an endpoint that is down should not cost much more.
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(6),
            keepalive_timeout: Duration::from_secs(3),
        }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Checked options.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) endpoints: Vec<String>,
    tls: Option<TlsFiles>,
    login: Option<(String, Password)>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
}

#[derive(Clone, Debug)]
struct TlsFiles {
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug)]
enum Password {
    Given(Secret),
    File(PathBuf),
}

impl TryFrom<ConnectOptions> for Settings {
    type Error = StoreError;

    fn try_from(options: ConnectOptions) -> Result<Self, StoreError> {
        let (endpoints, secure) = endpoints(&options.endpoints)?;
        let identity = match (options.cert_file, options.key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(bad("etcd-certfile needs etcd-keyfile as well")),
            (None, Some(_)) => return Err(bad("etcd-keyfile needs etcd-certfile as well")),
        };
        if !secure && (options.ca_file.is_some() || identity.is_some()) {
            let setting = if options.ca_file.is_some() { "etcd-cafile" } else { "etcd-certfile" };
            return Err(bad(format!("{setting} needs https:// in etcd-endpoints, not http://")));
        }
        let password = match (options.password, options.password_file) {
            (Some(_), Some(_)) => return Err(bad("give etcd-password or etcd-password-file, not both")),
            (Some(secret), None) => Some(Password::Given(secret)),
            (None, Some(file)) => Some(Password::File(file)),
            (None, None) => None,
        };
        let login = match (options.username, password) {
            (Some(user), _) if user.is_empty() => return Err(bad("etcd-username is empty")),
            (Some(user), Some(password)) => Some((user, password)),
            (Some(_), None) => return Err(bad("etcd-username needs etcd-password or etcd-password-file")),
            (None, Some(_)) => return Err(bad("etcd-password needs etcd-username as well")),
            (None, None) => None,
        };
        for (name, value) in [
            ("connect timeout", options.connect_timeout),
            ("request timeout", options.request_timeout),
            ("keepalive interval", options.keepalive_interval),
            ("keepalive timeout", options.keepalive_timeout),
        ] {
            if value.is_zero() {
                return Err(bad(format!("the etcd {name} must be longer than zero")));
            }
        }
        let settings = Settings {
            endpoints,
            tls: secure.then_some(TlsFiles { ca: options.ca_file, identity }),
            login,
            connect_timeout: options.connect_timeout,
            request_timeout: options.request_timeout,
            keepalive_interval: options.keepalive_interval,
            keepalive_timeout: options.keepalive_timeout,
        };
        settings.tls()?;
        settings.login()?;
        Ok(settings)
    }
}

impl Settings {
    /// Whether TLS is spoken.
    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// TLS as the files say now; `None` for `http://`.
    pub(crate) fn tls(&self) -> Result<Option<ClientTlsConfig>, StoreError> {
        let Some(files) = &self.tls else { return Ok(None) };
        let mut tls = ClientTlsConfig::new();
        match &files.ca {
            Some(file) => {
                let pem = read("etcd-cafile", file)?;
                let mut roots = RootCertStore::empty();
                for certificate in certificates("etcd-cafile", file, &pem)? {
                    roots.add(certificate).map_err(|e| unusable("etcd-cafile", file, e))?;
                }
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
            None => tls = tls.with_native_roots(),
        }
        if let Some((cert_file, key_file)) = &files.identity {
            let (cert, key) = (read("etcd-certfile", cert_file)?, read("etcd-keyfile", key_file)?);
            let chain = certificates("etcd-certfile", cert_file, &cert)?;
            let private =
                PrivateKeyDer::from_pem_slice(&key).map_err(|e| unusable("etcd-keyfile", key_file, e))?;
            CertifiedKey::from_der(chain, private, &default_provider())
                .map_err(|e| unusable("etcd-keyfile", key_file, e))?;
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Ok(Some(tls))
    }

    /// User and password as the file says now.
    pub(crate) fn login(&self) -> Result<Option<(String, Secret)>, StoreError> {
        let Some((user, password)) = &self.login else { return Ok(None) };
        let password = match password {
            Password::Given(secret) => secret.clone(),
            Password::File(file) => {
                let text = String::from_utf8(read("etcd-password-file", file)?)
                    .map_err(|e| unusable("etcd-password-file", file, e.utf8_error()))?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                Secret::from(line.strip_suffix('\r').unwrap_or(line))
            }
        };
        Ok(Some((user.clone(), password)))
    }
}

/// The URLs without repetitions, and whether they are `https://`.
fn endpoints(urls: &[String]) -> Result<(Vec<String>, bool), StoreError> {
    let mut endpoints: Vec<String> = Vec::new();
    let mut secure = None;
    for url in urls.iter().map(|url| url.trim()) {
        let https = endpoint_is_https(url)?;
        if secure.is_some_and(|before| before != https) {
            return Err(bad("etcd-endpoints mixes http:// and https://; use one of them"));
        }
        secure = Some(https);
        let url = url.trim_end_matches('/').to_owned();
        if !endpoints.contains(&url) {
            endpoints.push(url);
        }
    }
    match secure {
        Some(secure) => Ok((endpoints, secure)),
        None => Err(bad("etcd-endpoints is empty; it wants at least one URL like http://192.0.2.1:2379")),
    }
}

fn endpoint_is_https(url: &str) -> Result<bool, StoreError> {
    // Checked first, so that no message ever repeats a password from a URL.
    if url.contains('@') {
        return Err(bad("etcd-endpoints: a URL has a user in it; use etcd-username and etcd-password"));
    }
    let wrong = |why: &str| bad(format!("etcd-endpoints: `{url}` {why}"));
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(wrong("has no scheme; write http:// or https:// in front"));
    };
    let secure = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(wrong("must begin with http:// or https://")),
    };
    let uri: Uri = url.parse().map_err(|_| wrong("is not a URL like http://192.0.2.1:2379"))?;
    let host = uri.host().unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let port_is_given = authority.len() > host.len();
    let port_is_good = uri.port_u16().is_some_and(|port| port > 0);
    if host.is_empty() || (port_is_given && !port_is_good) {
        return Err(wrong("is not a URL like http://192.0.2.1:2379"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong("must end after the port"));
    }
    Ok(secure)
}

fn read(setting: &str, file: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(file).map_err(|source| StoreError::Config {
        what: format!("{setting}: cannot read {}", file.display()),
        source: Some(source.into()),
    })
}

fn certificates(setting: &str, file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(setting, file, e))?;
    if found.is_empty() {
        return Err(bad(format!("{setting}: {} has no PEM certificate in it", file.display())));
    }
    Ok(found)
}

fn unusable(
    setting: &str,
    file: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Config {
        what: format!("{setting}: cannot use {}", file.display()),
        source: Some(source.into()),
    }
}

fn bad(what: impl Into<String>) -> StoreError {
    StoreError::Config { what: what.into(), source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_name_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage");
        std::fs::write(&garbage, "hello").unwrap();
        let good = ConnectOptions::default;
        let urls = |urls: &[&str]| ConnectOptions {
            endpoints: urls.iter().map(|url| (*url).to_owned()).collect(),
            ..good()
        };
        let https = || urls(&["https://192.0.2.1:2379"]);
        let some = |path: &str| Some(PathBuf::from(path));
        let secret = || Some(Secret::from("hunter2"));
        #[rustfmt::skip]
        let table: Vec<(&str, ConnectOptions, &str)> = vec![
            ("no endpoint", urls(&[]), "etcd-endpoints is empty"),
            ("no scheme", urls(&["192.0.2.1:2379"]), "`192.0.2.1:2379` has no scheme"),
            ("other scheme", urls(&["ftp://192.0.2.1"]), "must begin with http:// or https://"),
            ("no host", urls(&["http://"]), "is not a URL"),
            ("no host but a port", urls(&["http://:2379"]), "is not a URL"),
            ("bad port", urls(&["http://a:99999"]), "is not a URL"),
            ("empty port", urls(&["http://a:"]), "is not a URL"),
            ("space", urls(&["http://a b:1"]), "is not a URL"),
            ("path", urls(&["http://a:1/v2"]), "must end after the port"),
            ("password in it", urls(&["http://root:hunter2@a:1"]), "a URL has a user in it"),
            ("mixed", urls(&["http://a:1", "https://b:1"]), "mixes http:// and https://"),
            ("cert alone", ConnectOptions { cert_file: some("/c"), ..https() }, "etcd-certfile needs etcd-keyfile"),
            ("key alone", ConnectOptions { key_file: some("/k"), ..https() }, "etcd-keyfile needs etcd-certfile"),
            ("CA over http", ConnectOptions { ca_file: some("/c"), ..good() }, "etcd-cafile needs https://"),
            ("cert over http", ConnectOptions { cert_file: some("/c"), key_file: some("/k"), ..good() }, "etcd-certfile needs https://"),
            ("CA unreadable", ConnectOptions { ca_file: some("/nowhere/ca"), ..https() }, "etcd-cafile: cannot read /nowhere/ca"),
            ("CA is no PEM", ConnectOptions { ca_file: Some(garbage.clone()), ..https() }, "has no PEM certificate"),
            ("cert unreadable", ConnectOptions { cert_file: some("/nowhere/c"), key_file: some("/k"), ..https() }, "etcd-certfile: cannot read /nowhere/c"),
            ("user alone", ConnectOptions { username: Some("root".into()), ..good() }, "etcd-username needs etcd-password"),
            ("user empty", ConnectOptions { username: Some(String::new()), password: secret(), ..good() }, "etcd-username is empty"),
            ("password alone", ConnectOptions { password: secret(), ..good() }, "etcd-password needs etcd-username"),
            ("two passwords", ConnectOptions { username: Some("root".into()), password: secret(), password_file: Some(garbage.clone()), ..good() }, "not both"),
            ("password file unreadable", ConnectOptions { username: Some("root".into()), password_file: some("/nowhere/pw"), ..good() }, "etcd-password-file: cannot read /nowhere/pw"),
            ("no time", ConnectOptions { request_timeout: Duration::ZERO, ..good() }, "request timeout"),
        ];
        for (case, options, expected) in table {
            let shown = format!("{options:?}");
            assert!(case == "password in it" || !shown.contains("hunter2"), "{case}: {shown}");
            match Settings::try_from(options) {
                Err(error @ StoreError::Config { .. }) => {
                    let line = error.to_string();
                    assert!(line.contains(expected), "{case}: {line}");
                    assert!(!line.contains("hunter2") && !line.contains('\n'), "{case}: {line}");
                }
                other => panic!("{case}: {other:?}"),
            }
        }
    }

    #[test]
    fn good_settings_pass() {
        let options = ConnectOptions {
            endpoints: ["http://a:1/", "http://[2001:db8::1]:2379", "http://a:1"].map(String::from).to_vec(),
            ..Default::default()
        };
        let settings = Settings::try_from(options).unwrap();
        assert_eq!(settings.endpoints, ["http://a:1", "http://[2001:db8::1]:2379"]);
        assert!(settings.tls().unwrap().is_none());
    }

    #[test]
    fn the_password_file_is_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "first\r\n").unwrap();
        let options = ConnectOptions {
            username: Some("root".into()),
            password_file: Some(file.clone()),
            ..Default::default()
        };
        let settings = Settings::try_from(options).unwrap();
        assert_eq!(settings.login().unwrap().unwrap().1.expose(), "first");
        std::fs::write(&file, "second").unwrap();
        assert_eq!(settings.login().unwrap().unwrap().1.expose(), "second");
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::from("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
    }
}
