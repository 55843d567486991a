//! The CNI plugin: lets container runtimes attach their pods to the overlay.
//!
//! [`protocol`] reads the call, [`result`] says what ADD answers; this file carries it out with
//! [`crate::attach`]. A runtime starts it once per call, as `weft-cni` or `weft cni`.

pub mod protocol;
pub mod result;

use serde_json::Value;

use crate::attach::records::{Record, RecordError};
use crate::attach::site::SiteError;
use crate::attach::{AttachError, Attacher, Attachment};
use protocol::{Attachment as Valid, Call, Command, Refusal};
use result::Attached;

/// Answers one call: what goes to standard output, and whether the call succeeded.
pub fn answer(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> (Option<Value>, bool) {
    let call = match protocol::parse(env, stdin) {
        Ok(call) => call,
        Err(refusal) => {
            // Without a configuration that can be read there is no version to answer in.
            let conf: protocol::NetConf = serde_json::from_slice(stdin).unwrap_or_default();
            let version = conf.version.as_str();
            let version = if protocol::VERSIONS.contains(&version) { version } else { "" };
            return (Some(refusal.to_json(version)), false);
        }
    };
    match carry_out(&call) {
        Ok(answer) => (answer, true),
        Err(refusal) => (Some(refusal.to_json(&call.conf.version)), false),
    }
}

fn carry_out(call: &Call) -> Result<Option<Value>, Refusal> {
    let conf = &call.conf;
    let attacher = Attacher::new(&conf.run_dir, &conf.state_dir, &conf.network).in_the_name_of(&conf.name);
    let netns = || {
        let missing = || Refusal::new(Refusal::BAD_ENVIRONMENT, "CNI_NETNS is not set");
        call.netns.as_deref().ok_or_else(missing)
    };
    let (container, ifname) = (call.container.as_str(), call.ifname.as_str());
    match call.command {
        Command::Version => return Ok(Some(protocol::versions(&conf.version))),
        Command::Add => {
            if attacher.has_interface(netns()?, ifname).map_err(refusal)? {
                let message = format!("CNI_IFNAME is `{ifname}`, and the container has such an interface");
                return Err(Refusal::new(Refusal::BAD_ENVIRONMENT, message));
            }
            let made = attacher.attach(container, ifname, netns()?, &call.wanted).map_err(refusal)?;
            return Ok(Some(result::result(conf, &attached(&made))));
        }
        Command::Del => attacher.detach(container, ifname).map_err(refusal)?,
        Command::Check => {
            let expected = result::expected(conf, ifname)?;
            attacher.check(container, ifname, netns()?, &expected).map_err(refusal)?;
        }
        Command::Gc => {
            let valid = conf.valid().unwrap_or_default();
            let keep = |record: &Record| {
                valid.contains(&Valid { container: record.id.clone(), ifname: record.ifname.clone() })
            };
            attacher.collect_garbage(keep).map_err(refusal)?;
        }
        Command::Status => {
            let unavailable = |error| Refusal::new(Refusal::NOT_AVAILABLE, one_line(&error));
            attacher.has_room().map_err(unavailable)?;
        }
    }
    Ok(None)
}

fn attached(attachment: &Attachment) -> Attached {
    Attached {
        host_link: attachment.record.link.clone(),
        host_mac: attachment.host_mac.to_string(),
        ifname: attachment.record.ifname.clone(),
        mac: attachment.pod_mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: attachment.mtu,
        netns: attachment.record.netns.clone(),
        ips: attachment.addresses.clone(),
        routes: attachment.routes.clone(),
    }
}

/// The specification's code for what went wrong.
fn refusal(error: AttachError) -> Refusal {
    let code = match &error {
        AttachError::Site(SiteError::Missing { .. }) => Refusal::TRY_AGAIN,
        AttachError::Namespace { .. } => Refusal::UNKNOWN_CONTAINER,
        AttachError::HostNamespace { .. } | AttachError::Name(_) => Refusal::BAD_ENVIRONMENT,
        AttachError::Record(RecordError::Refused { .. }) => Refusal::BAD_CONFIG,
        _ => Refusal::FAILED,
    };
    Refusal::new(code, one_line(&error))
}

/// An error with its causes, as one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
