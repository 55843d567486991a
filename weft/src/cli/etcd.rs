//! How etcd is reached: the flags that every command shares which asks it.

use std::path::PathBuf;

use weft_overlay::admin::ConnectOptions;
use weft_overlay::options::Options;

const ETCD: &str = "etcd";

/// For the help of the commands that read nothing else from the environment.
pub(super) const AFTER_HELP: &str = "\
How etcd is reached may also be set in the environment, in the daemon's own variables:
--etcd-endpoints as WEFT_ETCD_ENDPOINTS or, as for flanneld, FLANNELD_ETCD_ENDPOINTS.";

/// What the variables begin with that a flag of any command but the daemon is read from.
pub(super) fn prefixes(flag: &str) -> &'static [&'static str] {
    if flag.starts_with("etcd-") { super::overlay::prefixes(flag) } else { &[] }
}

/// etcd's address, the way in, and where the network's keys begin.
// No Debug: one of these is a password.
#[derive(clap::Args)]
pub(super) struct EtcdArgs {
    /// etcd's client URLs, with commas between them
    #[arg(
        long,
        value_name = "URLS",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379",
        help_heading = ETCD
    )]
    pub(super) etcd_endpoints: String,
    /// Where the network's keys begin in etcd
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network", help_heading = ETCD)]
    pub(super) etcd_prefix: String,
    /// The CA that signed etcd's certificate; enough for https:// alone
    #[arg(long, value_name = "FILE", help_heading = ETCD)]
    etcd_cafile: Option<PathBuf>,
    /// This host's client certificate
    #[arg(long, value_name = "FILE", help_heading = ETCD)]
    etcd_certfile: Option<PathBuf>,
    /// The key of this host's client certificate
    #[arg(long, value_name = "FILE", help_heading = ETCD)]
    etcd_keyfile: Option<PathBuf>,
    /// etcd's user
    #[arg(long, value_name = "NAME", help_heading = ETCD)]
    etcd_username: Option<String>,
    /// A file with that user's password
    #[arg(long, value_name = "FILE", help_heading = ETCD)]
    etcd_password_file: Option<PathBuf>,
    /// The password itself; every user of this host can read it in the process list
    #[arg(long, value_name = "PASSWORD", help_heading = ETCD)]
    etcd_password: Option<String>,
}

impl EtcdArgs {
    /// The typed form.
    pub(super) fn connect_options(self) -> ConnectOptions {
        let tls = [&self.etcd_cafile, &self.etcd_certfile, &self.etcd_keyfile].iter().any(|f| f.is_some());
        ConnectOptions {
            endpoints: endpoints(&self.etcd_endpoints, tls),
            ca_file: self.etcd_cafile,
            cert_file: self.etcd_certfile,
            key_file: self.etcd_keyfile,
            username: self.etcd_username,
            password: self.etcd_password.map(Into::into),
            password_file: self.etcd_password_file,
            ..Options::default().etcd
        }
    }
}

/// The URLs; flannel's users write `127.0.0.1:2379` as well, which means TLS if there are certificates.
fn endpoints(text: &str, tls: bool) -> Vec<String> {
    let scheme = if tls { "https" } else { "http" };
    let whole = |url: &str| if url.contains("://") { url.to_owned() } else { format!("{scheme}://{url}") };
    text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(whole).collect()
}
