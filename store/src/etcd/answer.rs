//! What etcd's answers mean: errors as faults, messages as our types. Pure.

use tonic::{Code, Status};
use tracing::warn;

use crate::backend::Header;
use crate::fault::{Fault, chain};
use crate::{Change, ClusterId, KeyValue, LeaseId, Revision};

/// What an error of etcd or of the connection to it means.
pub(crate) fn fault(error: etcd_client::Error) -> Fault {
    match error {
        etcd_client::Error::GRpcStatus(status) => status_fault(status),
        // The only word the client library has for a keep-alive that etcd answers with TTL 0.
        etcd_client::Error::LeaseKeepAliveError(text) if text == "lease not found" => Fault::NoSuchLease,
        etcd_client::Error::TransportError(error) => transport_fault(error.into()),
        other => Fault::silent(other),
    }
}

/// Why a connection could not be made or broke.
pub(crate) fn transport_fault(cause: Box<dyn std::error::Error + Send + Sync>) -> Fault {
    let certificate = rejected_certificate(cause.as_ref());
    let unsent = find::<tonic::ConnectError>(cause.as_ref()).is_some();
    let line = plain(&chain(cause.as_ref()));
    match certificate {
        true => Fault::Denied(line.into()),
        false => Fault::Unreachable { cause: line.into(), unsent },
    }
}

fn status_fault(status: Status) -> Fault {
    let says = |text: &str| status.message().contains(text);
    // The texts are etcd's (api/v3rpc/rpctypes/error.go); the codes alone are too coarse.
    match status.code() {
        Code::OutOfRange if says("has been compacted") => Fault::Compacted,
        Code::OutOfRange if says("is a future revision") => Fault::FutureRevision,
        Code::NotFound if says("requested lease not found") => Fault::NoSuchLease,
        // Our login is from before a change of users or roles. etcd looks at it before it does
        // anything, so to log in again and repeat is safe.
        Code::InvalidArgument if says("revision of auth store is old") => Fault::unsent(line(&status)),
        Code::InvalidArgument if says("authentication failed") || says("user name is empty") => {
            Fault::Denied(line(&status).into())
        }
        Code::Unauthenticated => Fault::Denied(line(&status).into()),
        Code::PermissionDenied => Fault::Forbidden(line(&status).into()),
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => match std::error::Error::source(&status) {
            Some(source) if rejected_certificate(source) => Fault::Denied(line(&status).into()),
            Some(source) if find::<tonic::ConnectError>(source).is_some() => Fault::unsent(line(&status)),
            _ => Fault::silent(line(&status)),
        },
        _ => Fault::Refused(line(&status).into()),
    }
}

/// The message without gRPC's decoration.
fn line(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => plain(&chain(source)),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// Without the layers that say nothing by themselves.
fn plain(line: &str) -> String {
    line.strip_prefix("transport error: ").unwrap_or(line).to_owned()
}

/// Whether a certificate, ours or etcd's, was not accepted.
fn rejected_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(
        find::<rustls::Error>(error),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))
    )
}

/// The first error of this type among the causes. An `io::Error` hides the error that it wraps from
/// `source`, so it is opened.
fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let inside = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

/// The header of an answer; etcd always sends one.
pub(crate) fn header(header: Option<&etcd_client::ResponseHeader>) -> Result<Header, Fault> {
    let header = header.ok_or_else(|| Fault::silent("etcd sent an answer without a header"))?;
    Ok(Header { cluster: ClusterId(header.cluster_id()), revision: Revision(header.revision()) })
}

/// A key, unless it is not UTF-8: none of ours is, so it is skipped with a warning.
pub(crate) fn key_value(kv: &etcd_client::KeyValue) -> Option<KeyValue> {
    Some(KeyValue {
        key: key(kv)?,
        value: kv.value().to_vec(),
        create_revision: Revision(kv.create_revision()),
        mod_revision: Revision(kv.mod_revision()),
        lease: (kv.lease() != 0).then_some(LeaseId(kv.lease())),
    })
}

/// An event, unless its key is not UTF-8.
pub(crate) fn change(event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    match event.event_type() {
        etcd_client::EventType::Put => key_value(kv).map(Change::Put),
        etcd_client::EventType::Delete => {
            Some(Change::Delete { key: key(kv)?, revision: Revision(kv.mod_revision()) })
        }
    }
}

fn key(kv: &etcd_client::KeyValue) -> Option<String> {
    match std::str::from_utf8(kv.key()) {
        Ok(key) => Some(key.to_owned()),
        Err(_) => {
            warn!(key = %kv.key().escape_ascii(), "skipping a key that is not UTF-8");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_errors_are_told_apart() {
        #[rustfmt::skip]
        let table = [
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "Compacted"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "FutureRevision"),
            (Code::NotFound, "etcdserver: requested lease not found", "NoSuchLease"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", "Denied"),
            (Code::InvalidArgument, "etcdserver: user name is empty", "Denied"),
            (Code::PermissionDenied, "etcdserver: permission denied", "Forbidden"),
            (Code::Unauthenticated, "etcdserver: invalid auth token", "Denied"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", "unsent"),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request", "Refused"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "Refused"),
            (Code::Unavailable, "etcdserver: no leader", "silent"),
            (Code::Unavailable, "etcdserver: request timed out", "silent"),
            (Code::DeadlineExceeded, "context deadline exceeded", "silent"),
            (Code::Cancelled, "operation was canceled", "silent"),
        ];
        for (code, message, expected) in table {
            let kind = match fault(etcd_client::Error::GRpcStatus(Status::new(code, message))) {
                Fault::Unreachable { unsent: true, .. } => "unsent",
                Fault::Unreachable { unsent: false, .. } => "silent",
                Fault::Denied(_) => "Denied",
                Fault::Forbidden(_) => "Forbidden",
                Fault::NoSuchLease => "NoSuchLease",
                Fault::Compacted => "Compacted",
                Fault::FutureRevision => "FutureRevision",
                Fault::Refused(_) => "Refused",
                Fault::Config(_) => "Config",
            };
            assert_eq!(kind, expected, "{message}");
        }
    }

    #[test]
    fn a_refused_certificate_is_found_below_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        assert!(rejected_certificate(&wrapped));
        assert!(!rejected_certificate(&std::io::Error::other("refused")));
        assert!(matches!(transport_fault(wrapped.into()), Fault::Denied(_)));
    }
}
