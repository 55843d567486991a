//! Certificates for the server and its clients, made for each server anew.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::net::IpAddr;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

use super::Security;

/// The name in the server's certificate, beside its address: of a kubeconfig's clients this is expected.
const SERVER: &str = "weft-test-api";

/// A CA and what it signed.
#[derive(Debug)]
pub(super) struct Certs {
    ca: Pem,
    server: Signed,
    client: Signed,
}

#[derive(Debug)]
struct Pem(String, rustls::pki_types::CertificateDer<'static>);

#[derive(Debug)]
struct Signed {
    cert: Pem,
    key: KeyPair,
}

impl Certs {
    /// For a server at that address.
    pub(super) fn new(address: IpAddr) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "weft test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let signed = |names: &[String]| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(names).expect("good names");
            params.distinguished_name.push(DnType::CommonName, &names[0]);
            let cert = params.signed_by(&key, &ca).expect("a certificate");
            Signed { cert: Pem(cert.pem(), cert.der().clone()), key }
        };
        Self {
            server: signed(&[SERVER.to_owned(), address.to_string()]),
            client: signed(&["proxy".to_owned()]),
            ca: Pem(ca.pem(), ca.der().clone()),
        }
    }

    pub(super) fn acceptor(&self, security: Security) -> TlsAcceptor {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = ServerConfig::builder();
        let builder = if security == Security::Certificate {
            let mut roots = RootCertStore::empty();
            roots.add(self.ca.1.clone()).expect("our CA");
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("our CA"),
            )
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(self.server.key.serialize_der()).expect("our key");
        let config =
            builder.with_single_cert(vec![self.server.cert.1.clone()], key).expect("our certificate");
        TlsAcceptor::from(Arc::new(config))
    }

    /// The CA's certificate.
    pub(super) fn ca(&self) -> &str {
        &self.ca.0
    }

    /// What a kubeconfig says of the cluster.
    pub(super) fn cluster(&self) -> String {
        let ca = base64(self.ca.0.as_bytes());
        format!("    tls-server-name: {SERVER}\n    certificate-authority-data: {ca}\n")
    }

    /// What it says of the user.
    pub(super) fn user(&self) -> String {
        let cert = base64(self.client.cert.0.as_bytes());
        let key = base64(self.client.key.serialize_pem().as_bytes());
        format!("client-certificate-data: {cert}\n    client-key-data: {key}")
    }
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|index| u32::from(chunk.get(index).copied().unwrap_or_default()));
        let bits = a << 16 | b << 8 | c;
        for digit in 0..4 {
            let there = digit <= chunk.len();
            let index = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if there { DIGITS[index].into() } else { '=' });
        }
    }
    text
}
